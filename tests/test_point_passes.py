"""The passes of a point: matched with labelled passes, waiting for one, not counted, or timed eagerly instead."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.errors import UsageError
from llm_profile.measurement import StoppingRule
from llm_profile.points import SweepPoint
from llm_profile.timing.point_passes import EAGER, GRAPH_REPLAY, PointPasses
from llm_profile.timing.trace import Kernel, LabelledPass, Labels

ROWS = ("embedding", "q_proj", "q_proj", "lm_head")
NAMES = ("gather", "gemm", "reduce", "gemm")


def kernels(names: tuple[str, ...] = NAMES, duration_ns: int = 10) -> list[Kernel]:
    return [Kernel(0, 100 * at, duration_ns + at, name) for at, name in enumerate(names)]


def labelled(names: tuple[str, ...] = NAMES) -> LabelledPass:
    return LabelledPass(ROWS[: len(names)], tuple(kernels(names)))


def a_point(wanted: int = 2) -> PointPasses:
    return PointPasses(SweepPoint(5, 0), wanted)


def test_replays_wait_until_their_kernels_are_labelled() -> None:
    point, labels = a_point(), Labels()
    point.add([], [kernels(), kernels()], labels)
    assert len(point.replays) == 2 and not point.passes and point.timed_by == GRAPH_REPLAY
    point.add([labelled()], [], labels)
    assert not point.replays and [one.rows for one in point.passes] == [ROWS, ROWS]
    assert point.pass_ns() == (46, 46) and point.timed_by == GRAPH_REPLAY


def test_labels_of_another_point_serve_too() -> None:
    labels = Labels()
    labels.learn(labelled())
    point = a_point()
    point.add([], [kernels()], labels)
    assert len(point.passes) == 1 and not point.replays


def test_one_replay_that_does_not_match_is_no_pass() -> None:
    point, labels = a_point(), Labels()
    point.add([labelled()], [kernels(), kernels(NAMES[1:])], labels)
    assert len(point.passes) == 1 and not point.replays
    assert (point.unmatched, point.timed_by) == (1, GRAPH_REPLAY)


WITH_A_COPY, MISNAMED = ("gather", "Memcpy DtoD", "gemm"), ("gather", "Memset (Device)", "gemm")


@pytest.mark.parametrize("order", [(WITH_A_COPY, MISNAMED), (MISNAMED, WITH_A_COPY)])
def test_a_copy_that_is_called_a_memset_in_one_replay_is_a_copy(order: tuple[tuple[str, ...], ...]) -> None:
    labels = Labels()
    labels.learn(labelled(WITH_A_COPY))
    point = a_point()
    point.add([], [kernels(names) for names in order], labels)
    assert len(point.passes) == 2 and point.unmatched == 0
    sample = point.sample(lambda _row: 1, lambda _start, _end: None)
    assert sample.rows["q_proj"].kernels == WITH_A_COPY[1:]


def test_a_pass_with_a_memset_is_none_with_a_copy_until_it_is_labelled_itself() -> None:
    labels = Labels()
    labels.learn(labelled(WITH_A_COPY))
    point = a_point()
    point.add([], [kernels(MISNAMED), kernels(MISNAMED)], labels)
    assert len(point.replays) == 2 and not point.passes
    rows = ("embedding", "lm_head", "lm_head")
    point.add([LabelledPass(rows, tuple(kernels(WITH_A_COPY)))], [], labels)
    assert [one.rows for one in point.passes] == [rows, rows], "its own labels, which are others"


def test_all_passes_of_a_point_run_the_same_kernels() -> None:
    """A replay that lost an event may have the kernels of another point's labelled pass, and still does not count."""
    labels = Labels()
    for names in (NAMES, NAMES[1:]):
        labels.learn(labelled(names))
    point = a_point()
    point.add([], [kernels(), kernels(NAMES[1:]), kernels()], labels)
    assert len(point.passes) == 2 and point.unmatched == 1
    point.add([], [kernels(NAMES[1:])], labels)
    assert len(point.passes) == 2 and point.unmatched == 2
    assert {row: of.launches for row, of in point.sample(lambda _row: 1, lambda *_: None).rows.items()} == {
        "embedding": 1,
        "q_proj": 2,
        "lm_head": 1,
    }


