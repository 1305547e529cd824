"""Passes captured as CUDA graphs: a replay runs the kernels of the model's code, with almost no time on the host."""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

import torch

from llm_profile.errors import one_line
from llm_profile.models.transformers_names import masks_as_in_eager
from llm_profile.passes.host_copies import HostCopies
from llm_profile.passes.placement import weight_copies
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint

AROUND_NOTHING = nullcontext()


class CaptureError(RuntimeError):
    """A pass cannot be captured in a CUDA graph. The message is that of the error that ended the capture."""


class _Pool:
    """A pool of device memory that several graphs use.

    It holds a small graph as long as it lives, since torch cannot capture into a pool whose last graph was freed.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        self._keeper = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            self._keeper.capture_begin(pool=self.handle, capture_error_mode="thread_local")
            torch.empty(1, device=stream.device).zero_()
            self._keeper.capture_end()


class GraphPasses:
    """Runs passes of a model on one stream, and captures them in CUDA graphs.

    pools: number of memory pools; a graph has its activations in one of them. weights: copies of the model's weights,
    one for each pool but the first, whose graphs read the original weights. weights is empty if memory does not suffice
    for the copies; then all graphs read the original weights.
    """

    def __init__(self, subject: Subject, pools: int = 1) -> None:
        self.runner = subject.runner
        self.stream = torch.cuda.Stream(subject.device)
        self.copies = HostCopies()
        self._pools = [_Pool(self.stream) for _ in range(pools)]
        free_bytes, _ = torch.cuda.mem_get_info(subject.device)
        self.weights = weight_copies(subject.model, pools - 1, free_bytes)

    def eager(self, point: SweepPoint, last_token_only: bool = False) -> None:
        """Run one pass eagerly. last_token_only: `lm_head` sees only the last token, if the model's code allows it."""
        with torch.cuda.stream(self.stream), self.copies.one_pass():
            self.runner.run(point, last_token_only)

    def capture(
        self,
        point: SweepPoint,
        last_token_only: bool = False,
        pool: int = 0,
        around: AbstractContextManager[object] = AROUND_NOTHING,
    ) -> torch.cuda.CUDAGraph:
        """A graph of one pass, with its activations in the pool of this number.

        around: a context around the pass inside the capture. Raises CaptureError if the pass cannot be captured, and
        torch.OutOfMemoryError.
        """
        graph = torch.cuda.CUDAGraph()
        weights = self.weights[pool - 1].in_use() if pool and self.weights else nullcontext()
        with torch.cuda.stream(self.stream), masks_as_in_eager(), weights:
            # thread_local: otherwise a call of another thread, such as the telemetry's, would invalidate the capture
            graph.capture_begin(pool=self._pools[pool].handle, capture_error_mode="thread_local")
            try:
                with self.copies.one_pass(), around:
                    self.runner.run(point, last_token_only)
            except torch.OutOfMemoryError:
                self._abandon(graph, pool)
                raise
            except Exception as error:
                # operations that are not allowed during a capture raise errors of many types
                self._abandon(graph, pool)
                raise CaptureError(one_line(error, 200)) from error
            graph.capture_end()
        return graph

    def _abandon(self, graph: torch.cuda.CUDAGraph, pool: int) -> None:
        """End a capture that failed, and replace its pool."""
        with suppress(RuntimeError):  # capture_end raises because the capture is invalid
            graph.capture_end()
        torch.cuda.synchronize()
        # torch considers the old pool as still being captured into. Also, torch's random numbers work again only after
        # a successful capture, and making a pool captures a small graph.
        self._pools[pool] = _Pool(self.stream)


def fits(run: Callable[[], object]) -> bool:
    """Call `run`. Returns False if the device's memory did not suffice; what `run` had allocated is freed then."""
    try:
        run()
        return True
    except torch.OutOfMemoryError:
        pass
    gc.collect()  # not inside the except clause: there the traceback still refers to the tensors of the pass
    torch.cuda.empty_cache()
    return False
