"""Reads CUPTI's activity records of kernels, copies and memsets from the buffers that CUPTI filled. Imports no torch.

A buffer holds records one after another, each beginning with its kind. The fields read here have the same place in the
headers of CUDA 12.6 to 13.5 (`cupti_activity.h`, by offsetof of the newest structure of each); the sizes of the records
differ between versions.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MEMCPY, MEMSET, KERNEL = 1, 2, 10
"""Values of CUpti_ActivityKind: CUPTI_ACTIVITY_KIND_MEMCPY, _MEMSET and _CONCURRENT_KERNEL."""

KINDS = (KERNEL, MEMCPY, MEMSET)

RECORD_BYTES: Mapping[int, Mapping[int, int]] = {
    24: {KERNEL: 208, MEMCPY: 88, MEMSET: 88},  # CUDA 12.6
    26: {KERNEL: 208, MEMCPY: 96, MEMSET: 88},  # CUDA 12.8
    28: {KERNEL: 208, MEMCPY: 96, MEMSET: 88},  # CUDA 12.9
    1300: {KERNEL: 216, MEMCPY: 96, MEMSET: 88},
    1301: {KERNEL: 224, MEMCPY: 96, MEMSET: 88},
    1302: {KERNEL: 224, MEMCPY: 96, MEMSET: 88},
    1303: {KERNEL: 232, MEMCPY: 96, MEMSET: 88},
    1304: {KERNEL: 248, MEMCPY: 112, MEMSET: 104},
    1305: {KERNEL: 248, MEMCPY: 112, MEMSET: 104},
}
"""Release of CUPTI -> kind -> bytes of a record. A release is what `release_of` makes of CUPTI_API_VERSION."""

ALIGNMENT = 8
"""Every record begins at a multiple of so many bytes (ACTIVITY_RECORD_ALIGNMENT)."""

START, END, NAME = 16, 24, 104
CORRELATION = {KERNEL: 92, MEMCPY: 44, MEMSET: 44}
NODE = {KERNEL: 144, MEMCPY: 64, MEMSET: 64}
GRAPH = {KERNEL: 156, MEMCPY: 72, MEMSET: 72}
"""Offsets of fields in bytes. START, END: u64, ns. NAME: pointer, of kernels only. CORRELATION, GRAPH: u32. NODE: u64."""


class StrangeBufferError(RuntimeError):
    """A buffer is not a sequence of whole records of the kinds that are recorded."""


class Records(NamedTuple):
    """Fields of records, an array of [records] each.

    correlation: id of the launch; all work of one replay of a graph has the same one. graph: id of the executable graph,
    0 outside graphs. node: id of the node in the graph, in the order in which nodes were made. name: address of the
    kernel's name, a C string; 0 for copies, 1 for memsets.
    """

    start_ns: NDArray[np.int64]
    end_ns: NDArray[np.int64]
    correlation: NDArray[np.uint32]
    graph: NDArray[np.uint32]
    node: NDArray[np.uint64]
    name: NDArray[np.uint64]


NO_NAMES = {MEMCPY: 0, MEMSET: 1}
"""What stands for the names of copies and memsets, whose records have none."""


def release_of(version: int) -> int:
    """The key of RECORD_BYTES for a CUPTI_API_VERSION: that of CUDA 13.0.1 is 130001, those before CUDA 13 are small."""
    return version // 100 if version >= 100_000 else version


def parse(buffer: bytes, record_bytes: Mapping[int, int]) -> Records:
    """The records of one buffer, in its order.

    buffer: the valid part of a buffer. record_bytes: kind -> bytes of a record. Raises StrangeBufferError for a record
    of another kind, and for one that is cut off.
    """
    if len(buffer) % ALIGNMENT:
        raise StrangeBufferError(f"{len(buffer)} bytes are no whole number of records")
    words = np.frombuffer(buffer, dtype="<u4")
    kind, at = _records(words, record_bytes)
    longs = np.frombuffer(buffer, dtype="<u8")

    def field(offsets: Mapping[int, int], values: NDArray[np.generic], width: int) -> NDArray[np.generic]:
        places = np.empty(len(at), dtype=np.int64)
        for one, offset in offsets.items():
            places[kind == one] = offset
        return values[(at + places) // width]

    name = np.zeros(len(at), dtype=np.uint64)
    kernels = kind == KERNEL
    name[kernels] = longs[(at[kernels] + NAME) // 8]
    for one, stands_for in NO_NAMES.items():
        name[kind == one] = stands_for
    return Records(
        longs[(at + START) // 8].astype(np.int64),
        longs[(at + END) // 8].astype(np.int64),
        field(CORRELATION, words, 4).astype(np.uint32),
        field(GRAPH, words, 4).astype(np.uint32),
        field(NODE, longs, 8).astype(np.uint64),
        name,
    )


def _records(words: NDArray[np.uint32], record_bytes: Mapping[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kind and offset in bytes of each record. words: the buffer as u32."""
    kinds = words[:: ALIGNMENT // 4]
    # A record begins where the one before it ends, so its place is known only after all before it. The few slots that
    # can be a record at all, by their first word, are found at once; the walk goes through these alone.
    known = np.zeros(int(max(record_bytes)) + 1, dtype=np.int64)
    for kind, size in record_bytes.items():
        known[kind] = size // ALIGNMENT
    possible = np.flatnonzero(kinds < len(known))
    lengths = known[kinds[possible]]
    following = dict(zip(possible.tolist(), (possible + lengths).tolist(), strict=True))
    slots, slot, end = [], 0, len(kinds)
    while slot < end:
        next_slot = following.get(slot, slot)
        if next_slot == slot or next_slot > end:
            raise StrangeBufferError(f"no whole record of a known kind at byte {ALIGNMENT * slot} of {ALIGNMENT * end}")
        slots.append(slot)
        slot = next_slot
    found = np.asarray(slots, dtype=np.int64)
    return kinds[found].astype(np.int64), found * ALIGNMENT
