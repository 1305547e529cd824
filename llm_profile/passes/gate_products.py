"""The part of an MLP between its products: the activation, the gate's product, and what else stands between them.

The forward of the MLP is traced, and the operators around the activation become one function, which runs in the place
of the activation. So its time goes to the row of the activation.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from llm_profile.layers.roles import Call
from llm_profile.models.patches import overridden
from llm_profile.passes.compiling import CannotFuseError


@dataclass(frozen=True)
class GateProduct:
    """An MLP whose operators between products are one function.

    forward: of the MLP; it calls its activation with all that the function needs. function: what the activation has to
    compute then. alike: equal for functions that compute the same.
    """

    forward: Callable[..., Any]
    function: Callable[..., Any]
    alike: Any


class _Tracer(fx.Tracer):
    """Traces the forward of one module; calls of its parts stay calls."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def gate_product(mlp: nn.Module, activation: nn.Module, call: Call) -> GateProduct:
    """The operators between the products of an MLP as one function, compared with the MLP for the arguments of a call.

    Raises CannotFuseError for a forward that cannot be traced or has another structure.
    """
    try:
        graph = _Tracer().trace(mlp)
    except Exception as error:  # code that depends on values, or takes what cannot be traced, raises many types
        raise CannotFuseError(f"its forward cannot be traced: {type(error).__name__}") from error
    parts = dict(mlp.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module" and parts[str(node.target)] is activation]
    if len(calls) != 1:
        raise CannotFuseError(f"its forward calls the activation {len(calls)} times")
    inner = _connected(calls[0], parts)
    inputs = list(dict.fromkeys(a for node in inner for a in node.all_input_nodes if a not in inner))
    outputs = [node for node in inner if any(user not in inner for user in node.users)]
    if len(outputs) != 1 or any(_depends(node, inner) for node in inputs):
        raise CannotFuseError("its activation is not between two products")
    function, code = _function(inner, inputs, outputs[0], parts)
    forward = _rewritten(mlp, graph, str(calls[0].target), inner, inputs, outputs[0])
    with torch.no_grad():
        _compare(mlp, activation, forward, function, call)
    return GateProduct(forward, function, (type(activation), code))


def _connected(start: fx.Node, parts: dict[str, nn.Module]) -> list[fx.Node]:
    """The operators that are connected with an activation other than through parts with parameters, in order."""

    def is_inner(node: fx.Node) -> bool:
        if node.op == "call_module":
            return not any(True for _ in parts[str(node.target)].parameters())
        return node.op in ("call_function", "call_method")

    found, queue = {start}, [start]
    while queue:
        node = queue.pop()
        near = [other for other in (*node.all_input_nodes, *node.users) if other not in found and is_inner(other)]
        found.update(near)
        queue += near
    return [node for node in start.graph.nodes if node in found]


def _depends(node: fx.Node, inner: list[fx.Node]) -> bool:
    """Whether a node needs a result of the inner operators."""
    seen, queue = {node}, [node]
    while queue:
        for other in queue.pop().all_input_nodes:
            if other in inner:
                return True
            if other not in seen:
                seen.add(other)
                queue.append(other)
    return False


def _function(
    inner: list[fx.Node], inputs: list[fx.Node], output: fx.Node, parts: dict[str, nn.Module]
) -> tuple[Callable[..., Any], str]:
    """The inner operators as a function of their inputs, and its code. It has copies of parts, which have no hooks."""
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {node: graph.placeholder(f"part_{n}") for n, node in enumerate(inputs)}
    owned: dict[str, nn.Module] = {}
    for node in inner:
        new[node] = graph.node_copy(node, new.__getitem__)
        if node.op == "call_module":
            part = owned[str(node.target)] = copy.deepcopy(parts[str(node.target)])
            part._forward_pre_hooks.clear()
            part._forward_hooks.clear()
    graph.output(new[output])
    module = fx.GraphModule(owned, graph)
    return module.forward, f"{module.code}{owned}"


def _rewritten(
    mlp: nn.Module, graph: fx.Graph, activation: str, inner: list[fx.Node], inputs: list[fx.Node], output: fx.Node
) -> Callable[..., Any]:
    """A forward of the MLP that calls its activation with the inputs of the inner operators, in place of these."""
    last = max(inputs, key=list(graph.nodes).index)
    with graph.inserting_after(last):
        whole = graph.call_module(activation, tuple(inputs))
    output.replace_all_uses_with(whole, delete_user_cb=lambda user: user not in inner)
    for node in reversed(inner):
        graph.erase_node(node)
    graph.lint()
    forward: Callable[..., Any] = fx.GraphModule(mlp, graph).forward
    return forward


def _compare(
    mlp: nn.Module, activation: nn.Module, forward: Callable[..., Any], function: Callable[..., Any], call: Call
) -> None:
    """Raise CannotFuseError where the rewritten forward does not compute exactly what the MLP does."""
    wanted = mlp.forward(*call.args, **call.kwargs)
    try:
        with overridden(activation, "forward", function):
            found = forward(*call.args, **call.kwargs)
    except Exception as error:
        raise CannotFuseError(f"its traced forward fails: {type(error).__name__}") from error
    if not isinstance(wanted, torch.Tensor) or not torch.equal(wanted, found):
        raise CannotFuseError("its traced forward computes something else")