def test_a_pass_of_other_kernels_is_timed_eagerly() -> None:
    point, labels = a_point(), Labels()
    point.add([labelled()], [kernels((*NAMES, "a copy"))] * 2, labels)
    assert point.timed_by == EAGER and not point.replays
    assert point.pass_ns() == (46,), "the labelled one counts"
    point.add([labelled(), labelled()], [], labels)
    assert point.pass_ns() == (46, 46, 46)


@pytest.mark.parametrize("empty", [[], [LabelledPass((), ())], [LabelledPass((), ())] * 3])
def test_sessions_without_kernels_are_of_another_profiler(empty: list[LabelledPass]) -> None:
    point, labels = a_point(), Labels()
    point.add(empty, [], labels)
    assert point.timed_by == EAGER and not point.passes, "nothing was recorded: once more, eagerly"
    with pytest.raises(UsageError, match=r"no kernels at input .*nsys, ncu, a DCGM monitor.*torch profiler") as refusal:
        point.add(empty, [], labels)
    assert "\n" not in str(refusal.value)


def test_events_that_stop_in_the_middle_of_a_sweep_are_of_another_profiler() -> None:
    """The first point has events, the next one has none."""
    labels, first, second = Labels(), a_point(), a_point()
    first.add([labelled()], [kernels()], labels)
    assert first.passes
    second.add([], [], labels)
    with pytest.raises(UsageError, match="another profiler receives the GPU's events"):
        second.add([], [], labels)


def test_rows_of_a_sample_add_up_and_keep_their_kernels() -> None:
    point, labels = a_point(), Labels()
    point.add([labelled()], [kernels(), kernels(duration_ns=20)], labels)
    sample = point.sample(lambda row: 2 if row == "q_proj" else 1, lambda start, end: float(end - start))
    assert {row: of.pass_ns for row, of in sample.rows.items()} == {
        "embedding": (10, 20),
        "q_proj": (23, 43),
        "lm_head": (13, 23),
    }
    assert sample.pass_ns == (46, 86)
    assert (sample.rows["q_proj"].blocks, sample.rows["q_proj"].launches) == (2, 2)
    assert sample.rows["q_proj"].kernels == ("gemm", "reduce")
    assert sample.sm_clock_mhz == 318, "the median of the passes' clocks, each from its first kernel to its last"
    assert (sample.overlap, sample.notes) == (0.0, ())


@given(st.data(), st.integers(1, 20))
def test_a_point_ends_whatever_events_are_lost(data: st.DataObject, repeat: int) -> None:
    """Each replay may have all kernels, lack one, or have none; a labelled pass may lack one as well."""
    rule = StoppingRule(repeat, precision=0)
    labels, point = Labels(), a_point(rule.first_passes)
    whole = st.sampled_from([NAMES, NAMES, NAMES[1:], ()])
    for _visit in range(10 * repeat + 10):
        eager = point.wanted if point.timed_by == EAGER else int(bool(point.replays) or not labels)
        passes = [labelled(data.draw(st.sampled_from([NAMES, NAMES[:3]]))) for _ in range(eager)]
        replays = [] if point.timed_by == EAGER else [kernels(data.draw(whole)) for _ in range(point.wanted)]
        point.add(passes, [replay for replay in replays if replay], labels)
        point.wanted = 0 if point.replays else rule.passes_wanted(point.pass_ns())
        assert len(point.passes) <= repeat and (point.timed_by == EAGER or point.unmatched <= 3 * len(point.passes))
        if not point.replays and not point.wanted:
            break
    else:
        pytest.fail("the point does not end")
    assert len(point.passes) == repeat
    assert sum(point.pass_ns()) == sum(sum(k.duration_ns for k in one.kernels) for one in point.passes)
    for one in point.passes:
        assert len(one.rows) == len(one.kernels)
