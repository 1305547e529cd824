"""What a serving step is, and how files name it."""

import json
import pickle
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.points import (
    KINDS,
    SweepPoint,
    canonical_order,
    key_of,
    point_of_key,
    point_of_record,
    record_of,
)

LENGTHS = st.tuples(st.integers(1, 6), st.integers(0, 6))
FLAT = st.builds(SweepPoint, st.integers(1, 9), st.just(0)) | st.builds(SweepPoint, st.just(1), st.integers(0, 9))
UNIFORM = st.builds(SweepPoint, st.integers(1, 9), st.integers(0, 9), st.integers(1, 5))
POINTS = UNIFORM | st.builds(SweepPoint.of, st.lists(LENGTHS, min_size=1, max_size=6))


@pytest.mark.parametrize(
    ("point", "kind", "text"),
    [
        (SweepPoint(1, 0), "prefill", "input 1, kv_cache 0"),
        (SweepPoint(7, 0), "prefill", "input 7, kv_cache 0"),
        (SweepPoint(1, 7), "decode", "input 1, kv_cache 7"),
        (SweepPoint(2, 1), "chunk", "input 2, kv_cache 1"),
        (SweepPoint(1, 7, 2), "batch", "input 1, kv_cache 7, batch 2"),
        (SweepPoint(7, 0, 3), "batch", "input 7, kv_cache 0, batch 3"),
        (SweepPoint(256, 512, 2), "batch", "input 256, kv_cache 512, batch 2"),
        (SweepPoint.of([(1, 7), (1, 8)]), "mixed", "2 sequences of input 2, kv_cache 15 in all"),
        (SweepPoint.of([(512, 0), *[(1, 1024)] * 64]), "mixed", "65 sequences of input 576, kv_cache 65536 in all"),
    ],
)
def test_a_point_says_what_its_step_is(point: SweepPoint, kind: str, text: str) -> None:
    assert (point.kind, str(point)) == (kind, text)
    assert point.is_flat == (kind in ("prefill", "decode"))
    assert {kind} <= {*KINDS}


@given(st.lists(LENGTHS, min_size=1, max_size=6), st.randoms())
def test_the_same_step_is_the_same_point_however_it_was_made(sequences: list[tuple[int, int]], chance) -> None:  # type: ignore[no-untyped-def]
    point = SweepPoint.of(sequences)
    shuffled = chance.sample(sequences, len(sequences))
    assert SweepPoint.of(shuffled) == point and hash(SweepPoint.of(shuffled)) == hash(point)
    assert point.sequences == tuple(sorted(sequences))
    assert point.batch == len(sequences)
    assert (point.tokens, point.history) == tuple(map(sum, zip(*sequences, strict=True)))
    assert point.total_len == max(map(sum, sequences))
    assert point.cache_len == sum(map(sum, sequences))
    assert (point.kind == "mixed") == (len({*sequences}) > 1)


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 5))
def test_a_batch_is_the_composition_of_its_sequences(input_len: int, kv_len: int, batch: int) -> None:
    point = SweepPoint(input_len, kv_len, batch)
    assert point == SweepPoint.of([(input_len, kv_len)] * batch)
    assert (point.input_len, point.kv_len, point.batch) == (input_len, kv_len, batch)
    assert (point.kind == "batch") == (batch > 1)


def test_sequences_of_different_lengths_have_no_one_length() -> None:
    mixed = SweepPoint.of([(4, 0), (1, 9)])
    for name in ("input_len", "kv_len"):
        with pytest.raises(ValueError, match="2 sequences of input 5, kv_cache 9 in all: they are not of one length"):
            getattr(mixed, name)


@given(POINTS)
def test_files_name_a_point_and_find_it_again(point: SweepPoint) -> None:
    for name, find in ((key_of, point_of_key), (record_of, point_of_record)):
        assert find(json.loads(json.dumps(name(point)))) == point
    assert point_of_record({**record_of(point), "reason": "out of memory"}) == point
    assert pickle.loads(pickle.dumps(point)) == point


@given(UNIFORM)
def test_points_of_one_length_are_named_as_they_always_were(point: SweepPoint) -> None:
    numbers = [point.input_len, point.kv_len, point.batch]
    assert key_of(point) == numbers
    assert list(record_of(point).items()) == list(zip(("input", "kv_cache", "batch"), numbers, strict=True))


def test_a_composition_is_named_by_its_lengths() -> None:
    mixed = SweepPoint.of([(1, 1024)] * 64 + [(512, 0)])
    assert key_of(mixed) == [[1, 1024, 64], [512, 0, 1]]
    assert record_of(mixed) == {"sequences": [[1, 1024, 64], [512, 0, 1]]}
    assert point_of_key([[512, 0, 1], [1, 1024, 60], [1, 1024, 4]]) == mixed, "however it was written"


@pytest.mark.parametrize(
    "key",
    [[], [1], [0, 0, 1], [1, -1, 1], [1, 0, 0], [1.5, 0, 1], ["1", 0, 1], [1, None, 1], [[1, 0]], [[1, 0, 0]]]
    + [[[1, 0, 1], 5, 1], [[1, 0, 1], [0, 1, 1]], ["abc"]],
    ids=str,
)
def test_what_is_no_point_is_refused(key: list[object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        point_of_key(key)


@pytest.mark.parametrize("record", [{}, {"input": 1, "kv_cache": 0}, {"input": None, "kv_cache": None, "batch": None}])
def test_what_is_no_record_of_a_point_is_refused(record: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        point_of_record(record)


@pytest.mark.parametrize("sequences", [[], [(0, 1)], [(1, -1)], [(1.0, 1)]])
def test_a_point_has_sequences_of_whole_numbers(sequences: list[tuple[int, int]]) -> None:
    with pytest.raises((ValueError, TypeError)):
        SweepPoint.of(sequences)


@given(st.lists(POINTS, max_size=12, unique=True))
def test_points_have_one_order_each_way(points: list[SweepPoint]) -> None:
    for key in (None, canonical_order):
        values = sorted(map(key, points)) if key else sorted(points)
        assert all(one < other for one, other in pairwise(values)), "no two are alike"
    batches = [point.batch for point in sorted(points, key=canonical_order)]
    assert batches == sorted(batches)


@given(st.lists(UNIFORM, max_size=12, unique=True))
def test_points_of_one_length_are_ordered_by_their_numbers(points: list[SweepPoint]) -> None:
    assert sorted(points) == sorted(points, key=lambda p: (p.input_len, p.kv_len, p.batch))
    assert sorted(points, key=canonical_order) == sorted(points, key=lambda p: (p.batch, p.kv_len, p.input_len))
