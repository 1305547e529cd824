import json
import resource
import time
from pathlib import Path

import pytest

from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.records import ROW_SCHEMA, PointRecord
from llm_profile.store.journal import Journal, JournalContents, damage_text, read_journal
from tests.table_samples import sample, sweep_points

HEADER = {"row_schema": ROW_SCHEMA, "model": "m", "conditions": {}}
POINTS = sweep_points(3, 2)
RECORDS = {point: PointRecord.of(sample(point), run=0) for point in POINTS}

RECORD_8 = PointRecord.of(sample(SweepPoint(8, 0)), run=1)


def written(path: Path, records: dict[SweepPoint, PointRecord] = RECORDS) -> bytes:
    journal = Journal(path, JournalContents())
    journal.write_header(HEADER)
    journal.write_run({"index": 0})
    for point, record in records.items():
        journal.write_result(point, record)
    journal.write_result(SweepPoint(9, 0), "out of memory")
    journal.close()
    return path.read_bytes()


def test_reads_what_was_written(tmp_path: Path) -> None:
    written(tmp_path / "j")
    contents = read_journal(tmp_path / "j")
    assert contents.header == HEADER
    assert contents.runs == {0: {"index": 0}}
    assert contents.results == [*RECORDS.items(), (SweepPoint(9, 0), "out of memory")]


def test_no_journal_is_empty(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "j") == JournalContents()


def test_kernel_names_are_written_once(tmp_path: Path) -> None:
    text = written(tmp_path / "j").decode()
    kernels = [json.loads(line)["kernel"] for line in text.splitlines() if line.startswith('{"kernel"')]
    assert sorted(name for _, name in kernels) == sorted(
        {k for r in RECORDS.values() for row in r.rows.values() for k in row.kernels}
    )
    assert text.count("attn_kernel") == 1


def test_cut_anywhere_it_keeps_every_whole_line_and_can_be_continued(tmp_path: Path) -> None:
    """A kill in the middle of a write leaves any beginning of the file."""
    path = tmp_path / "j"
    whole = written(path)
    reference = read_journal(path).results
    lines = whole.splitlines(keepends=True)
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        contents = read_journal(path)
        ended = [line for line, end in zip(lines, _ends(lines), strict=True) if end <= cut]
        assert contents.good_bytes == sum(map(len, ended))
        assert contents.results == reference[: sum(line.startswith((b'{"point"', b'{"missing"')) for line in ended)]
        journal = Journal(path, contents)
        if contents.header is None:
            journal.write_header(HEADER)
        if not contents.runs:
            journal.write_run({"index": 0})
        for point, record in reference[len(contents.results) :]:
            journal.write_result(point, record)
        journal.close()
        assert read_journal(path).results == reference


def _ends(lines: list[bytes]) -> list[int]:
    return [sum(map(len, lines[: index + 1])) for index in range(len(lines))]


def test_zeros_at_the_end_are_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    whole = written(path)
    for tail in (b"\0" * 100, b'{"point":\0\0\0}\n'):
        path.write_bytes(whole + tail)
        contents = read_journal(path)
        assert contents.good_bytes == len(whole)
        assert len(contents.results) == len(POINTS) + 1


