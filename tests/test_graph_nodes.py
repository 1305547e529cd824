"""The rows of a captured graph's nodes, with a made-up driver."""

from types import SimpleNamespace
from typing import Any

import pytest

from llm_profile.passes.graphs import CaptureError
from llm_profile.timing import graph_nodes
from llm_profile.timing.graph_nodes import GraphNodes
from llm_profile.timing.replays import NodeRows

KERNEL, MEMCPY, MEMSET, HOST, CHILD_GRAPH, EMPTY = 0, 1, 2, 3, 4, 5


class Driver:
    """Knows one graph under capture: a list of the types of its nodes. fails: every call answers with an error."""

    def __init__(self) -> None:
        self.nodes: list[int] = []
        self.fails = False
        self.asked_types = 0

    def cuStreamGetCaptureInfo_v2(self, _stream: Any, _status: Any, _id: Any, graph: Any, *_unused: Any) -> int:
        graph._obj.value = 77
        return 0

    def cuGraphGetNodes(self, graph: Any, handles: Any, count: Any) -> int:
        assert graph.value == 77
        if self.fails:
            return 901
        if handles is not None:
            assert count._obj.value == len(self.nodes)
            handles[:] = range(1, 1 + len(self.nodes))
        count._obj.value = len(self.nodes)
        return 0

    def cuGraphNodeGetType(self, node: Any, kind: Any) -> int:
        self.asked_types += 1
        kind._obj.value = self.nodes[node.value - 1]
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made_up = Driver()
    monkeypatch.setattr(graph_nodes.ctypes, "CDLL", lambda _name: made_up)
    return made_up


@pytest.fixture
def nodes(driver: Driver) -> GraphNodes:
    stream: Any = SimpleNamespace(cuda_stream=5)
    return GraphNodes(stream)


def captured(driver: Driver, nodes: GraphNodes) -> NodeRows:
    """A pass of two layers in a model, one of them with a part of its own, after a copy outside the model."""
    found: list[NodeRows] = []
    driver.nodes.clear()
    with nodes.watching(found):
        driver.nodes.append(MEMCPY)
        nodes.enter("model_other")
        driver.nodes.append(KERNEL)
        nodes.enter("attn_other")
        nodes.enter("q_proj")
        driver.nodes += [MEMSET, KERNEL, EMPTY]
        nodes.leave()
        driver.nodes.append(KERNEL)
        nodes.leave()
        nodes.enter("lm_head")
        nodes.leave()
        driver.nodes.append(HOST)
        nodes.leave()
    return found[0]


def test_nodes_belong_to_the_innermost_layer_that_is_open(driver: Driver, nodes: GraphNodes) -> None:
    found = captured(driver, nodes)
    assert found.rows == (None, "model_other", "q_proj", "q_proj", "attn_other")
    assert found.memory == (True, False, True, False, False)
    assert found.kept.tolist() == [1, 2, 3, 4] and found.kept_rows == found.rows[1:]


def test_types_are_asked_for_once_for_the_same_rows(driver: Driver, nodes: GraphNodes) -> None:
    first = captured(driver, nodes)
    asked = driver.asked_types
    assert captured(driver, nodes) is first and driver.asked_types == asked > 0


def test_outside_captures_layers_cost_no_call(driver: Driver, nodes: GraphNodes) -> None:
    driver.fails = True
    nodes.enter("q_proj")
    nodes.leave()


def test_a_graph_inside_the_graph_is_refused(driver: Driver, nodes: GraphNodes) -> None:
    with pytest.raises(CaptureError, match="type 4"), nodes.watching([]):
        driver.nodes += [KERNEL, CHILD_GRAPH]


def test_an_error_of_the_pass_comes_through(driver: Driver, nodes: GraphNodes) -> None:
    """The capture is invalid then, so the driver answers with errors while layers end."""
    found: list[NodeRows] = []
    with pytest.raises(ZeroDivisionError), nodes.watching(found):
        nodes.enter("q_proj")
        try:
            driver.fails = True
            raise ZeroDivisionError
        finally:
            nodes.leave()
    assert not found
    driver.fails = False
    assert captured(driver, nodes).rows[1] == "model_other"


def test_a_capture_that_is_invalid_at_its_end_is_an_error(driver: Driver, nodes: GraphNodes) -> None:
    with pytest.raises(CaptureError, match="901"), nodes.watching([]):
        driver.nodes.append(KERNEL)
        driver.fails = True


def test_without_the_driver_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_nodes, "DRIVER", "libno_such_driver.so")
    stream: Any = SimpleNamespace(cuda_stream=5)
    with pytest.raises(OSError):
        GraphNodes(stream)
