"""`--kernels fused`: norms, rotary function and gate products run as compiled kernels, attention copies no heads.

That is close to what serving engines run. Each part is compiled by itself, so that its time stays in its row.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from llm_profile.errors import UsageError
from llm_profile.layers.layout import Layout, expert_modules
from llm_profile.layers.roles import Roles, find_roles, launches
from llm_profile.models.patches import ROPE_FUNCTION, modelling_functions
from llm_profile.passes.attention_check import DIFFERS, attention_not_fused
from llm_profile.passes.call_sites import CallSite, Example, examples_of, replaced, site_of, tensors_of
from llm_profile.passes.compiling import CannotFuseError, Compiled
from llm_profile.passes.gate_products import gate_product
from llm_profile.passes.grouped_attention import grouped_attention
from llm_profile.passes.probing import PROBE_TOKENS
from llm_profile.passes.runner import PassRunner
from llm_profile.points import SweepPoint

GATE_METHOD = "_apply_gate"
"""Method of an experts module of transformers: the activation of all experts, and its product with the other half."""

ROPE = "rope"

CACHED_TOKENS = 63
"""Longest cache of the decode steps that show which sizes vary."""


class FusedKernels:
    """Context manager: while open, passes of `model` run fused kernels. Open it after the layout was found.

    fused: rows that have compiled kernels. not_fused: row -> why it keeps the model's kernels. max_input, max_total:
    of the passes that may run. Raises UsageError if no part of the model can be compiled.
    """

    def __init__(self, model: nn.Module, layout: Layout, runner: PassRunner, max_input: int, max_total: int) -> None:
        self.fused: list[str] = []
        self.not_fused: dict[str, str] = {}
        self._model, self._layout, self._runner = model, layout, runner
        self._max_input, self._max_total = max_input, max_total
        self._undo = ExitStack()

    def __enter__(self) -> "FusedKernels":
        with ExitStack() as undo:
            roles = find_roles(self._model, partial(self._runner.run, SweepPoint(1, 0)))
            self._name_unclear(roles)
            sites = [*self._norms(roles), *self._rotary(), *self._activations(roles), *self._gates_of_experts(roles)]
            with self._gates_apart(roles) as products:
                examples = examples_of([*sites, *products], self._runner.run, self._point_pairs())
            uncalled = {s.row: "no pass called it" for s in (*sites, *products) if s not in examples and s.row != ROPE}
            self.not_fused |= uncalled
            self._install(undo, examples, products)
            if not self.fused:
                why = next(iter(self.not_fused.values()), "it has no norms, rotary function or gate products")
                raise UsageError(f"--kernels fused: no part of this model can be compiled ({why}); use --kernels model")
            of_attention = attention_not_fused(self._model, self._runner.run, self._point_pairs(), self._layout)
            self.not_fused |= of_attention
            if DIFFERS not in of_attention.values():
                undo.enter_context(grouped_attention())
            self._runner.forget_masks()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._undo.close()

    def _name_unclear(self, roles: Roles) -> None:
        """Parts that look as if they could be fused, by their name or their place, and are not what they look like."""
        for site in self._layout.sites:
            childless = not any(True for _ in site.module.children()) and not isinstance(site.module, nn.Identity)
            if childless and "norm" in site.row and site.module not in roles.norms:
                self.not_fused[site.row] = "it computed no norm in a pass of one token"
        self.not_fused |= {
            self._layout.row_of(module): "it is no activation of single values" for module in roles.unclear
        }

    def _norms(self, roles: Roles) -> Iterator[CallSite]:
        for module in roles.norms:
            yield self._forward(module)

    def _rotary(self) -> Iterator[CallSite]:
        for namespace, name, function in modelling_functions(self._model, ROPE_FUNCTION):
            yield CallSite(ROPE, namespace, name, function)

    def _activations(self, roles: Roles) -> Iterator[CallSite]:
        """Activations that no product follows, and that launch several kernels."""
        for module, call in roles.activations.items():
            if module not in roles.products and launches(module.forward, call) > 1:
                yield self._forward(module)

    def _forward(self, module: nn.Module) -> CallSite:
        shapes = tuple(parameter.shape for parameter in module.parameters())
        return site_of(module, "forward", self._layout.row_of(module), shapes)

    def _gates_of_experts(self, roles: Roles) -> Iterator[CallSite]:
        """What experts compute between their products, where it is a method of its own."""
        beside = {
            part for m in self._model.modules() if {*m.children()} & {*roles.activations} for part in m.children()
        }
        for module in expert_modules(self._model):
            row = self._layout.row_of(module)
            if _has_gate_method(module):
                yield site_of(module, GATE_METHOD, row)
            elif module not in beside and sum(p.ndim == 3 for p in module.parameters(recurse=False)) > 1:
                self.not_fused[row] = "the gate product is inside other code"

    @contextmanager
    def _gates_apart(self, roles: Roles) -> Iterator[dict[CallSite, CallSite]]:
        """While open, MLPs run what is between their products as one function, in the place of their activation.

        Gives the site of each such activation, with that of its MLP.
        """
        products: dict[CallSite, CallSite] = {}
        with ExitStack() as undo:
            for activation, mlp in roles.products.items():
                if _has_gate_method(mlp):
                    continue
                row = self._layout.row_of(activation)
                try:
                    if self._uses(activation) > 1:
                        raise CannotFuseError("several modules share the activation")
                    apart = gate_product(mlp, activation, roles.container_calls[mlp])
                except CannotFuseError as error:
                    self.not_fused[row] = str(error)
                    continue
                whole = CallSite(row, mlp, "forward", apart.forward)
                undo.enter_context(replaced(whole, whole.function))
                products[CallSite(row, activation, "forward", apart.function, alike=apart.alike)] = whole
            yield products

    def _uses(self, module: nn.Module) -> int:
        """Number of places in the model that have this module."""
        return sum(each is module for _, each in self._model.named_modules(remove_duplicate=False))

    def _point_pairs(self) -> list[tuple[SweepPoint, ...]]:
        """Points at which kernels are compiled; those of a pair differ in one length."""
        longest, cached = min(PROBE_TOKENS, self._max_input), min(CACHED_TOKENS, self._max_total - 1)
        pairs: list[tuple[SweepPoint, ...]] = [(SweepPoint(1, 0),)]
        if longest > 1:
            pairs.append((SweepPoint(longest - 1, 0), SweepPoint(longest, 0)))
        if cached > 1:
            pairs.append((SweepPoint(1, cached - 1), SweepPoint(1, cached)))
        return pairs

    def _install(
        self, undo: ExitStack, examples: dict[CallSite, list[Example]], products: dict[CallSite, CallSite]
    ) -> None:
        """Compile each function once for all sites that share it, and let the model's code find the compiled ones."""
        compiled: dict[Any, Compiled] = {}
        fused: dict[str, None] = {}
        for site, of_site in examples.items():
            shapes = repr([[(tensor.shape, tensor.dtype) for tensor in tensors_of(call)] for call, _ in of_site])
            function = compiled.setdefault((site.kind, shapes), Compiled(site.function))
            try:
                function.check(site.function, site.bound, of_site)
            except CannotFuseError as error:
                self.not_fused[site.row] = str(error)
                continue
            undo.enter_context(replaced(site, partial(function, *site.bound)))
            if (whole := products.get(site)) is not None:
                undo.enter_context(replaced(whole, whole.function))
            fused[site.row] = None
        self.fused = [row for row in fused if row not in self.not_fused]


def _has_gate_method(module: nn.Module) -> bool:
    return callable(getattr(type(module), GATE_METHOD, None))
