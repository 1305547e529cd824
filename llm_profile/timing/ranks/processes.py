"""A rank's process is the parent of the one that measures, so it can tell why that one ended, and end it if it hangs.

torchrun ends all ranks if a process that it started fails. It did not start those that measure: if one of them dies,
the others go on. Imports no torch.
"""

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from llm_profile.errors import UsageError, one_line, type_and_text
from llm_profile.json_text import parse_json
from llm_profile.store.storage import to_json
from llm_profile.timing.ranks.messages import is_over, left
from llm_profile.timing.ranks.torchrun import Rank

if TYPE_CHECKING:
    from torch.distributed import Store

LOOK_S = 0.2
"""Seconds between two looks of a parent at its child."""

GRACE_S = 10.0
"""Seconds that a process has to end by itself when the run has ended."""

PR_SET_PDEATHSIG = 1
"""linux/prctl.h: the signal that a process gets when its parent dies."""


def fork(run: Callable[[], int]) -> int:
    """The id of a new process that runs `run`, exits with the code that it returns, and dies if this one does."""
    import torch  # noqa: F401  (once here, and not in every process)

    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # it may have died just before
            code = run()
    finally:
        _exit(code)


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def supervise(rank: Rank, serve: Callable[["Store"], None]) -> int:
    """Run `serve` in a process of its own until the run ends, and tell the store if it ends before. Returns 0.

    serve: takes a connection to the store.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    child = fork(lambda: _serve(rank, serve))
    try:
        _watch(rank, child)
    except RuntimeError:  # of the store: torchrun has ended it, so the run has ended
        _end(child)
    return 0


def _serve(rank: Rank, serve: Callable[["Store"], None]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 ends the run
    store = rank.connect()
    try:
        serve(store)
    except UsageError as error:
        _tell_left(store, rank, f"is refused: {error}", usage=True)
    except Exception as error:
        from torch.distributed import DistError

        if isinstance(error, DistError):  # the store is gone, and the run with it
            return 0
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"failed with {type_and_text(error)} ({os.path.basename(where.filename)}, line {where.lineno})"
        _tell_left(store, rank, text, usage=False)
    return 0


def _watch(rank: Rank, child: int) -> None:
    store = rank.connect()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if is_over(store, rank.number):
            _end(child)
            return
        time.sleep(LOOK_S)
    if status:
        _tell_left(store, rank, f"died: {_how_ended(os.waitstatus_to_exitcode(status))}", usage=False)


def _how_ended(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"


def _end(child: int) -> None:
    """Wait for a process to end, and kill it if that takes long."""
    if not ends_within(child, GRACE_S, LOOK_S):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def ends_within(child: int, most_s: float, look_s: float) -> bool:
    """Wait for a child process to end, with a look at it every `look_s`; False if it takes longer than `most_s`."""
    until = time.monotonic() + most_s
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(look_s)
    return False


def _tell_left(store: "Store", rank: Rank, why: str, *, usage: bool) -> None:
    store.set(left(rank.number), to_json({"why": one_line(why, 500), "usage": usage}))


def why_left(store: "Store", rank: int) -> tuple[str, bool] | None:
    """Why a rank has ended, and whether the user can mend that; None if it has not."""
    if not store.check([left(rank)]):
        return None
    told = parse_json(store.get(left(rank)))
    return told["why"], told["usage"]
