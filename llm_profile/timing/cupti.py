"""CUPTI's activity records of graph replays, read through ctypes from the libcupti that torch has loaded.

Only kernels, copies and memsets are recorded, from `open` to `close`. So captures leave nothing behind, and replays can
be recorded and read for hours in one go. torch's profiler takes 11 to 26 us an event in Python; this takes about 0.1.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np
import torch

from llm_profile.timing.cupti_records import (
    MEMCPY_KIND,
    MEMSET_KIND,
    NO_NAMES,
    RECORD_BYTES,
    RECORD_KINDS,
    Records,
    StrangeBufferError,
    concatenated,
    parse,
    release_of,
)
from llm_profile.timing.record_clock import RecordClock, StrangeClockError
from llm_profile.timing.replays import NodeNames, Replay

BUFFER_BYTES = 8 << 20

FLUSH_FORCED = 1
"""CUPTI_ACTIVITY_FLAG_FLUSH_FORCED: hand over buffers although some of their records may be incomplete."""

MEMORY_NAMES = {NO_NAMES[MEMCPY_KIND]: "Memcpy", NO_NAMES[MEMSET_KIND]: "Memset"}
"""What stands for the name in records of copies and memsets -> their names."""


class CuptiUnavailableError(RuntimeError):
    """CUPTI cannot be used here; the message says why."""


Requested = ctypes.CFUNCTYPE(
    None, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_size_t), ctypes.POINTER(ctypes.c_size_t)
)
Completed = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)


class Buffers:
    """Memory that CUPTI writes records to. One object serves the whole process, since CUPTI keeps its functions."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._libc.malloc.restype, self._libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        self._libc.free.argtypes = [ctypes.c_void_p]
        self._full: list[bytes] = []
        self.functions = Requested(self._request), Completed(self._complete)

    def take(self) -> list[bytes]:
        """The buffers that CUPTI has handed over since the last call."""
        taken, self._full = self._full, []
        return taken

    def _request(self, buffer: Any, size: Any, most_records: Any) -> None:
        buffer[0], size[0], most_records[0] = self._libc.malloc(BUFFER_BYTES), BUFFER_BYTES, 0

    def _complete(self, _context: Any, _stream: int, buffer: int, _size: int, valid: int) -> None:
        self._full.append(ctypes.string_at(buffer, valid))
        self._libc.free(buffer)


@cache
def buffers() -> Buffers:
    """The buffers of this process."""
    return Buffers()


def loaded_library(maps: str = "/proc/self/maps") -> ctypes.CDLL:
    """The libcupti that torch has loaded. Raises CuptiUnavailableError if there is none.

    maps: the file in which Linux lists what this process has loaded.
    """
    with open(maps, encoding="utf-8") as lines:
        paths = {line.split()[-1] for line in lines if "libcupti.so" in line}
    if len(paths) != 1:
        raise CuptiUnavailableError(f"{len(paths)} libcupti are loaded")
    return ctypes.CDLL(paths.pop())


class CuptiRecorder:
    """A `ReplayRecorder` that records until it is closed. Raises CuptiUnavailableError if that cannot be had here."""

    concurrent = True

    def __init__(self, wait: Callable[[], None] = torch.cuda.synchronize) -> None:
        self._cupti = loaded_library()
        self._wait = wait
        version = ctypes.c_uint32()
        self._call("cuptiGetVersion", ctypes.byref(version))
        if (release := release_of(version.value)) not in RECORD_BYTES:
            raise CuptiUnavailableError(f"the records of CUPTI {version.value} are of an unknown layout")
        self._record_bytes = RECORD_BYTES[release]
        self._call("cuptiActivityRegisterCallbacks", *buffers().functions)
        for kind in RECORD_KINDS:
            self._call("cuptiActivityEnable", kind)
        self._clock = RecordClock(self._ticks)
        self._flush()
        buffers().take()  # of earlier recorders

    @contextmanager
    def recording(self) -> Iterator[None]:
        yield
        self._wait()

    def graph_id(self, graph: torch.cuda.CUDAGraph) -> int:
        """CUPTI's id of the executable graph, which is in the records of its nodes."""
        number = ctypes.c_uint32()
        self._call("cuptiGetGraphExecId", ctypes.c_void_p(graph.raw_cuda_graph_exec()), ctypes.byref(number))
        return number.value

    def read(self, launched: Sequence[int]) -> list[Replay | None]:
        self._flush()
        parts = []
        for buffer in buffers().take():
            with suppress(StrangeBufferError):  # its replays count as lost, and are run again
                parts.append(parse(buffer, self._record_bytes))
        replays: dict[int, list[Replay]] = {}
        if parts:
            with suppress(StrangeClockError):
                replays = self._replays(concatenated(parts))
        return matched(replays, launched)

    def close(self) -> None:
        for kind in RECORD_KINDS:
            self._call("cuptiActivityDisable", kind)
        self._flush()
        buffers().take()

    def _flush(self) -> None:
        self._call("cuptiActivityFlushAll", FLUSH_FORCED)

    def _ticks(self) -> int:
        """CUPTI's clock now, the one of its records."""
        now = ctypes.c_uint64()
        self._call("cuptiGetTimestamp", ctypes.byref(now))
        return now.value

    def _call(self, function: str, *arguments: Any) -> None:
        try:
            result = getattr(self._cupti, function)(*arguments)
        except AttributeError:
            raise CuptiUnavailableError(f"this CUPTI has no {function}") from None
        if result:
            raise CuptiUnavailableError(f"{function} answers {result}")

    def _replays(self, records: Records) -> dict[int, list[Replay]]:
        """Id of a graph -> its replays in the order of their launches. Raises StrangeClockError."""
        of_graphs = np.flatnonzero(records.graph)
        if not len(of_graphs):
            return {}
        order = of_graphs[np.lexsort((records.node[of_graphs], records.correlation[of_graphs]))]
        sorted_ = Records._make(field[order] for field in records)
        start_ns = self._clock.to_ns(sorted_.start_ns)
        duration_ns = self._clock.to_ns(sorted_.end_ns) - start_ns
        starts = np.flatnonzero(np.diff(sorted_.correlation, prepend=sorted_.correlation[0] + 1))
        names = _Names()
        replays: dict[int, list[Replay]] = {}
        for first, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
            replay = Replay(start_ns[first:end], duration_ns[first:end], names.of(sorted_.name[first:end]))
            replays.setdefault(int(sorted_.graph[first]), []).append(replay)
        return replays


class _Names:
    """Names of kernels by their addresses, for the records of one reading: an address may be reused later."""

    def __init__(self) -> None:
        self._one = dict(MEMORY_NAMES)
        self._sequences: dict[bytes, NodeNames] = {}

    def of(self, addresses: Any) -> NodeNames:
        key = addresses.tobytes()
        if key not in self._sequences:
            self._sequences[key] = NodeNames(map(self._name, addresses.tolist()))
        return self._sequences[key]

    def _name(self, address: int) -> str:
        if address not in self._one:
            self._one[address] = torch._C._demangle(ctypes.string_at(address).decode())
        return self._one[address]


def matched(replays: dict[int, list[Replay]], launched: Sequence[int]) -> list[Replay | None]:
    """The replay of each launch. replays: id of a graph -> its replays. launched: ids in the order of launches.

    If fewer replays of a graph were recorded than launched, the first launches of it have none.
    """
    left = {graph: list(found) for graph, found in replays.items()}
    return [left[graph].pop() if left.get(graph) else None for graph in reversed(launched)][::-1]
