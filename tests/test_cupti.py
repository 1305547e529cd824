"""Reading CUPTI's records, from buffers that were recorded on an H200 (torch 2.11, CUPTI 13.0) and from made-up ones.

The recorded file also has the places of the records as CUPTI's own cuptiActivityGetNextRecord found them.
"""

import base64
import ctypes
import gzip
import json
import random
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.timing import cupti
from llm_profile.timing.cupti import CuptiRecorder, CuptiUnavailableError, loaded_library, matched
from llm_profile.timing.cupti_records import (
    KERNEL_KIND,
    MEMCPY_KIND,
    MEMSET_KIND,
    RECORD_BYTES,
    StrangeBufferError,
    concatenated,
    parse,
    release_of,
)
from llm_profile.timing.record_clock import RecordClock
from llm_profile.timing.replays import NodeNames, Replay

RECORDED = Path(__file__).parent / "data" / "cupti_tiny_llama_h200.json.gz"


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    with gzip.open(RECORDED, "rt") as file:
        found: dict[str, Any] = json.load(file)
    return found | {"buffer": zlib.decompress(base64.b64decode(found["buffer"]))}


def test_records_are_where_cupti_finds_them(recorded: dict[str, Any]) -> None:
    buffer, layout = recorded["buffer"], RECORD_BYTES[release_of(recorded["version"])]
    found = parse(buffer, layout)
    assert len(found.start_ns) == len(recorded["records"]) == 295
    for at, (place, kind) in enumerate(recorded["records"]):
        start, end = struct.unpack_from("<QQ", buffer, place + 16)
        assert (found.start_ns[at], found.end_ns[at]) == (start, end)
        assert (found.name[at] <= 1) == (kind != KERNEL_KIND)


def test_records_of_a_recorded_buffer_are_five_replays_of_two_graphs(recorded: dict[str, Any]) -> None:
    """Their graphs were replayed in the order that the file tells, each with all of its 59 nodes."""
    found = parse(recorded["buffer"], RECORD_BYTES[release_of(recorded["version"])])
    launches = sorted({*found.correlation.tolist()})
    graphs = [int(found.graph[found.correlation == launch][0]) for launch in launches]
    assert graphs == [recorded["graph_ids"][number] for number in recorded["order"]]
    for launch in launches:
        of_launch = found.correlation == launch
        nodes = found.node[of_launch]
        in_order = np.argsort(nodes)
        assert len(nodes) == len({*nodes.tolist()}) == 59
        starts, ends = found.start_ns[of_launch][in_order], found.end_ns[of_launch][in_order]
        assert (ends > starts).all() and (starts[1:] >= ends[:-1]).all(), "one after the other, in the order of nodes"
        assert 50_000 < (ends - starts).sum() < 200_000, "ns of a tiny pass"


@pytest.mark.parametrize("cut", [8, 100, 216, 5000])
def test_a_buffer_that_is_cut_off_inside_a_record_is_refused(cut: int, recorded: dict[str, Any]) -> None:
    layout = RECORD_BYTES[release_of(recorded["version"])]
    places = {place for place, _ in recorded["records"]}
    length = len(recorded["buffer"]) - cut
    if length in places:
        assert len(parse(recorded["buffer"][:length], layout).start_ns) == sum(place < length for place in places)
    else:
        with pytest.raises(StrangeBufferError):
            parse(recorded["buffer"][:length], layout)


@pytest.mark.parametrize("release", [release for release in RECORD_BYTES if release != 1300])
def test_a_buffer_of_another_release_is_never_misread(release: int, recorded: dict[str, Any]) -> None:
    """Where all sizes are those of CUDA 13.0, it would be read rightly; no other release has them."""
    with pytest.raises(StrangeBufferError):
        parse(recorded["buffer"], RECORD_BYTES[release])


def record(kind: int, layout: dict[int, int], start: int, end: int, correlation: int, graph: int, node: int) -> bytes:
    """A record by the header's structures: fields that are not read have bytes of 0x0a, which is a kind of record."""
    content = bytearray(b"\x0a" * layout[kind])
    struct.pack_into("<I", content, 0, kind)
    struct.pack_into("<QQ", content, 16, start, end)
    struct.pack_into("<I", content, 92 if kind == KERNEL_KIND else 44, correlation)
    struct.pack_into("<Q", content, 144 if kind == KERNEL_KIND else 64, node)
    struct.pack_into("<I", content, 156 if kind == KERNEL_KIND else 72, graph)
    if kind == KERNEL_KIND:
        struct.pack_into("<Q", content, 104, 1 << 40 | node)
    return bytes(content)


FIELDS = st.tuples(
    st.sampled_from([KERNEL_KIND, KERNEL_KIND, KERNEL_KIND, MEMCPY_KIND, MEMSET_KIND]),
    st.integers(0, 2**62),
    st.integers(0, 2**62),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**39),
)


