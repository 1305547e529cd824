"""Which modules of a live model are layers, and the names of their rows.

Nothing here knows a model by name. Blocks are found by structure, attention by where the attention interface is called,
and what differs between families is data: the tables below.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn
from transformers.modeling_utils import AttentionInterface

from llm_profile.backends.base import BlockKind
from llm_profile.errors import UsageError

ALIASES: dict[tuple[str, str], str] = {
    # (level, attribute) -> canonical name; level: model (outside blocks), attn, mlp, block (anywhere else in a block)
    ("model", "embed_tokens"): "embedding",
    ("model", "wte"): "embedding",
    ("model", "embed_in"): "embedding",
    ("model", "word_embeddings"): "embedding",
    ("model", "norm"): "final_layernorm",
    ("model", "ln_f"): "final_layernorm",
    ("model", "final_layer_norm"): "final_layernorm",
    ("model", "final_layernorm"): "final_layernorm",
    ("model", "embed_out"): "lm_head",
    ("block", "self_attn_layer_norm"): "input_layernorm",
    ("block", "ln_1"): "input_layernorm",
    ("block", "post_attention_layernorm"): "post_layernorm",
    ("block", "final_layer_norm"): "post_layernorm",
    ("block", "ln_2"): "post_layernorm",
    ("block", "activation_fn"): "act_fn",
    ("attn", "out_proj"): "o_proj",
    ("mlp", "act"): "act_fn",
    ("mlp", "activation_fn"): "act_fn",
    ("mlp", "router"): "gate",
}
"""The one place where a layer gets a canonical name. What is not here keeps its attribute name."""

MODEL_OTHER = "model_other"
"""Row of everything launched outside blocks that is no layer: the rotary table, positions, masks."""

CONTAINER_ALIASES: dict[str, str] = {"block_sparse_moe": "mlp", "feed_forward": "mlp", "ffn": "mlp", "moe": "mlp"}
"""Attribute of a container in a block -> the stem of its `_other` row."""

ROPE_FUNCTION = re.compile(r"^apply_(rotary|rope|multimodal_rotary)")
"""Module-level functions of modelling files that rotate queries and keys."""

MASK_FUNCTION = re.compile(r"^create_\w*mask\w*$")
"""Module-level functions of modelling files that build attention masks."""

LAYER_TYPE_KEYS = ("layer_types", "layers_block_type", "block_types")
"""Config keys that name each block's type where structure cannot tell (sliding against full attention)."""


@dataclass(frozen=True)
class Site:
    """A module whose own GPU time goes to `row`; its sub-modules may have rows of their own."""

    module: nn.Module
    row: str
    kind: str | None


@dataclass(frozen=True)
class Layout:
    """The rows of one live model.

    sites: every module that gets a range, outer before inner. kinds: the kinds of blocks of the full model.
    block_kind: the kept blocks in order, each with its kind. learned_positions: length of a learned position table,
    None where positions do not end.
    """

    sites: tuple[Site, ...]
    kinds: tuple[BlockKind, ...]
    block_kind: dict[nn.Module, str]
    learned_positions: int | None

    def profiled(self, kind: str) -> int:
        """How many blocks of this kind are measured."""
        return next(len(k.profiled) for k in self.kinds if k.name == kind)

    def block_rows(self) -> dict[str, str]:
        """Row -> kind for every row of blocks; what is not here is a row of the model."""
        rows = {site.row: site.kind for site in self.sites if site.kind is not None}
        for kind in self.kinds:
            rows |= {self.qualify(kind.name, row): kind.name for row in ("attn", "rope")}
        return rows

    def blocks(self, row: str) -> int:
        """How many profiled blocks a row's time is summed over; 1 for a row of the model."""
        return self._blocks_of_row.get(row, 1)

    @cached_property
    def _blocks_of_row(self) -> dict[str, int]:
        return {row: self.profiled(kind) for row, kind in self.block_rows().items()}

    def qualify(self, kind: str | None, row: str) -> str:
        """Row name as tables carry it: the kind stands in front where a model has blocks of several kinds."""
        return f"{kind}.{row}" if kind is not None and len(self.kinds) > 1 else row


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace one attribute (or entry of a module's globals) and put back the very same object after."""
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def modelling_functions(model: nn.Module, pattern: re.Pattern[str]) -> list[tuple[Any, str, Callable[..., Any]]]:
    """(module object, name, function) of matching functions in every file that the model's classes come from."""
    files = {type(m).__module__ for m in model.modules() if type(m).__module__.startswith("transformers")}
    found = []
    for file in sorted(files):
        namespace = sys.modules[file]
        for name, value in sorted(vars(namespace).items()):
            if pattern.match(name) and callable(value):
                found.append((namespace, name, value))
    return found


@dataclass
class _Probe:
    """What one small forward pass showed: which modules ran, and in which module attention was computed."""

    fired: list[nn.Module]
    attention_callers: set[nn.Module]


def _probe(model: nn.Module, forward: Callable[[], Any]) -> _Probe:
    """Run one pass and watch it. Leaves no hook behind."""
    probe = _Probe([], set())
    stack: list[nn.Module] = []
    handles = []

    def enter(module: nn.Module, _args: Any) -> None:
        probe.fired.append(module)
        stack.append(module)

    def leave(module: nn.Module, _args: Any, _output: Any) -> None:
        stack.pop()

    original = AttentionInterface.get_interface

    def get_interface(self: Any, *args: Any, **kwargs: Any) -> Any:
        probe.attention_callers.add(stack[-1])
        return original(self, *args, **kwargs)

    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave, always_call=True))
        with patched(AttentionInterface, "get_interface", get_interface):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    probe.fired = list(dict.fromkeys(probe.fired))
    return probe


