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


def test_replays_take_the_rows_of_the_labelled_pass(recorded: Trace) -> None:
    labelled, replays = trace.labelled_passes(recorded), trace.graph_replays(recorded)
    labels = trace.Labels()
    assert not labels
    for point in (0, 1):
        labels.learn(labelled[point][0])
        assert labels
        assert len(replays[point]) == 3
        for replay in replays[point]:
            matched = labels.label(replay)
            assert matched is not None
            assert matched.rows == labelled[point][0].rows and matched.kernels == tuple(replay)
            assert matched.duration_ns == sum(k.duration_ns for k in replay)


def test_only_replays_inside_a_pass_count(recorded: Trace) -> None:
    """The session has two more replays per point, which ran outside the ranges of passes and do not count."""
    launches = [launch for launch in recorded.launches if launch.name == "cudaGraphLaunch"]
    assert len(launches) == 2 * (3 + 2)
    assert sum(map(len, trace.graph_replays(recorded).values())) == 2 * 3


def test_a_replay_with_other_kernels_has_no_labels(recorded: Trace) -> None:
    labels = trace.Labels()
    labels.learn(trace.labelled_passes(recorded)[0][0])
    replay = trace.graph_replays(recorded)[0][0]
    assert labels.label(replay[:-1]) is None
    assert labels.label([*replay, replay[-1]]) is None
    renamed = Kernel(replay[3].correlation, replay[3].start_ns, replay[3].duration_ns, "another kernel")
    assert labels.label([*replay[:3], renamed, *replay[4:]]) is None
    assert labels.label([replay[1], replay[0], *replay[2:]]) is None


def test_labelled_passes_that_disagree_label_no_replay(recorded: Trace) -> None:
    one = trace.labelled_passes(recorded)[0][0]
    other = trace.LabelledPass((*one.rows[:-1], "another row"), one.kernels)
    labels = trace.Labels()
    labels.learn(one)
    labels.learn(one)
    assert labels.label(one.kernels) == one
    labels.learn(other)
    labels.learn(one)
    assert labels.label(one.kernels) is None


def test_no_overlap_on_one_stream(recorded: Trace) -> None:
    for replays in trace.graph_replays(recorded).values():
        assert all(trace.overlap(replay) == 0 for replay in replays)


def test_overlap_is_the_share_of_summed_time_run_side_by_side() -> None:
    kernels = [Kernel(1, 0, 100, "a"), Kernel(2, 50, 100, "b"), Kernel(3, 200, 100, "c")]
    assert trace.overlap(kernels) == pytest.approx(50 / 300)


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
