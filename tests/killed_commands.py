"""`run_profile.py`, killed at random instants (SIGKILL) and started again: `python3 -m tests.killed_commands FOLDER`.

As in tests.killed_runs, an instant is a number of executed lines of the package, so that it does not depend on the
machine's speed.
"""

import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pyarrow.parquet  # noqa: F401  (once here, not in every child)

import run_profile
from llm_profile.errors import UsageError
from llm_profile.store.files import read_table
from tests.fake_command import CSV, OPTIONS, POINTS
from tests.killed_runs import at_line

KILLS = 20
LINES = 24_000
"""Upper bound of the random instants: more lines than an uninterrupted run executes, so that some runs end."""


def run(folder: Path, kill_at: int | None = None) -> bool:
    """Run the command in a child process. kill_at: number of lines after which it is killed. True if it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            if kill_at is not None:
                at_line(kill_at, folder)
            code = run_profile.main([*OPTIONS, "--repeat", "3", "--output-dir", str(folder)])
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"a run ended with status {status} (kill at line {kill_at})"
    return status == signal.SIGKILL


def known_points(folder: Path) -> int:
    """Number of points in the table of the folder, with those of an unfinished journal."""
    try:
        return len(read_table(folder / CSV).records)
    except UsageError:  # there is no table yet
        return 0


def check_whole(folder: Path) -> None:
    csv = folder / "killed" / CSV
    assert csv.read_bytes() == (folder / "whole" / CSV).read_bytes()
    assert known_points(folder / "killed") == POINTS
    assert sorted(path.suffix for path in csv.parent.iterdir()) == [".csv", ".html", ".json", ".parquet"]


def main(folder: Path) -> None:
    """Kill and resume runs KILLS times. A run that ends is checked, and the next one starts from nothing."""
    assert not run(folder / "whole")
    chance = random.Random(0)
    kills, before, resumed = 0, 0, 0
    while kills < KILLS:
        if run(folder / "killed", chance.randrange(1, LINES)):
            kills += 1
            after = known_points(folder / "killed")
            assert after >= before, "a kill lost points that were known before"
            resumed += before > 0
            before = after
        else:
            check_whole(folder)
            shutil.rmtree(folder / "killed")
            before = 0
    run(folder / "killed")
    check_whole(folder)
    print(f"{kills} kills, {resumed} of them in runs that went on")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
