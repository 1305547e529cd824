"""Opening the GPU backend with random weights, as `run_profile.py --load-format dummy` does."""

import argparse
from collections import Counter

from llm_profile.models.hub import find_model
from llm_profile.passes.loading import requested_subject
from llm_profile.request import SDPA_BACKENDS, Request
from llm_profile.sweep import Sweep
from llm_profile.timing.backends.gpu_kernels import GpuKernelBackend
from llm_profile.timing.cuda_device import check_cuda


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the model and the device."""
    add = parser.add_argument
    add("--model", default="meta-llama/Llama-3.1-8B", help="as in run_profile.py (default %(default)s)")
    add("--num-layers", type=int, default=1, metavar="N", help="decoder blocks kept (default %(default)s)")
    add("--sdpa-backend", choices=SDPA_BACKENDS, default="auto", help="as in run_profile.py (default %(default)s)")
    add("--max-length", type=int, default=2048, metavar="N", help="longest prompt and cache (default %(default)s)")
    add("--device", default="cuda", help="cuda or cuda:N (default %(default)s)")


def open_profiler(
    model: str, longest: int, num_layers: int = 1, sdpa_backend: str = "auto", device: str = "cuda"
) -> GpuKernelBackend:
    """The GPU backend for prompts and caches of up to `longest` tokens.

    Raises UsageError for a model that is not known and for a device that is not there.
    """
    request = Request(
        model,
        Sweep("both", longest, longest),
        num_layers=num_layers,
        device=device,
        sdpa_backend=sdpa_backend,
        load_format="dummy",
    )
    check_cuda(device)
    return GpuKernelBackend(requested_subject(request, find_model(model, load_format="dummy")))


def longest_of(backend: GpuKernelBackend, longest: int) -> tuple[int, int]:
    """Longest prompt and longest cache that may run: `longest`, or what a learned position table allows."""
    learned = backend.learned_positions
    return (longest, longest) if learned is None else (min(longest, learned), min(longest, learned - 1))


def sweep_sizes(longest_prompt: int, longest_cache: int) -> Counter[str]:
    """Kind -> number of points of a full sweep."""
    return Counter(point.kind for point in Sweep("both", longest_prompt, longest_cache).points())