def find_stacks(model: nn.Module, fired: set[nn.Module]) -> list[tuple[str, nn.ModuleList]]:
    """The outermost module lists whose members ran and are no embeddings: the lists of decoder blocks."""
    stacks: list[tuple[str, nn.ModuleList]] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(outer + ".") for outer, _ in stacks):
            continue
        members = [m for m in module if m in fired]
        if members and not any(isinstance(m, nn.Embedding) for m in members):
            stacks.append((path, module))
    return stacks


def is_experts(module: nn.Module) -> bool:
    """Whether a module owns parameters with one matrix per expert: [num_experts, ., .]."""
    own = not type(module).__module__.startswith("torch.nn.")
    return own and any(p.ndim == 3 and p.shape[0] > 1 for p in module.parameters(recurse=False))


def _signature(block: nn.Module, layer_type: str | None) -> tuple[Any, ...]:
    """What makes two blocks alike: their modules, the shapes of their parameters and the type that the config names."""
    modules = tuple((path, type(m).__name__) for path, m in block.named_modules())
    shapes = tuple((path, tuple(p.shape)) for path, p in block.named_parameters())
    return modules, shapes, layer_type


def _layer_types(config: Any) -> list[str] | None:
    text_config = config.get_text_config(decoder=True)
    return next((list(v) for key in LAYER_TYPE_KEYS if (v := getattr(text_config, key, None))), None)


def _kind_names(signatures: list[tuple[Any, ...]]) -> list[str]:
    """A short name per distinct signature: its layer type where that tells them apart, with dense or moe where not."""
    if len(signatures) == 1:
        return ["block"]
    types = [str(s[2]) if s[2] else "block" for s in signatures]
    sparse = ["moe" if any(len(shape) == 3 for _, shape in s[1]) else "dense" for s in signatures]
    for names in (types, sparse, [f"{t}_{s}" for t, s in zip(types, sparse, strict=True)]):
        if len(set(names)) == len(names):
            return names
    return [f"{name}{i}" for i, name in enumerate(types)]


def find_kinds(kept: list[nn.Module], full: list[nn.Module], config: Any) -> tuple[list[BlockKind], list[str]]:
    """Group the full model's blocks into kinds. Returns the kinds and the kind name of each kept block.

    kept: live blocks, the first of the model. full: the same stack at full depth (on the meta device), of `config`.
    Raises UsageError if a kind of the full model has no kept block.
    """
    layer_types = _layer_types(config)
    typed = layer_types is not None and len(layer_types) == len(full)
    signatures = [_signature(b, layer_types[i] if typed and layer_types else None) for i, b in enumerate(full)]
    distinct = list(dict.fromkeys(signatures))
    names = dict(zip(distinct, _kind_names(distinct), strict=True))
    of_block = [names[s] for s in signatures]
    kept_kinds = of_block[: len(kept)]
    kinds = []
    for name in names.values():
        layers = tuple(i for i, n in enumerate(of_block) if n == name)
        profiled = tuple(i for i in layers if i < len(kept))
        if not profiled:
            raise UsageError(
                f"--num-layers {len(kept)}: the model's blocks are of several kinds and the first {name} block is "
                f"number {layers[0] + 1}; use --num-layers {layers[0] + 1} or more"
            )
        kinds.append(BlockKind(name, len(layers), layers, profiled))
    return kinds, kept_kinds


