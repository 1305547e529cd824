"""Arithmetic on a recorded trace: a tiny Llama (hidden size 64, one of two blocks) on an H200 with torch 2.11, at two
points with a labelled pass and three replays each."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.timing import trace
from llm_profile.timing.trace import Kernel, Launch, Range, Timeline, Trace

RECORDED = Path(__file__).parent / "data" / "trace_tiny_llama_h200.json.gz"


@pytest.fixture(scope="module")
def recorded() -> Trace:
    with gzip.open(RECORDED, "rt") as file:
        fields = json.load(file)
    return Trace(
        [Range(**r) for r in fields["passes"]],
        [Range(**r) for r in fields["rows"]],
        [Launch(**r) for r in fields["launches"]],
        [Kernel(**r) for r in fields["kernels"]],
    )


def test_every_kernel_of_the_labelled_pass_has_its_row(recorded: Trace) -> None:
    labelled = trace.labelled_passes(recorded)
    assert sorted(labelled) == [0, 1]
    for passes in labelled.values():
        assert len(passes) == 1
        rows = passes[0].rows
        assert set(rows) >= {"embedding", "q_proj", "k_proj", "v_proj", "rope", "attn", "o_proj", "lm_head"}
        assert rows[0] == "embedding" and rows[-1] == "lm_head"
        assert sum(row == "attn_other" for row in rows) == 2  # writes of keys and of values to the cache
        assert sum(row == "block_other" for row in rows) == 2  # two residual additions
        assert sum(row == "mlp_other" for row in rows) == 1  # the product of gate and up


def test_replays_run_what_the_labelled_pass_ran(recorded: Trace) -> None:
    """The session has five replays per point."""
    labelled, replays = trace.labelled_passes(recorded), trace.graph_replays(recorded)
    assert len(replays) == 2 * 5
    for replay in replays[:5]:
        assert tuple(replay.names) == labelled[0][0].names
        assert replay.duration_ns.sum() == pytest.approx(labelled[0][0].total_ns, rel=0.3)
    for replay in replays[5:]:
        assert tuple(replay.names) == labelled[1][0].names


def test_kernels_of_a_replay_do_not_overlap(recorded: Trace) -> None:
    for replay in trace.graph_replays(recorded):
        assert (replay.start_ns[1:] >= replay.start_ns[:-1] + replay.duration_ns[:-1]).all()


def test_a_launch_without_kernels_is_an_empty_replay(recorded: Trace) -> None:
    first = next(launch for launch, _ in recorded.started if launch.name == "cudaGraphLaunch")
    kernels = [kernel for kernel in recorded.kernels if kernel.correlation != first.correlation]
    lost = Trace(recorded.passes, recorded.rows, recorded.launches, kernels)
    assert [bool(replay.names) for replay in trace.graph_replays(lost)] == [False, *[True] * 9]


@given(st.recursive(st.just([]), lambda inner: st.lists(inner, max_size=3), max_leaves=12))
def test_innermost_range_owns_the_time(tree: list[object]) -> None:
    ranges: list[Range] = []
    expected: dict[int, str | None] = {}
    clock = iter(range(10_000))

    def lay_out(node: list[object], name: str, parent: str | None) -> None:
        start = next(clock)
        expected[start] = name
        for i, child in enumerate(node):
            lay_out(child, f"{name}.{i}", name)  # type: ignore[arg-type]
            expected[next(clock)] = name
        end = next(clock)
        expected[end] = parent
        ranges.append(Range(name, start, end))

    lay_out(tree, "root", None)
    timeline = Timeline(reversed(ranges))
    assert {time: timeline.owner(time) for time in expected} == expected
    assert timeline.owner(-1) is None
