"""`run_profile.py predict`: the table of a card that is not here, from the tables of others. Imports no torch."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from llm_profile import installed
from llm_profile.cli.messages import notice, tell
from llm_profile.cli.parsing import (
    COUNT,
    SWITCH,
    OneLineParser,
    Options,
    add_options,
    field_defaults,
    named_path,
    sweep_of,
)
from llm_profile.errors import EXIT_COMPLETE, UsageError
from llm_profile.exporters import EXPORTERS
from llm_profile.models.hub import find_model, folder_name
from llm_profile.points import SweepPoint
from llm_profile.prediction.folder_readme import write_readme
from llm_profile.prediction.gpu_spec import find_gpu, read_gpu
from llm_profile.prediction.predict import PredictionTarget, Predictor, predict_table, usable
from llm_profile.prediction.training import TrainingTable, read_any_table, tables_below, training_table
from llm_profile.store.files import read_meta, write_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.storage import locked
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Sweep
from llm_profile.work import NoWork

PREDICT_DESCRIPTION = (
    "Predict the table of a card that is not here from tables measured on others, with a 90 % interval for each row. "
    "It is marked as predicted, and gives way to a measurement."
)
REPOSITORY = Path(__file__).resolve().parents[2]
SHOWN = (SweepPoint(1, 0), SweepPoint(128, 0), SweepPoint(2048, 0), SweepPoint(1, 2048))
"""Points whose pass is printed, where the sweep has them."""

DEFAULT_DTYPE = "bfloat16"

PREDICT_OPTIONS: Options = {
    "--hardware": {"required": True, "metavar": "NAME", "help": "the card, such as RTX3090; also folder and column"},
    "--model": {"required": True, "metavar": "M", "help": "a folder with a config.json, or an id of the Hub"},
    "--from": {
        "nargs": "+",
        "action": "extend",
        "type": named_path,
        "metavar": "TABLE",
        "help": "measured tables to learn from, .csv or .measured.parquet (default: all of this repository)",
    },
    "--gpu-spec": {"type": named_path, "metavar": "FILE", "help": "figures of a card that is not known, as JSON"},
    "--dtype": {"choices": ("bfloat16", "float16"), "help": "of the weights (default %(default)s)"},
    "--prefill-max": {**COUNT, "help": "longest prompt in tokens (default %(default)s)"},
    "--decode-max": {**COUNT, "help": "longest KV cache in tokens (default %(default)s)"},
    "--prefill-step": {**COUNT, "help": "distance between prompt lengths (default %(default)s)"},
    "--decode-step": {**COUNT, "help": "distance between cache lengths (default %(default)s)"},
    "--model-name": {"metavar": "NAME", "help": "name of the table (default: the model's id)"},
    "--output-dir": {"type": named_path, "metavar": "DIR", "help": "where the table is written (default %(default)s)"},
    "--overwrite": {**SWITCH, "help": "replace a prediction that is there"},
}


def build_parser() -> argparse.ArgumentParser:
    """The options of the sub-command."""
    parser = OneLineParser(prog="run_profile.py predict", description=PREDICT_DESCRIPTION)
    defaults = field_defaults(Sweep) | {"output_dir": Path("."), "dtype": DEFAULT_DTYPE}
    add_options(parser.add_argument, PREDICT_OPTIONS, defaults)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Predict a table and write its files; returns the exit code. Raises UsageError."""
    installed.end_without_packages("run_profile.py predict", ("sklearn",))
    gpu = find_gpu(arguments.hardware) if arguments.gpu_spec is None else read_gpu(arguments.gpu_spec)
    sweep = sweep_of(arguments)
    source = find_model(arguments.model, load_format="dummy")
    name = arguments.model_name or (folder_name(source.path) if source.path is not None else source.name)
    of_source = {"name": source.name, "origin": source.origin, "revision": source.revision}
    target = PredictionTarget(arguments.hardware, gpu, name, source.config, of_source, arguments.dtype)
    paths = _place(TablePaths.of(arguments.output_dir, arguments.hardware, name), arguments.overwrite)
    predictor = Predictor(_tables(vars(arguments)["from"], target))
    try:
        table = predict_table(target, sweep, predictor)
    except NoWork as error:
        raise UsageError(f"--model {arguments.model}: cannot be predicted: {error}") from error
    with locked(paths.lock, paths.csv):
        write_table(table, paths, EXPORTERS["csv"](table))
    readme = write_readme(arguments.output_dir / arguments.hardware, table)
    tell(_lines(table, paths, readme))
    return EXIT_COMPLETE


def _place(paths: TablePaths, overwrite: bool) -> TablePaths:
    """Where the prediction goes: a measurement keeps its place, and the prediction stands beside it.

    Raises UsageError where a prediction is there, unless it is to be replaced.
    """
    meta = read_meta(paths)
    if meta is not None and meta["origin"] != "predicted" or paths.journal.exists():
        paths = TablePaths.beside(paths.csv.with_name(paths.csv.name.removesuffix(".csv") + ".predicted.csv"))
        meta = read_meta(paths)
    if meta is not None and not overwrite:
        raise UsageError(f"{paths.csv}: a prediction is there; replace it with --overwrite, or choose --output-dir")
    return paths


def _tables(given: Sequence[Path] | None, target: PredictionTarget) -> list[TrainingTable]:
    """The tables to learn from. Raises UsageError for one that was named and cannot be, and where there is none."""
    found = []
    for path in tables_below(REPOSITORY) if given is None else given:
        try:
            found.append(training_table(read_any_table(path)))
        except NoWork as error:
            if given is not None:
                raise UsageError(f"--from {path}: nothing can be learned from it: {error}") from error
    if not (tables := usable(found, target.dtype)):
        raise UsageError(f"--from: no measured table in {target.dtype}; name some, or choose another --dtype")
    notice(f"learning from {len(tables)} tables of {', '.join(sorted({each.table.hardware for each in tables}))}")
    return tables


def _lines(table: LatencyTable, paths: TablePaths, readme: Path | None) -> Iterator[str]:
    """What was predicted, and how sure that is."""
    yield f"{table.model} on {table.hardware}: {len(table.records):,} points PREDICTED, not measured"
    for point in SHOWN:
        if point in table.records:
            whole = table.records[point].whole_pass
            low, high = whole.interval_ns or (whole.trimmed_mean_ns,) * 2
            yield (
                f"  pass of one block of each kind at {point}: {whole.trimmed_mean_ns / 1e6:.3f} ms "
                f"(90 %: {low / 1e6:.3f} to {high / 1e6:.3f})"
            )
    if not table.meta["prediction"]["generation_was_measured"]:
        generation = table.meta["prediction"]["generation"]
        yield f"no card of generation {generation} was measured: the widths of intervals are a judgement, no statistic"
    for path in (paths.csv, paths.rows, paths.meta, *([readme] if readme else [])):
        yield str(path)