@pytest.mark.parametrize(
    "damage",
    [b"{torn\n", b'{"what":1}\n', b'{"point":{}}\n', b"[]\n", b'{"run":0,"point":1}\n', b"\xff\n", b"[" * 9999 + b"\n"],
)
def test_a_damaged_line_costs_itself_and_is_told(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "j"
    lines = written(path).splitlines(keepends=True)
    whole = read_journal(path)
    path.write_bytes(b"".join([*lines[:4], damage, *lines[4:]]))
    contents = read_journal(path)
    assert contents.results == whole.results
    assert contents.damaged == [5]
    assert contents.good_bytes == path.stat().st_size
    text = damage_text(path, contents)
    assert text is not None and "1 lines are damaged" in text and "line 5" in text and "\n" not in text
    assert damage_text(path, whole) is None


def test_a_second_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(2 * written(path))
    with pytest.raises(UsageError, match=r"line \d+ is damaged.*--overwrite"):
        read_journal(path)


def test_every_flipped_byte_costs_the_lines_that_it_is_in(tmp_path: Path) -> None:
    """And no number changes unseen. Of the header nothing can be made up for: it is refused."""
    path = tmp_path / "j"
    points = sweep_points(2, 0)
    whole = written(path, {point: PointRecord.of(sample(point, ("attn",), 3), 0) for point in points})
    reference = dict(read_journal(path).results)
    header = whole.index(b"\n")
    for at in range(len(whole)):
        for bit in (0, 1, 5):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            try:
                found = read_journal(path)
            except UsageError:
                assert at <= header
                continue
            assert at > header
            assert all(reference[point] == record for point, record in found.results)
            assert len(found.results) < len(reference) or len(whole) - 1 == at
            assert found.damaged or at == len(whole) - 1


@pytest.mark.parametrize("line", [1, 2, 3, 4])
def test_a_point_needs_the_lines_of_its_run_and_of_its_kernels(tmp_path: Path, line: int) -> None:
    """Lines: header, run, two kernels, a point."""
    path = tmp_path / "j"
    lines = written(path, {SweepPoint(1, 0): PointRecord.of(sample(SweepPoint(1, 0), ("attn",)), 0)}).splitlines(True)
    assert [sorted(json.loads(text))[-1] for text in lines] == ["header", "run", "kernel", "kernel", "point", "missing"]
    path.write_bytes(b"".join(text for number, text in enumerate(lines, start=1) if number != line))
    if line == 1:
        with pytest.raises(UsageError, match="line 1 is damaged"):
            read_journal(path)
    else:
        assert read_journal(path).results == [(SweepPoint(9, 0), "out of memory")]
        assert read_journal(path).damaged == [4]


def test_a_kernel_keeps_its_number_in_later_runs(tmp_path: Path) -> None:
    """Or a damaged line of a later run would give its points the kernels of an earlier one."""
    path = tmp_path / "j"
    written(path)
    known = read_journal(path).kernels
    journal = Journal(path, read_journal(path))
    journal.write_run({"index": 1})
    journal.write_result(SweepPoint(7, 0), PointRecord.of(sample(SweepPoint(7, 0), ("new",)), 1))
    journal.close()
    assert read_journal(path).kernels.items() >= known.items()


def test_a_journal_of_before_the_checksums_is_read_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "j"
    whole = written(path)
    old = [
        json.dumps({k: v for k, v in json.loads(line).items() if k != "crc32"}) + "\n" for line in whole.splitlines()
    ]
    reference = read_journal(path)
    path.write_text("".join(old))
    contents = read_journal(path)
    assert contents.results == reference.results
    assert not contents.damaged
    journal = Journal(path, contents)
    journal.write_run({"index": 1})
    journal.write_result(SweepPoint(8, 0), PointRecord.of(sample(SweepPoint(8, 0)), run=1))
    journal.close()
    assert read_journal(path).results == [*reference.results, (SweepPoint(8, 0), RECORD_8)]
    path.write_bytes(path.read_bytes() + old[-1].encode())
    assert len(read_journal(path).damaged) == 1, "from the first checksum on, each line has one"


def test_journal_without_header_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"".join(written(path).splitlines(keepends=True)[1:]))
    with pytest.raises(UsageError, match="line 1 is damaged"):
        read_journal(path)


@pytest.mark.parametrize("schema", [1, 99])
def test_journal_of_another_schema_is_refused(tmp_path: Path, schema: int) -> None:
    (tmp_path / "j").write_text(json.dumps({"header": HEADER | {"row_schema": schema}}) + "\n")
    with pytest.raises(UsageError, match=f"row_schema {schema}, this version of LLM-Profile writes {ROW_SCHEMA};"):
        read_journal(tmp_path / "j")


def test_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path)
    journal = Journal(path, read_journal(path))
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, hard))
    try:
        with pytest.raises(UsageError, match="^cannot write .*j: "):
            journal.write_result(SweepPoint(7, 0), PointRecord.of(sample(SweepPoint(7, 0)), run=0))
        assert path.stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.write_result(SweepPoint(8, 0), PointRecord.of(sample(SweepPoint(8, 0)), run=0))
    journal.close()
    assert [point for point, _ in read_journal(path).results[-2:]] == [SweepPoint(9, 0), SweepPoint(8, 0)]


def test_syncs_by_itself_after_five_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    synced: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    journal = Journal(tmp_path / "j", JournalContents())
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(now[0]))
    for second in (1, 4.9, 5, 6, 9.9, 10):
        now[0] = 100 + second
        journal.write_result(SweepPoint(1, 0), f"at {second}")
    assert synced == [105, 110]
    journal.close()


def test_a_full_sweep_stays_modest(tmp_path: Path) -> None:
    """4,096 points of 21 rows: 8 MB and 0.5 ms a point at most, a wide margin for slow machines."""
    rows = tuple(f"{name}_{index}" for index, name in enumerate(["layernorm"] * 21))
    journal = Journal(tmp_path / "j", JournalContents())
    journal.write_header(HEADER)
    points = sweep_points(128, 0)
    made = [sample(point, rows) for point in points]
    started = time.perf_counter()
    for one in made:
        journal.write_result(one.point, PointRecord.of(one, run=0))
    seconds = time.perf_counter() - started
    journal.close()
    assert (tmp_path / "j").stat().st_size / len(points) * 4096 < 8e6
    print(f"{seconds / len(points) * 1e3:.3f} ms a point, {(tmp_path / 'j').stat().st_size / len(points):.0f} bytes")
    assert seconds / len(points) < 2e-3
