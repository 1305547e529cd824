"""The passes of a point: which replays count, and what becomes of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.measurement import StoppingRule
from llm_profile.points import SweepPoint
from llm_profile.timing.point_passes import MOST_LOST, PointPasses
from llm_profile.timing.replays import LabelledPass, NodeNames, NodeRows, Replay

NODES = NodeRows((None, "embedding", "q_proj", "q_proj", "lm_head"), (True, False, False, True, False))
NAMES = ("Memcpy", "gather", "gemm", "Memset", "gemv")


def replay(names: tuple[str, ...] = NAMES, duration_ns: int = 10, start_ns: int = 1000) -> Replay:
    """Kernels of duration_ns, duration_ns + 1, and so on, 100 ns apart."""
    number = np.arange(len(names))
    return Replay(start_ns + 100 * number, duration_ns + number, NodeNames(names))


def a_point(wanted: int = 2) -> PointPasses:
    return PointPasses(SweepPoint(5, 0), wanted)


def test_what_was_launched_outside_the_model_is_no_part_of_a_pass() -> None:
    point = a_point()
    point.add(replay(), NODES)
    assert point.pass_ns() == (11 + 12 + 13 + 14,)
    assert point.passes[0].names == NAMES[1:] and point.passes[0].start_ns.tolist() == [1100, 1200, 1300, 1400]


@pytest.mark.parametrize(
    "lost", [None, replay(NAMES[1:]), replay((*NAMES, "gemm")), replay(("gather", "Memcpy", *NAMES[2:])), replay(())]
)
def test_a_replay_with_other_nodes_is_lost(lost: Replay | None) -> None:
    point = a_point()
    point.add(lost, NODES)
    assert (point.passes, point.lost) == ([], 1)


def test_a_copy_that_is_recorded_as_a_memset_is_a_copy() -> None:
    point = a_point()
    point.add(replay(("Memset", "gather", "gemm", "Memcpy DtoD", "gemv")), NODES)
    assert len(point.passes) == 1 and not point.lost


def test_a_point_that_loses_nearly_all_is_hopeless() -> None:
    point = a_point()
    for _ in range(2 * MOST_LOST):
        point.add(None, NODES)
        assert not point.hopeless
    point.add(None, NODES)
    assert point.hopeless


def test_rows_of_a_sample_add_up_and_keep_their_kernels() -> None:
    point = a_point()
    point.add(replay(), NODES)
    point.add(replay(duration_ns=20), NODES)
    sample = point.sample(lambda row: 2 if row == "q_proj" else 1, lambda start, end: float(end - start))
    assert {row: of.pass_ns for row, of in sample.rows.items()} == {
        "embedding": (11, 21),
        "q_proj": (12 + 13, 22 + 23),
        "lm_head": (14, 24),
    }
    assert sample.pass_ns == (50, 90)
    assert (sample.rows["q_proj"].blocks, sample.rows["q_proj"].launches) == (2, 2)
    assert sample.rows["q_proj"].kernels == ("gemm", "Memset")
    assert sample.sm_clock_mhz == 319, "the median of the passes' clocks, each from its first kernel to its last"
    assert (sample.overlap, sample.notes) == (0.0, ())


def test_graphs_of_a_point_may_run_different_kernels() -> None:
    """A library may choose other kernels for tensors at other addresses."""
    split = NodeRows(("embedding", "q_proj", "lm_head", "lm_head"), (False,) * 4)
    point = a_point()
    point.add(replay(), NODES)
    point.add(replay(("gather", "gemm", "split", "reduce")), split)
    sample = point.sample(lambda _row: 1, lambda _start, _end: None)
    assert {row: of.pass_ns for row, of in sample.rows.items()} == {
        "embedding": (11, 10),
        "q_proj": (25, 11),
        "lm_head": (14, 12 + 13),
    }
    assert sample.rows["lm_head"].kernels == ("gemv",), "those of the first pass"


def a_pass(*spans: tuple[int, int]) -> LabelledPass:
    start, end = np.asarray(spans).T
    return LabelledPass(("attn",) * len(spans), ("gemm",) * len(spans), start, end - start)


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([(0, 100), (100, 200)], 0.0),
        ([(0, 100), (50, 150), (200, 300)], 50 / 300),
        ([(200, 300), (0, 100), (50, 150)], 50 / 300),
        ([(0, 100), (10, 20), (30, 40)], 20 / 120),
        ([(0, 0)], 0.0),
    ],
)
def test_overlap_is_the_share_of_summed_time_run_side_by_side(spans: list[tuple[int, int]], share: float) -> None:
    assert a_pass(*spans).overlap == pytest.approx(share)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 50)), min_size=1, max_size=12))
def test_overlap_is_what_counting_each_nanosecond_gives(spans: list[tuple[int, int]]) -> None:
    covered = {at for start, length in spans for at in range(start, start + length)}
    total = sum(length for _, length in spans)
    one = a_pass(*((start, start + length) for start, length in spans))
    assert one.overlap == pytest.approx(1 - len(covered) / total)


@given(st.data(), st.integers(1, 20))
def test_a_point_ends_whatever_records_are_lost(data: st.DataObject, repeat: int) -> None:
    rule = StoppingRule(repeat, precision=0)
    point = a_point(rule.first_passes)
    for _visit in range(10 * repeat + 10):
        for _ in range(point.wanted):
            point.add(replay(data.draw(st.sampled_from([NAMES, NAMES, NAMES[1:], ()]))), NODES)
        point.wanted = rule.passes_wanted(point.pass_ns())
        if point.hopeless or not point.wanted:
            break
    else:
        pytest.fail("the point does not end")
    assert point.hopeless or len(point.passes) == repeat
