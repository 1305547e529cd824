"""`run_profile.py export`: tables made into the files of a simulator, and such files read back. Imports no torch."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from llm_profile.cli.export_steps import parse_step, step_lines
from llm_profile.cli.messages import notice, tell
from llm_profile.cli.parsing import COUNT, SWITCH, OneLineParser, Options, add_options, named_path
from llm_profile.errors import EXIT_COMPLETE, UsageError
from llm_profile.exporters import BUNDLES
from llm_profile.exporters.about import WHOSE_KERNELS, about_bundle, refuse_strange, scaling_text
from llm_profile.exporters.bundle import Bundle, BundleFormat, ExportRequest, Read, Target
from llm_profile.exporters.folder import reader_of, write_bundle
from llm_profile.points import SweepPoint
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable
from llm_profile.validation.scaled_table import scaling_paths

DESCRIPTION = "Make latency tables into the files that a simulator reads, or read such files back (--check)."

REACH: Options = {
    "--max-tokens": {**COUNT, "help": "most tokens of a step (default: the format's, 2048)"},
    "--max-sequences": {**COUNT, "help": "most sequences of a step (default: the format's, 256)"},
    "--max-kv": {**COUNT, "help": "most tokens in a KV cache (default: the format's)"},
    "--simulator-version": {"metavar": "V", "help": "of the simulator, where a format serves several"},
}
OUTPUT: Options = {
    "--output": {"type": named_path, "metavar": "DIR", "help": "a folder for the files, with the simulator's paths"},
    "--into": {"type": named_path, "metavar": "DIR", "help": "the simulator's own folder"},
    "--overwrite": {**SWITCH, "help": "replace files that are there already"},
    "--scaled": {**SWITCH, "help": "take the scaled table beside each, <model>-scaled.csv"},
    "--allow-cpu": {**SWITCH, "help": "export wall times of a CPU"},
    "--allow-predicted": {**SWITCH, "help": "export predicted and made-up tables, too"},
}
CHECK: Options = {
    "--check": {
        "action": "append",
        "metavar": "STEP",
        "help": "print what the simulator makes of a step such as 'P:128 D:300 64xD:1024' (prompts; decodes on that "
        "many tokens), by layer; may be given several times",
    },
    "--bundle": {"type": named_path, "metavar": "DIR", "help": "check the files there, whoever made them"},
    "--hardware": {"metavar": "NAME", "help": "of --bundle: what the simulator is told"},
    "--model": {"metavar": "NAME", "help": "of --bundle: what the simulator is told"},
    "--tp": {**COUNT, "help": "of --bundle: tensor parallel degree (default %(default)s)"},
}


def build_parser() -> argparse.ArgumentParser:
    """The options of the sub-command."""
    parser = OneLineParser(prog="run_profile.py export", description=DESCRIPTION)
    parser.add_argument("--format", required=True, choices=tuple(BUNDLES), help="of which simulator")
    parser.add_argument("tables", nargs="*", type=Path, metavar="TABLE.csv", help="measured tables")
    for title, options in (("files", OUTPUT), ("reach", REACH), ("check", CHECK)):
        add_options(parser.add_argument_group(title).add_argument, options, {"tp": 1})
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Export, or check; returns the exit code. Raises UsageError."""
    form = BUNDLES[arguments.format]
    if arguments.simulator_version not in (None, *form.versions):
        known = f"choose one of {', '.join(form.versions)}" if form.versions else f"{arguments.format} has no versions"
        raise UsageError(f"--simulator-version {arguments.simulator_version}: {known}")
    steps = [parse_step(text) for text in arguments.check or ()]
    if arguments.bundle is None:
        targets, read = _export(arguments, form)
    else:
        targets, read = (_target(arguments),), reader_of(arguments.bundle)
    if steps:
        tell(_checked(form, read, steps, targets))
    return EXIT_COMPLETE


