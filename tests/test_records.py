import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.measurement import Measurement, PointSample, RowSample
from llm_profile.points import SweepPoint
from llm_profile.records import PointRecord


@st.composite
def samples(draw: st.DrawFn) -> PointSample:
    passes = draw(st.integers(1, 32))
    times = st.lists(st.integers(0, 2**40), min_size=passes, max_size=passes).map(tuple)
    rows = draw(
        st.dictionaries(st.text("abc_", min_size=1), st.builds(RowSample, times, st.integers(1, 80)), max_size=6)
    )
    return PointSample(SweepPoint(1, 0), rows, draw(times), "fake")


@given(samples())
def test_measured_together_as_one_by_one(sample: PointSample) -> None:
    record = PointRecord.of(sample, run=3)
    assert record.whole_pass == Measurement.of(sample.pass_ns)
    assert list(record.rows) == list(sample.rows)
    for name, row in sample.rows.items():
        assert record.rows[name].measurement == Measurement.of(row.pass_ns, row.blocks)
    assert (record.run, record.source) == (3, "measured")


@pytest.mark.parametrize("rows", [{"attn": RowSample((1, 2))}, {"attn": RowSample(())}, {"pass": RowSample((1,))}])
def test_refuses_what_is_no_sample(rows: dict[str, RowSample]) -> None:
    with pytest.raises(ValueError, match="row"):
        PointRecord.of(PointSample(SweepPoint(1, 0), rows, (1,), "fake"), run=0)


def test_refuses_no_passes() -> None:
    with pytest.raises(ValueError, match="passes"):
        PointRecord.of(PointSample(SweepPoint(1, 0), {}, (), "fake"), run=0)
