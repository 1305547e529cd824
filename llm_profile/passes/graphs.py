"""Passes captured as CUDA graphs: the same kernels as the model's code runs, at next to no cost to the host."""

import gc
from collections.abc import Callable
from contextlib import nullcontext, suppress

import torch

from llm_profile.errors import one_line
from llm_profile.models.transformers_names import masks_as_in_eager
from llm_profile.passes.host_copies import HostCopies
from llm_profile.passes.placement import weight_copies
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint


class CaptureError(RuntimeError):
    """A pass that cannot be captured in a CUDA graph, with the reason that the device gave."""


class _Pool:
    """Device memory that graphs share.

    It keeps a graph of its own, since torch cannot capture into a pool whose last graph was freed.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        self._keeper = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            self._keeper.capture_begin(pool=self.handle, capture_error_mode="thread_local")
            torch.empty(1, device=stream.device).zero_()
            self._keeper.capture_end()


class GraphPasses:
    """Runs and captures passes of a runner on one stream.

    pools: number of memory pools that graphs can lie in. weights: copies of the model's weights, one for each pool but
    the first; empty where memory is short.
    """

    def __init__(self, subject: Subject, pools: int = 1) -> None:
        self.runner = subject.runner
        self.stream = torch.cuda.Stream(subject.device)
        self.copies = HostCopies()
        self._pools = [_Pool(self.stream) for _ in range(pools)]
        free_bytes, _ = torch.cuda.mem_get_info(subject.device)
        self.weights = weight_copies(subject.model, pools - 1, free_bytes)

    def eager(self, point: SweepPoint, last_token_only: bool = False) -> None:
        """One pass as the model's code runs it."""
        with torch.cuda.stream(self.stream), self.copies.one_pass():
            self.runner.run(point, last_token_only)

    def capture(self, point: SweepPoint, last_token_only: bool = False, pool: int = 0) -> torch.cuda.CUDAGraph:
        """The pass as a graph. Run it eagerly once before. Raises CaptureError where that is not possible."""
        graph = torch.cuda.CUDAGraph()
        weights = self.weights[pool - 1].in_use() if pool and self.weights else nullcontext()
        with torch.cuda.stream(self.stream), masks_as_in_eager(), weights:
            # thread-local: the telemetry thread must not be able to spoil a capture
            graph.capture_begin(pool=self._pools[pool].handle, capture_error_mode="thread_local")
            try:
                with self.copies.one_pass():
                    self.runner.run(point, last_token_only)
            except torch.OutOfMemoryError:
                self._abandon(graph, pool)
                raise
            except Exception as error:
                # calls that are forbidden during a capture raise errors of many types
                self._abandon(graph, pool)
                raise CaptureError(one_line(error, 200)) from error
            graph.capture_end()
        return graph

    def _abandon(self, graph: torch.cuda.CUDAGraph, pool: int) -> None:
        with suppress(RuntimeError):  # the capture is already invalid, which is why it ends here
            graph.capture_end()
        torch.cuda.synchronize()
        # For torch the old pool is still being captured into. And its random numbers work again only after a capture
        # that succeeds: a new pool makes one.
        self._pools[pool] = _Pool(self.stream)


def fits(run: Callable[[], object]) -> bool:
    """Run something on the device. Returns False if memory ran out; what the run had allocated is free again then."""
    try:
        run()
        return True
    except torch.OutOfMemoryError:
        pass
    gc.collect()  # not within the handler, where the error still holds the tensors of the pass
    torch.cuda.empty_cache()
    return False