def _export(arguments: argparse.Namespace, form: BundleFormat) -> tuple[Sequence[Target], Read]:
    """Make the bundle and write it where that was asked for. Returns what can be simulated, and the files."""
    folder = arguments.into or arguments.output
    if not arguments.tables:
        raise UsageError("no table was given; name a TABLE.csv, or a --bundle to check")
    if arguments.into and arguments.output:
        raise UsageError("--output, --into: give one of them")
    if folder is None and not arguments.check:
        raise UsageError("--output: say where the files go, or --into which simulator's folder, or what to --check")
    if arguments.into and not (arguments.into / form.marker).is_file():
        raise UsageError(f"--into {arguments.into}: has no {form.marker}; it is not the folder of {arguments.format}")
    tables = [_table(path, arguments) for path in arguments.tables]
    wanted = _wanted(arguments, form)
    bundle = form.export(tables, wanted)
    about = about_bundle(arguments.format, bundle, tables, wanted)
    if folder is not None:
        write_bundle({**bundle.files, bundle.about: about}, folder, arguments.overwrite, bundle.hidden_by)
    tell(_export_lines(bundle, tables, folder))
    return bundle.targets, bundle.files.__getitem__


def _table(csv: Path, arguments: argparse.Namespace) -> LatencyTable:
    """A table that may be exported, the scaled one where that was asked for. Raises UsageError."""
    if arguments.scaled:
        csv = scaling_paths(csv)[1].csv
        if not csv.exists():
            raise UsageError(f"--scaled: there is no {csv}; validation.py --csv makes it")
    table = read_table(csv)
    for text in table.notices:
        notice(text)
    refuse_strange(table, arguments.allow_cpu, arguments.allow_predicted)
    return table


def _wanted(arguments: argparse.Namespace, form: BundleFormat) -> ExportRequest:
    """How far the bundle is to reach. Raises UsageError."""
    given = {
        "max_tokens": arguments.max_tokens,
        "max_sequences": arguments.max_sequences,
        "max_kv": arguments.max_kv,
        "version": arguments.simulator_version,
    }
    for option in ("max_tokens", "max_sequences", "max_kv"):
        if given[option] is not None and given[option] < 1:
            raise UsageError(f"--{option.replace('_', '-')} {given[option]}: must be a whole number of at least 1")
    return replace(form.defaults, **{name: value for name, value in given.items() if value is not None})


def _target(arguments: argparse.Namespace) -> Target:
    """What is to be checked of a bundle that is there. Raises UsageError."""
    if arguments.tables or arguments.output or arguments.into:
        raise UsageError("--bundle: checks files that are there; leave out tables, --output and --into")
    if not arguments.check or not arguments.hardware or not arguments.model:
        raise UsageError("--bundle: needs --check, --hardware and --model")
    if arguments.tp < 1:
        raise UsageError(f"--tp {arguments.tp}: must be a whole number of at least 1")
    return Target(arguments.hardware, arguments.model, arguments.tp, arguments.simulator_version)


def _export_lines(bundle: Bundle, tables: Sequence[LatencyTable], folder: Path | None) -> Iterator[str]:
    """What was written, and what has to be known of it."""
    for path, content in bundle.files.items() if folder is not None else ():
        yield f"{folder}/{path}: {len(content):,} bytes"
    yield f"kernels: {WHOSE_KERNELS}"
    yield from map(scaling_text, tables)
    yield from bundle.notes
    for target in bundle.targets:
        degree = f", tensor parallel degree {target.tp}" if target.tp > 1 else ""
        yield f"simulate hardware {target.hardware}, model {target.model}{degree}"


def _checked(form: BundleFormat, read: Read, steps: Sequence[SweepPoint], targets: Sequence[Target]) -> Iterator[str]:
    """The time of each step by layer. Raises UsageError for what the simulator would not find, and damaged files."""
    for target in targets:
        for point in steps:
            try:
                layers = form.step(read, point, target)
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(f"--check: the files of {target.model} are damaged ({error!r})") from error
            yield from step_lines(point, target, layers)
