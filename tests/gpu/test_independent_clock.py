"""The rows of the profiler add up to the time of the same passes by another clock, CUDA events."""

import pytest

from bench.independent_clock import compare_clocks, spread_points, table_lines
from bench.loading import open_profiler
from tests.gpu.models import LLAMA_8B

pytestmark = pytest.mark.gpu

LENGTHS = 8
LONGEST = 2048


def test_passes_timed_with_cuda_events_are_the_sum_of_their_rows_and_little_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """CUDA events count the gaps between kernels as well, and nothing else."""
    backend = open_profiler(LLAMA_8B, LONGEST)
    try:
        results = compare_clocks(backend, spread_points(LENGTHS, LONGEST, LONGEST))
    finally:
        backend.close()
    text = "\n".join(table_lines(results))
    with capsys.disabled():
        print(f"\n{text}")
    assert len(results) == 2 * LENGTHS
    assert all(0.98 <= result.ratio <= 1.2 for result in results), text