def _block_rows(block: nn.Module, probe: _Probe) -> list[tuple[nn.Module, str]]:
    """(module, row) for each module of one block that ran, outer before inner."""
    fired = set(probe.fired)
    paths = {path: m for path, m in block.named_modules() if m in fired}
    mixers = {m for m in paths.values() if m in probe.attention_callers}
    if not mixers:  # no attention interface: the container that runs first mixes tokens
        containers = [m for m in probe.fired if m in set(block.children()) and any(True for _ in m.children())]
        mixers = set(containers[:1])
    experts = [path for path, m in paths.items() if path and is_experts(m)]
    named: list[tuple[nn.Module, str, str]] = []  # (module, path without indices, row)
    for path, module in paths.items():
        if any(path.startswith(outer + ".") for outer in experts):
            continue
        parts = [p for p in path.split(".") if not p.isdigit()]
        if path in experts:
            row = "experts"
        elif any(m in fired for m in module.children()):
            stem = "attn" if module in mixers else CONTAINER_ALIASES.get(parts[-1], parts[-1]) if path else "block"
            row = "attn" if module in mixers and module not in probe.attention_callers else f"{stem}_other"
        else:
            parent = paths.get(path.rpartition(".")[0])
            level = "attn" if parent in mixers else "block" if parent is block else "mlp"
            row = ALIASES.get((level, parts[-1]), parts[-1])
        named.append((module, ".".join(parts), row))
    return _resolve_collisions(named)


def _resolve_collisions(named: list[tuple[nn.Module, str, str]]) -> list[tuple[nn.Module, str]]:
    """Qualify rows by their parent where two different places would share a name."""
    places = {(row, place) for _, place, row in named}
    shared = Counter(row for row, _ in places)
    rows = []
    for module, place, row in named:
        parent = place.rpartition(".")[0].rpartition(".")[2]
        rows.append((module, f"{parent}.{row}" if shared[row] > 1 and parent else row))
    return rows


def _learned_positions(model: nn.Module, fired: list[nn.Module]) -> int | None:
    """Length of the learned position table, if an embedding of positions runs beside the one of tokens."""
    config: Any = model.config
    text_config = config.get_text_config(decoder=True)
    declared = getattr(text_config, "max_position_embeddings", None)
    tables = [m for m in fired if isinstance(m, nn.Embedding) and m.num_embeddings != text_config.vocab_size]
    if declared and any(declared <= t.num_embeddings <= declared + 8 for t in tables):  # OPT keeps 2 rows in reserve
        return int(declared)
    return None


def walk(model: nn.Module, full_model: nn.Module, forward: Callable[[], Any]) -> Layout:
    """Find the layers of `model` by watching one small pass.

    full_model: the same architecture at full depth on the meta device, for the count of each kind of block.
    forward: runs one small pass of `model`. Raises UsageError if no blocks are found or a kind has no kept block.
    """
    probe = _probe(model, forward)
    fired = set(probe.fired)
    stacks = find_stacks(model, fired)
    if not stacks:
        raise UsageError(f"--model: no list of decoder blocks was found in {type(model).__name__}")
    kinds: list[BlockKind] = []
    block_kind: dict[nn.Module, str] = {}
    for path, stack in stacks:
        full: Any = full_model.get_submodule(path)
        stack_kinds, names = find_kinds(list(stack), list(full), full_model.config)
        kinds += stack_kinds
        block_kind.update(zip(stack, names, strict=True))
    layout = Layout((), tuple(kinds), block_kind, _learned_positions(model, probe.fired))

    sites: list[Site] = []
    inside: set[nn.Module] = set()
    for block, kind in block_kind.items():
        inside.update(block.modules())
        for module, row in _block_rows(block, probe):
            sites.append(Site(module, layout.qualify(kind, row), kind))
    for path, module in model.named_modules():
        childless = not any(True for _ in module.children())
        if module in fired and module not in inside and childless and any(True for _ in module.parameters()):
            attribute = path.rpartition(".")[2]
            sites.append(Site(module, ALIASES.get(("model", attribute), attribute), None))
    return replace(layout, sites=tuple(sites))


def expert_modules(model: nn.Module) -> list[nn.Module]:
    """Modules that hold all experts of one block."""
    return [m for m in model.modules() if is_experts(m)]
