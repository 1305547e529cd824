"""`--timer`: who records the kernels of replays. Adding one is an entry in RECORDERS."""

from collections.abc import Callable

import torch

from llm_profile.errors import UsageError
from llm_profile.passes.graphs import GraphPasses
from llm_profile.timing.cupti import CuptiRecorder, CuptiUnavailableError
from llm_profile.timing.kineto import KinetoRecorder
from llm_profile.timing.replays import ReplayRecorder

RECORDERS: dict[str, Callable[[], ReplayRecorder]] = {"cupti": CuptiRecorder, "torch-profiler": KinetoRecorder}
"""Value of --timer -> opens its recorder."""

FALLBACK = "torch-profiler"
"""What `auto` takes where CUPTI cannot be read."""


def open_recorder(timer: str) -> ReplayRecorder:
    """The recorder of a timer that `checked_timer` has chosen."""
    return RECORDERS[timer]()


def checked_timer(timer: str, passes: GraphPasses, notices: list[str]) -> str:
    """The timer for `--timer`, tried out on a small graph. notices: a list to which a line is added if `auto` cannot
    have CUPTI. Raises UsageError if a timer that was asked for does not work.
    """
    if timer == FALLBACK:
        return timer
    try:
        if torch.version.cuda is None:
            raise CuptiUnavailableError("it is part of CUDA only")
        check_records(passes)
    except CuptiUnavailableError as error:
        if timer == "cupti":
            raise UsageError(f"--timer cupti: {error}; use --timer {FALLBACK}") from error
        notices.append(
            f"kernels are recorded by torch's profiler, which takes longer, since CUPTI cannot be read: {error}"
        )
        return FALLBACK
    return "cupti"


def check_records(passes: GraphPasses) -> None:
    """Replay a graph of known nodes and read its records. Raises CuptiUnavailableError if they are not those."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(passes.stream):
        numbers = torch.ones(1 << 20, device=passes.stream.device)
        copy = torch.empty_like(numbers)
        graph.capture_begin(capture_error_mode="thread_local")
        numbers.add_(1)
        copy.copy_(numbers)
        numbers.mul_(2)
        graph.capture_end()
    recorder = CuptiRecorder()
    try:
        with recorder.recording(), torch.cuda.stream(passes.stream):
            graph.replay()
            graph.replay()
        replays = recorder.read([recorder.graph_id(graph)] * 2)
    finally:
        recorder.close()
        graph.reset()
    for replay in replays:
        if replay is None or len(replay.names) != 3 or not (replay.duration_ns > 0).all():
            raise CuptiUnavailableError("not all kernels are recorded; another profiler may receive the GPU's events")
