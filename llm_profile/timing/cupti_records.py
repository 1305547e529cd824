"""Reads CUPTI's activity records of kernels, copies and memsets from the buffers that CUPTI filled. Imports no torch.

A buffer holds records one after another, each beginning with its kind. The fields read here have the same place in the
headers of CUDA 12.6 to 13.5 (`cupti_activity.h`, by offsetof of the newest structure of each); the sizes of the records
differ between versions.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MEMCPY_KIND, MEMSET_KIND, KERNEL_KIND = 1, 2, 10
"""Values of CUpti_ActivityKind: CUPTI_ACTIVITY_KIND_MEMCPY, _MEMSET and _CONCURRENT_KERNEL."""

RECORD_KINDS = (KERNEL_KIND, MEMCPY_KIND, MEMSET_KIND)

RECORD_BYTES: Mapping[int, Mapping[int, int]] = {
    24: {KERNEL_KIND: 208, MEMCPY_KIND: 88, MEMSET_KIND: 88},  # CUDA 12.6
    26: {KERNEL_KIND: 208, MEMCPY_KIND: 96, MEMSET_KIND: 88},  # CUDA 12.8
    28: {KERNEL_KIND: 208, MEMCPY_KIND: 96, MEMSET_KIND: 88},  # CUDA 12.9
    1300: {KERNEL_KIND: 216, MEMCPY_KIND: 96, MEMSET_KIND: 88},
    1301: {KERNEL_KIND: 224, MEMCPY_KIND: 96, MEMSET_KIND: 88},
    1302: {KERNEL_KIND: 224, MEMCPY_KIND: 96, MEMSET_KIND: 88},
    1303: {KERNEL_KIND: 232, MEMCPY_KIND: 96, MEMSET_KIND: 88},
    1304: {KERNEL_KIND: 248, MEMCPY_KIND: 112, MEMSET_KIND: 104},
    1305: {KERNEL_KIND: 248, MEMCPY_KIND: 112, MEMSET_KIND: 104},
}
"""Release of CUPTI -> kind -> bytes of a record. A release is what `release_of` makes of CUPTI_API_VERSION."""

RECORD_ALIGNMENT = 8
"""Every record begins at a multiple of so many bytes (ACTIVITY_RECORD_ALIGNMENT)."""

LONGEST_RUN = 128
"""Most records of kernels that are looked at together."""

START, END, NAME = 16, 24, 104
CORRELATION, NODE, GRAPH = (92, 44), (144, 64), (156, 72)
"""Offsets of fields in bytes; of two, the first is that in kernels, the other that in copies and memsets. START, END:
u64, in ns. NAME: a pointer, of kernels only. CORRELATION, GRAPH: u32. NODE: u64."""


class StrangeBufferError(RuntimeError):
    """A buffer is not a sequence of whole records of the kinds that are recorded."""


class Records(NamedTuple):
    """Fields of records, an array of [records] each.

    correlation: id of the launch; all work of one replay of a graph has the same one. graph: id of the executable
    graph, 0 outside graphs. node: id of the node in the graph, in the order in which nodes were made. name: address of
    the kernel's name, a C string; 0 for copies, 1 for memsets.
    """

    start_ns: NDArray[np.int64]
    end_ns: NDArray[np.int64]
    correlation: NDArray[np.uint32]
    graph: NDArray[np.uint32]
    node: NDArray[np.uint64]
    name: NDArray[np.uint64]


NO_NAMES = {MEMCPY_KIND: 0, MEMSET_KIND: 1}
"""What stands for the names of copies and memsets, whose records have none."""


def release_of(version: int) -> int:
    """The key of RECORD_BYTES for a CUPTI_API_VERSION: that of CUDA 13.0.1 is 130001, that of CUDA 12.6 is 24."""
    return version // 100 if version >= 100_000 else version


def parse(buffer: bytes, record_bytes: Mapping[int, int]) -> Records:
    """The records of one buffer, in its order.

    buffer: the valid part of a buffer. record_bytes: kind -> bytes of a record. Raises StrangeBufferError for a record
    of another kind, and for one that is cut off.
    """
    if len(buffer) % RECORD_ALIGNMENT:
        raise StrangeBufferError(f"{len(buffer)} bytes are no whole number of records")
    words = np.frombuffer(buffer, dtype="<u4")
    longs = np.frombuffer(buffer, dtype="<u8")
    kind, at = _records(words, record_bytes)
    is_kernel = kind == KERNEL_KIND

    def places(offsets: tuple[int, int], width: int) -> NDArray[np.int64]:
        return (at + np.where(is_kernel, *offsets)) // width

    name = np.where(kind == MEMCPY_KIND, NO_NAMES[MEMCPY_KIND], NO_NAMES[MEMSET_KIND]).astype(np.uint64)
    name[is_kernel] = longs[(at[is_kernel] + NAME) // 8]
    return Records(
        longs[(at + START) // 8].view(np.int64),
        longs[(at + END) // 8].view(np.int64),
        words[places(CORRELATION, 4)],
        words[places(GRAPH, 4)],
        longs[places(NODE, 8)],
        name,
    )


def concatenated(parts: Sequence[Records]) -> Records:
    """The records of several buffers."""
    return Records._make(np.concatenate(field) for field in zip(*parts, strict=True))


def _records(words: NDArray[np.uint32], record_bytes: Mapping[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Kind and offset in bytes of each record. words: the buffer as u32."""
    kinds = words[:: RECORD_ALIGNMENT // 4]
    stride = record_bytes[KERNEL_KIND] // RECORD_ALIGNMENT
    slots, slot, end = [], 0, len(kinds)
    while slot < end:
        # A record begins where the one before it ends. Nearly all are kernels, so runs of them are found at once.
        run = kinds[slot : slot + LONGEST_RUN * stride : stride]
        others = np.flatnonzero(run != KERNEL_KIND)
        kernels = int(others[0]) if len(others) else len(run)
        slots.append(np.arange(slot, slot + kernels * stride, stride))
        slot += kernels * stride
        while slot < end and (kind := int(kinds[slot])) != KERNEL_KIND:
            if kind not in record_bytes:
                raise StrangeBufferError(
                    f"a record of kind {kind} at byte {RECORD_ALIGNMENT * slot} of {RECORD_ALIGNMENT * end}"
                )
            slots.append(np.asarray([slot]))
            slot += record_bytes[kind] // RECORD_ALIGNMENT
    if slot != end:
        raise StrangeBufferError(
            f"the last record ends at byte {RECORD_ALIGNMENT * slot}, the buffer at {RECORD_ALIGNMENT * end}"
        )
    found = np.concatenate(slots) if slots else np.empty(0, dtype=np.int64)
    return kinds[found].astype(np.int64), found * RECORD_ALIGNMENT
