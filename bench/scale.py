#!/usr/bin/env python3
"""Compare a sweep on two GPUs with the same sweep on one, and see what a rank that is killed half-way costs.

Each sweep is a run of run_profile.py with random weights, as a user starts it, in a folder of its own. `sweep` are the
seconds of the points, as the run records them, without the load of the model; `run` are those of the whole command.
Rows are compared as bench/compare_tables.py does.

    python3 bench/scale.py --model meta-llama/Llama-3.1-8B
    python3 bench/scale.py --prefill-step 4 --decode-step 4 --second-model Qwen/Qwen3-8B
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, wherever this is run from

from bench.compare_tables import ALL_ROWS, compare
from llm_profile.errors import EXIT_COMPLETE, EXIT_USAGE, UsageError
from llm_profile.store.files import read_table
from llm_profile.store.storage import write_json
from llm_profile.store.table import LatencyTable

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
HARDWARE = "scale"
"""Folder of the tables in each folder of a run."""

MEASURING = re.compile(r"rank (\d+) \([^)]*\), process (\d+)")
"""What a run prints of each rank, with the process that measures."""


@dataclass(frozen=True)
class Run:
    """One run of the command. seconds: of the whole command. tables: of each model. named: lines that name a rank."""

    seconds: float
    tables: Sequence[LatencyTable]
    named: Sequence[str] = ()

    @property
    def sweep_s(self) -> float:
        """Seconds in which points were measured, of all models."""
        return float(sum(run["seconds"] for table in self.tables for run in table.meta["runs"]))


def profile(
    options: argparse.Namespace,
    folder: Path,
    models: Sequence[str],
    gpus: int,
    meanwhile: Callable[[Path, dict[int, int]], None] = lambda _journal, _processes: None,
) -> Run:
    """Run the command. meanwhile: is called when ranks are known, with a journal and the process of each rank.

    Raises UsageError if the command fails.
    """
    launcher = [sys.executable]
    if gpus > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    words = [word for model in models for word in ("--model", model)]
    words += ["--prefill-step", str(options.prefill_step), "--decode-step", str(options.decode_step)]
    words += ["--prefill-max", str(options.max_length), "--decode-max", str(options.max_length)]
    words += ["--device", options.device, "--hardware", HARDWARE, "--load-format", "dummy"]
    words += ["--skip-scaling", "--no-report", "--output-dir", str(folder)]
    started, said = time.monotonic(), []
    with subprocess.Popen(
        [*launcher, str(ROOT / "run_profile.py"), *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line.rstrip())
            if found := MEASURING.findall(line):
                journal = folder / HARDWARE / f"{models[0]}.journal.jsonl"
                meanwhile(journal, {int(rank): int(pid) for rank, pid in found})
    seconds = time.monotonic() - started
    if process.returncode:
        raise UsageError(f"a run on {gpus} GPU(s) failed: {' / '.join(said[-5:])}")
    named = [line for line in said if line.startswith("rank ")]
    return Run(seconds, [read_table(folder / HARDWARE / f"{model}.csv") for model in models], named)


def killer(points: int) -> Callable[[Path, dict[int, int]], None]:
    """Kills the process that measures for rank 1 when the journal has so many points."""

    def kill(journal: Path, processes: dict[int, int]) -> None:
        while not journal.exists() or journal.read_bytes().count(b'{"point"') < points:
            time.sleep(0.1)
        os.kill(processes[1], signal.SIGKILL)

    return kill


def agreement(one: LatencyTable, other: LatencyTable) -> dict[str, Any]:
    """Phase -> how far the rows of two tables are apart."""
    return {phase: asdict(of_row[ALL_ROWS]) for phase, of_row in compare(one, other).by_row.items()}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All runs, one after another, and their figures."""
    model = [options.model]
    alone = profile(options, folder / "one", model, 1)
    both = profile(options, folder / "two", model, 2)
    points = len(alone.tables[0].records)
    killed = profile(options, folder / "killed", model, 2, killer(points // 2))
    found: dict[str, Any] = {
        "model": options.model,
        "points": points,
        "run_s": {"one": alone.seconds, "two": both.seconds, "killed": killed.seconds},
        "sweep_s": {"one": alone.sweep_s, "two": both.sweep_s, "killed": killed.sweep_s},
        "sweep_ratio": both.sweep_s / alone.sweep_s,
        "agreement": agreement(alone.tables[0], both.tables[0]),
        "killed": {
            "points": len(killed.tables[0].records),
            "named": list(killed.named),
            "agreement": agreement(alone.tables[0], killed.tables[0]),
        },
        "conditions": alone.tables[0].meta["conditions"],
        "ranks": both.tables[0].meta["runs"][-1]["ranks"],
    }
    if options.second_model:
        second = profile(options, folder / "second", [options.second_model], 1)
        together = profile(options, folder / "models", [options.model, options.second_model], 2)
        in_turn_s = alone.seconds + second.seconds
        found["two_models"] = {
            "models": [options.model, options.second_model],
            "in_turn_s": in_turn_s,
            "together_s": together.seconds,
            "ratio": together.seconds / in_turn_s,
        }
    return found


def lines_of(found: dict[str, Any]) -> list[str]:
    """The lines that are printed. found: the result of `measure`."""
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in found["sweep_s"].items())
    lines = [f"sweep of {found['points']} points: {seconds}; two to one {found['sweep_ratio']:.3f}"]
    for phase, of in found["agreement"].items():
        lines.append(f"{phase}: rows differ by {of['median']:.2%} (median), {of['within']:.2%} are within bounds")
    lines.append(f"killed half-way: {found['killed']['points']} points; {'; '.join(found['killed']['named'])}")
    if models := found.get("two_models"):
        lines.append(f"two models: {models['together_s']:.1f} s, in turn {models['in_turn_s']:.1f} s")
        lines.append(f"together to in turn {models['ratio']:.3f}")
    return lines


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--model", default="meta-llama/Llama-3.1-8B", help="as in run_profile.py (default %(default)s)")
    add("--second-model", metavar="MODEL", help="also compare two models on two GPUs with both in turn on one")
    add("--prefill-step", type=int, default=1, metavar="N", help="as in run_profile.py (default %(default)s)")
    add("--decode-step", type=int, default=1, metavar="N", help="as in run_profile.py (default %(default)s)")
    add("--max-length", type=int, default=2048, metavar="N", help="longest prompt and cache (default %(default)s)")
    add("--device", default="cuda", help="cuda, or fake to try this script (default %(default)s)")
    add("--json", type=Path, metavar="PATH", help="where the figures go (default: bench/results/scale_*.json)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = build_parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(options, Path(folder))
        print("\n".join(lines_of(found)))
        path = options.json or RESULTS / f"scale_{options.model.rpartition('/')[2]}.json"
        write_json(path, found)
        print(f"figures: {path}")
    except UsageError as error:
        print(f"scale.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