@given(st.sampled_from([*RECORD_BYTES]), st.lists(FIELDS, max_size=400), st.integers(0, 5))
def test_every_field_of_every_record(release: int, fields: list[tuple[int, ...]], parts: int) -> None:
    layout = dict(RECORD_BYTES[release])
    split = [fields[at :: parts + 1] for at in range(parts + 1)]
    buffers = [b"".join(record(kind, layout, *rest) for kind, *rest in part) for part in split]
    found = concatenated([parse(buffer, layout) for buffer in buffers])
    wanted = [one for part in split for one in part]
    names = {MEMCPY_KIND: 0, MEMSET_KIND: 1}
    assert found.start_ns.tolist() == [start for _, start, *_ in wanted]
    assert found.end_ns.tolist() == [end for _, _, end, *_ in wanted]
    assert found.correlation.tolist() == [one[3] for one in wanted]
    assert found.graph.tolist() == [one[4] for one in wanted]
    assert found.node.tolist() == [one[5] for one in wanted]
    assert found.name.tolist() == [names.get(kind, 1 << 40 | node) for kind, *_, node in wanted]


@given(st.binary(max_size=2000))
def test_bytes_of_any_kind_are_read_or_refused(content: bytes) -> None:
    try:
        found = parse(content, RECORD_BYTES[1300])
    except StrangeBufferError:
        return
    assert sum(216 if name > 1 else 96 for name in found.name.tolist()) >= len(content) * 88 // 96


def test_a_kind_that_is_not_recorded_is_named() -> None:
    with pytest.raises(StrangeBufferError, match="kind 3 at byte 216"):
        parse(
            record(KERNEL_KIND, dict(RECORD_BYTES[1300]), 1, 2, 3, 4, 5) + struct.pack("<II", 3, 0), RECORD_BYTES[1300]
        )


@pytest.mark.parametrize(("version", "release"), [(24, 24), (130001, 1300), (130500, 1305)])
def test_releases(version: int, release: int) -> None:
    assert release_of(version) == release and release in RECORD_BYTES


def replay(number: int) -> Replay:
    return Replay(np.asarray([number]), np.asarray([1]), NodeNames(["gemm"]))


def test_replays_go_to_the_launches_of_their_graphs() -> None:
    """Of a graph with fewer replays than launches, the first launch has none: it is the uncounted one, if there is."""
    a, b, c = replay(1), replay(2), replay(3)
    assert matched({7: [a, b], 8: [c]}, [7, 8, 7]) == [a, c, b]
    assert matched({7: [b], 8: [c]}, [7, 7, 8]) == [None, b, c]
    assert matched({}, [7, 8]) == [None, None]
    assert matched({9: [a]}, []) == []


@pytest.mark.parametrize(("loaded", "count"), [([], 0), (["/a/libcupti.so.13", "/b/libcupti.so.12"], 2)])
def test_without_one_cupti_the_reason_is_told(loaded: list[str], count: int, tmp_path: Path) -> None:
    lines = [f"7f0000000000-7f0000001000 r-xp 00000000 08:01 1 {path}" for path in ["/lib/libc.so.6", *loaded]]
    (tmp_path / "maps").write_text("\n".join(lines))
    with pytest.raises(CuptiUnavailableError, match=f"{count} libcupti are loaded"):
        loaded_library(str(tmp_path / "maps"))


class Library:
    """A libcupti that has recorded `buffer`, and whose clock counts `per_ns` ticks a ns from a start of its own.

    The times in `buffer` are moved into the time in which the recorder is open, by that clock. lies: its clock is asked
    for ns, and its records are in ticks all the same.
    """

    def __init__(self, buffer: bytes, per_ns: float = 1.0, lies: bool = False, version: int = 130001) -> None:
        self.per_ns = per_ns
        self.lies = lies
        self.version = version
        self.enabled: list[int] = []
        self.functions: tuple[Any, ...] = ()
        self.buffer = buffer
        self.began_ns = time.time_ns()

    def ticks(self, at_ns: int) -> int:
        return round((at_ns - self.began_ns) * self.per_ns) + 10**15

    def cuptiGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0

    def cuptiActivityRegisterCallbacks(self, *functions: Any) -> int:
        self.functions = functions
        return 0

    def cuptiActivityEnable(self, kind: int) -> int:
        self.enabled.append(kind)
        return 0

    def cuptiActivityDisable(self, kind: int) -> int:
        self.enabled.remove(kind)
        return 0

    def cuptiGetTimestamp(self, now: Any) -> int:
        now._obj.value = time.time_ns() if self.lies else self.ticks(time.time_ns())
        return 0

    def cuptiGetGraphExecId(self, graph: Any, number: Any) -> int:
        number._obj.value = graph.value
        return 0

    def record(self) -> None:
        """Make the records of `buffer` now: CUPTI hands them over at the next flush."""
        self.content = bytearray(self.buffer)
        layout = RECORD_BYTES[1300]
        at, first = 0, struct.unpack_from("<Q", self.buffer, 16)[0]
        now_ns = time.time_ns()
        while at < len(self.buffer):
            for place in (at + 16, at + 24):
                since = struct.unpack_from("<Q", self.buffer, place)[0] - first
                struct.pack_into("<Q", self.content, place, self.ticks(now_ns + since))
            kind = struct.unpack_from("<I", self.buffer, at)[0]
            if kind == KERNEL_KIND:
                struct.pack_into("<Q", self.content, at + 104, ctypes.addressof(NAME))
            at += layout[kind]

    def cuptiActivityFlushAll(self, _flag: int) -> int:
        content, self.content = getattr(self, "content", b""), b""
        if content:
            buffer, size, most = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
            self.functions[0](ctypes.pointer(buffer), ctypes.pointer(size), ctypes.pointer(most))
            assert buffer.value and size.value >= len(content) and most.value == 0
            ctypes.memmove(buffer.value, bytes(content), len(content))
            self.functions[1](None, 0, buffer.value, size.value, len(content))
        return 0


