"""Runs that are killed (SIGKILL) and started again: `python3 -m tests.killed_runs SCENARIO FOLDER`.

The instant is a count of lines of the package, or of file operations, and not of seconds: whatever the machine's speed,
every instant of a run is as likely, and a failure comes again.
"""

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow.parquet  # noqa: F401  (once here, not in every child)

from llm_profile.errors import UsageError
from llm_profile.store.files import read_table
from tests.table_samples import measure, paths_in, sample, sweep_points, write, writer

PACKAGE = f"{os.sep}llm_profile{os.sep}"
FILE_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.truncate", "fcntl.flock")
POINTS = sweep_points(12, 12)


def at_line(count: int, folder: Path) -> None:
    """Kill this process at the `count`th line of the package that it comes to."""

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if PACKAGE not in frame.f_code.co_filename:
            return None
        if event == "line":
            count -= 1
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def at_file_operation(count: int, folder: Path) -> None:
    """Kill this process before its `count`th file operation in `folder`."""

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in FILE_OPERATIONS and (event == "fcntl.flock" or str(arguments[0]).startswith(str(folder))):
            count -= 1
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


def run(folder: Path, kill: Callable[[int, Path], None] | None = None, count: int = 0) -> bool:
    """Measure POINTS in a process of its own. True if it was killed; then nothing it had added may be lost."""
    added, noted = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if kill:
                kill(count, folder)
            with writer(folder, POINTS) as table:
                left = [point for point in POINTS if point not in table.done()]
                os.write(noted, bytes(POINTS.index(point) for point in table.done()))
                for point in left:
                    table.add(sample(point))
                    os.write(noted, bytes([POINTS.index(point)]))
                table.finish()
            os._exit(0)
        except BaseException as error:
            print(f"{error!r} (kill {count})", file=sys.stderr, flush=True)
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    os.close(noted)
    with os.fdopen(added, "rb") as pipe:
        promised = {POINTS[index] for index in pipe.read()}
    assert status in (0, signal.SIGKILL), f"a run failed with status {status}"
    try:
        known = set(read_table(paths_in(folder).csv).points())
    except UsageError:  # nothing there yet, or an example that is half moved
        known = set()
    assert known >= promised, f"lost {promised - known} (kill {count})"
    return status == signal.SIGKILL


def check_whole(folder: Path) -> None:
    paths = paths_in(folder / "killed")
    assert paths.csv.read_bytes() == paths_in(folder / "whole").csv.read_bytes()
    assert not paths.journal.exists()
    assert not paths.lock.exists()
    assert read_table(paths.csv).points() == POINTS


def anywhere(folder: Path) -> int:
    """Each run goes on where the last was killed."""
    random.seed(0)
    kills = 0
    while kills < 20:
        if run(folder / "killed", at_line, random.randrange(1, 2500)):
            kills += 1
        else:  # it came to its end: once more from the start
            check_whole(folder)
            shutil.rmtree(folder / "killed")
    run(folder / "killed")
    check_whole(folder)
    return kills


def before_each_file_operation(folder: Path, prepare: Callable[[Path], None], check: Callable[[Path], None]) -> int:
    kills = 0
    while True:
        shutil.rmtree(folder / "killed", ignore_errors=True)
        prepare(folder / "killed")
        if not run(folder / "killed", at_file_operation, kills + 1):
            return kills
        kills += 1
        assert not run(folder / "killed")
        check_whole(folder)
        check(folder / "killed")


def finishing(folder: Path) -> int:
    """A table has the first points and a journal all others but one."""

    def prepare(killed: Path) -> None:
        measure(killed, POINTS[:5])
        with writer(killed, POINTS) as table:
            for point in POINTS[5:-1]:
                table.add(sample(point))

    return before_each_file_operation(folder, prepare, check=lambda killed: None)


def example(folder: Path) -> int:
    """An example gives way to the first measurement, and is kept."""
    contents: set[bytes] = set()

    def prepare(killed: Path) -> None:
        paths = measure(killed, POINTS[:3], conditions={})
        made_up = read_table(paths.csv)
        made_up.meta["origin"] = "example"
        write(made_up, paths)
        contents.update(path.read_bytes() for path in (paths.csv, paths.rows, paths.meta))

    def check(killed: Path) -> None:
        kept = {path.read_bytes() for path in paths_in(killed).csv.parent.glob("*.example*")}
        assert kept == contents

    return before_each_file_operation(folder, prepare, check)


SCENARIOS = {"anywhere": anywhere, "finishing": finishing, "example": example}

if __name__ == "__main__":
    scenario, folder = sys.argv[1:]
    assert not run(Path(folder) / "whole")
    print(SCENARIOS[scenario](Path(folder)))
