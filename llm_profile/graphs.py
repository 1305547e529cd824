"""Passes captured as CUDA graphs: the same kernels as the model's code runs, at next to no cost to the host."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from llm_profile.layers import patched
from llm_profile.passes import HostCopies
from llm_profile.subject import Subject
from llm_profile.sweep import SweepPoint


class CaptureError(RuntimeError):
    """A pass that cannot be captured in a CUDA graph, with the reason that the device gave."""


@contextmanager
def masks_as_in_eager() -> Iterator[None]:
    """Keep transformers from building other attention masks while a stream is captured than it does otherwise."""
    from transformers import masking_utils

    with patched(masking_utils, "is_tracing", lambda *_args, **_kwargs: False):
        yield


class GraphPasses:
    """Runs and captures passes of a runner on one stream; the CUDA graphs share one memory pool."""

    def __init__(self, subject: Subject) -> None:
        self.runner = subject.runner
        self.device = subject.device
        self.stream = torch.cuda.Stream(subject.device)
        self.copies = HostCopies()
        self._new_pool()

    def _new_pool(self) -> None:
        """Start a memory pool with a graph of its own: a pool whose last graph is gone cannot be captured into."""
        self._pool = torch.cuda.graph_pool_handle()
        self._keeper = graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            torch.empty(1, device=self.device).zero_()
            graph.capture_end()

    def eager(self, point: SweepPoint, last_token_only: bool = False) -> None:
        """One pass as the model's code runs it."""
        with torch.cuda.stream(self.stream), self.copies.one_pass():
            self.runner.run(point, last_token_only)

    def capture(self, point: SweepPoint, last_token_only: bool = False) -> torch.cuda.CUDAGraph:
        """The pass as a graph. Run it eagerly once before. Raises CaptureError where that is not possible."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream), masks_as_in_eager():
            # thread-local: the telemetry thread must not be able to spoil a capture
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                with self.copies.one_pass():
                    self.runner.run(point, last_token_only)
            except torch.OutOfMemoryError:
                self._abandon(graph)
                raise
            except Exception as error:
                # a forbidden call shows as whatever error the operator makes of it
                self._abandon(graph)
                raise CaptureError(" ".join(str(error).split())[:200]) from error
            graph.capture_end()
        return graph

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        with suppress(RuntimeError):  # the capture is already invalid, which is why it ends here
            graph.capture_end()
        torch.cuda.synchronize()
        # torch takes the old pool to be captured into still, and its random numbers work again once a capture ends well
        self._new_pool()


def fits(run: Callable[[], object]) -> bool:
    """Run something on the device; False if memory ran out, all that it had taken being free again."""
    try:
        run()
        return True
    except torch.OutOfMemoryError:
        pass
    gc.collect()  # not within the handler, where the error still holds the tensors of the pass
    torch.cuda.empty_cache()
    return False
