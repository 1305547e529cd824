"""Which layer each node of a graph belongs to, read from the graph while it is captured.

The driver tells how many nodes the graph under capture has. Read whenever a layer starts or ends, that number says
exactly which nodes the layer launched, without running the pass and without comparing names.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from llm_profile.passes.graphs import CaptureError
from llm_profile.timing.replays import NodeRows

DRIVER = "libcuda.so.1"

CAPTURE_INFO = (("cuStreamGetCaptureInfo_v3", 3), ("cuStreamGetCaptureInfo_v2", 2))
"""Names of the driver's function that tells the graph under capture, with the number of pointers that come after it."""

KERNEL_NODE, MEMCPY_NODE, MEMSET_NODE = 0, 1, 2
SILENT = {3, 5, 6, 7}
"""Values of CUgraphNodeType. SILENT: host functions, empty nodes and events, which do no work on the device."""


class GraphNodes:
    """Counts nodes of graphs under capture; a `Recorder` of layers/ranges.py.

    Raises OSError if the driver's library is missing, as on ROCm.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._driver = ctypes.CDLL(DRIVER)
        self._stream = ctypes.c_void_p(stream.cuda_stream)
        self._graph: ctypes.c_void_p | None = None  # None outside captures
        self._open: list[str] = []
        self._rows: list[str | None] = []  # of the nodes so far
        self._known: dict[tuple[str | None, ...], NodeRows] = {}

    def enter(self, row: str) -> None:
        self._mark()
        self._open.append(row)

    def leave(self) -> None:
        self._mark()
        self._open.pop()

    @contextmanager
    def watching(self, found: list[NodeRows]) -> Iterator[None]:
        """Context of a pass inside a capture. Adds the rows of its nodes to `found` when it ends without an error.

        Raises CaptureError for a graph with nodes of which no records are known, such as graphs inside of it.
        """
        self._graph, self._rows = self._graph_under_capture(), []
        try:
            yield
            self._mark()
            found.append(self._labelled())
        finally:
            self._graph = None

    def _mark(self) -> None:
        """Give the nodes since the last mark to the innermost open row."""
        if self._graph is None:
            return
        count = ctypes.c_size_t()
        if self._driver.cuGraphGetNodes(self._graph, None, ctypes.byref(count)):
            return  # the capture has failed, so the pass raises an error of its own
        owner = self._open[-1] if self._open else None
        self._rows += [owner] * (count.value - len(self._rows))

    def _labelled(self) -> NodeRows:
        """The rows of the graph under capture.

        Passes with the same rows are taken to have the same types of nodes, which take long to ask for. If they do not,
        their replays do not fit.
        """
        rows = tuple(self._rows)
        if rows not in self._known:
            self._known[rows] = self._asked()
        return self._known[rows]

    def _asked(self) -> NodeRows:
        nodes, count = (ctypes.c_void_p * len(self._rows))(), ctypes.c_size_t(len(self._rows))
        self._check(self._driver.cuGraphGetNodes(self._graph, nodes, ctypes.byref(count)))
        kind, kinds = ctypes.c_int(), []
        for node in nodes:
            self._check(self._driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)))
            kinds.append(kind.value)
        if strange := set(kinds) - SILENT - {KERNEL_NODE, MEMCPY_NODE, MEMSET_NODE}:
            raise CaptureError(f"its graph has nodes of type {min(strange)}, whose kernels cannot be told apart")
        recorded = [(row, kind) for row, kind in zip(self._rows, kinds, strict=True) if kind not in SILENT]
        return NodeRows(tuple(row for row, _ in recorded), tuple(kind != KERNEL_NODE for _, kind in recorded))

    def _graph_under_capture(self) -> ctypes.c_void_p:
        status, number, graph = ctypes.c_int(), ctypes.c_ulonglong(), ctypes.c_void_p()
        for name, pointers in CAPTURE_INFO:
            with suppress(AttributeError):
                function = getattr(self._driver, name)
                unused = [ctypes.byref(ctypes.c_void_p()) for _ in range(pointers)]
                self._check(
                    function(self._stream, ctypes.byref(status), ctypes.byref(number), ctypes.byref(graph), *unused)
                )
                return graph
        raise CaptureError("the driver is too old to tell which graph is captured")

    @staticmethod
    def _check(result: int) -> None:
        if result:
            raise CaptureError(f"the driver answers {result} when asked about the graph under capture")