NAME = ctypes.create_string_buffer(b"_Z4gemmi")


def opened(library: Library, monkeypatch: pytest.MonkeyPatch) -> CuptiRecorder:
    monkeypatch.setattr(cupti, "loaded_library", lambda: library)
    return CuptiRecorder(wait=lambda: None)


@pytest.mark.parametrize("per_ns", [1.0, 2.1, 0.5])
def test_replays_take_as_long_as_they_took_by_any_clock(
    per_ns: float, recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's profiler has CUPTI take the cycle counter for the rest of the process."""
    library = Library(recorded["buffer"], per_ns)
    recorder = opened(library, monkeypatch)
    assert sorted(library.enabled) == [1, 2, 10]
    began_ns = time.time_ns()
    with recorder.recording():
        library.record()
    launched = [recorded["graph_ids"][number] for number in recorded["order"]]
    replays = recorder.read(launched)
    raw = parse(recorded["buffer"], RECORD_BYTES[1300])
    launches = sorted({*raw.correlation.tolist()})
    for replay_, launch in zip(replays, launches, strict=True):
        assert replay_ is not None
        of_launch = np.flatnonzero(raw.correlation == launch)
        of_launch = of_launch[np.argsort(raw.node[of_launch])]
        took = raw.end_ns[of_launch] - raw.start_ns[of_launch]
        assert np.abs(replay_.duration_ns - took).max() <= max(4, 0.001 * took.max())
        assert began_ns - 10**6 <= replay_.start_ns[0] <= began_ns + 10**9
        assert {*replay_.names} == {"gemm(int)"} and not any(replay_.names.memory)
    recorder.close()
    assert not library.enabled


def test_a_clock_in_ns_is_taken_as_it_is_though_its_readings_are_interrupted() -> None:
    draw = random.Random(2)

    def interrupted() -> int:
        if draw.random() < 0.5:
            time.sleep(0.003)
        return time.time_ns()

    for _ in range(5):
        times = time.time_ns() + np.asarray([0, 1234])
        assert np.diff(RecordClock(interrupted).to_ns(times)).item() == 1234


def test_records_by_another_clock_than_was_asked_are_lost(
    recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(recorded["buffer"], 2.1, lies=True)
    recorder = opened(library, monkeypatch)
    library.record()
    assert recorder.read([recorded["graph_ids"][0]]) == [None]


def test_a_buffer_that_is_cut_off_loses_its_replays(recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(recorded["buffer"])
    recorder = opened(library, monkeypatch)
    library.record()
    library.content = library.content[:-8]
    assert recorder.read([recorded["graph_ids"][0]]) == [None]


def test_what_was_recorded_before_is_not_read(recorded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(recorded["buffer"])
    library.record()
    recorder = opened(library, monkeypatch)
    assert recorder.read([recorded["graph_ids"][0]]) == [None]


def test_a_library_of_an_unknown_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CuptiUnavailableError, match="140000 are of an unknown layout"):
        opened(Library(b"", version=140000), monkeypatch)


def test_a_library_without_a_function_or_with_an_error_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(b"")
    library.cuptiActivityEnable = lambda _kind: 39  # type: ignore[method-assign]
    with pytest.raises(CuptiUnavailableError, match="cuptiActivityEnable answers 39"):
        opened(library, monkeypatch)
    missing: Any = type("Older", (Library,), {"cuptiGetTimestamp": property(lambda _self: _raise())})(b"")
    with pytest.raises(CuptiUnavailableError, match="has no cuptiGetTimestamp"):
        opened(missing, monkeypatch)


def _raise() -> None:
    raise AttributeError
