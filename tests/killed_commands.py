"""The whole command, killed at random instants (SIGKILL) and started again: `python3 -m tests.killed_commands FOLDER`.

As in tests.killed_runs an instant is a count of lines of the package, so each is as likely on any machine.
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
"""More than an uninterrupted run comes to."""


def run(folder: Path, kill_at: int | None = None) -> bool:
    """The command in a process of its own. True if it was killed."""
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
    """How many points the files in the folder have, an unfinished journal included."""
    try:
        return len(read_table(folder / CSV).records)
    except UsageError:  # nothing there yet
        return 0


def check_whole(folder: Path) -> None:
    csv = folder / "killed" / CSV
    assert csv.read_bytes() == (folder / "whole" / CSV).read_bytes()
    assert known_points(folder / "killed") == POINTS
    assert sorted(path.suffix for path in csv.parent.iterdir()) == [".csv", ".html", ".json", ".parquet"]


def main(folder: Path) -> None:
    """Each run goes on where the last was killed; one that comes to its end is followed by a fresh start."""
    assert not run(folder / "whole")
    chance = random.Random(0)
    kills, before, resumed = 0, 0, 0
    while kills < KILLS:
        if run(folder / "killed", chance.randrange(1, LINES)):
            kills += 1
            after = known_points(folder / "killed")
            assert after >= before, "a kill lost points that were known"
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
