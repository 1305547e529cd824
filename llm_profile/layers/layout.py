"""Which modules of a loaded model are layers, and the names of their rows.

No code here depends on the name of a model. Blocks are found by their structure, and attention by the module that calls
the attention interface of transformers. The names that model families use for their layers are in the tables below.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from llm_profile.block_kinds import BlockKind
from llm_profile.errors import UsageError
from llm_profile.layers.naming import Named, Place, distinct_rows, without_indices
from llm_profile.layers.probe import Probe, probe
from llm_profile.models.blocks import Kept, Stack, find_kinds, kinds_of
from llm_profile.models.transformers_names import takes

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
    ("model", "final_norm"): "final_layernorm",
    ("model", "norm_f"): "final_layernorm",
    ("model", "ln_out"): "final_layernorm",
    ("model", "out_norm"): "final_layernorm",
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
"""Names of layers that all families share. A layer that is not in this table keeps the name of its attribute."""

FINAL_NORM = "final_layernorm"
"""Row of the norm behind the blocks: the first module with this alias that runs after them.

Other modules with the alias belong to the embedding or to the head, and keep the names of their attributes.
"""

ROW_OF_GETTER: dict[str, str] = {"get_input_embeddings": "embedding", "get_output_embeddings": "lm_head"}
"""Method of transformers' models that returns the first or the last layer -> its row, whatever its attribute's name."""

MODEL_OTHER = "model_other"
"""Row of what is launched outside blocks and by no layer: the rotary table, positions, masks."""

CONTAINER_ALIASES: dict[str, str] = {"block_sparse_moe": "mlp", "feed_forward": "mlp", "ffn": "mlp", "moe": "mlp"}
"""Attribute of a module with parts in a block -> the name in front of `_other` in its row."""

ATTENTION_NAME = re.compile(r"(^|_)(attn|attention|self)$")
"""Attributes of modules that compute attention by themselves, without the attention interface."""

LINEAR_NAME = re.compile(r"linear|delta|lightning")
"""Attributes of attention without a softmax: its row keeps the attribute's name, since it costs other than `attn`."""


EXPERT_INDICES = "top_k_index"
"""Argument in which an experts module of transformers receives the indices of the experts chosen for each token."""


@dataclass(frozen=True)
class Site:
    """A module with the row that its GPU time goes to, without the time of sub-modules that have rows of their own.

    kind: the kind of the module's block; None outside blocks.
    """

    module: nn.Module
    row: str
    kind: str | None


@dataclass(frozen=True)
class Layout:
    """The rows of a loaded model.

    sites: every module that has a row, outer before inner. kinds: the kinds of blocks of the full model. block_kind:
    the kept blocks in order, each with the name of its kind. learned_positions: most tokens that the model has
    positions for, None for no limit.
    """

    sites: tuple[Site, ...]
    kinds: tuple[BlockKind, ...]
    block_kind: dict[nn.Module, str]
    learned_positions: int | None

    def profiled(self, kind: str) -> int:
        """Number of blocks of this kind that are measured."""
        return next(len(k.profiled) for k in self.kinds if k.name == kind)

    def block_rows(self) -> dict[str, str]:
        """Row -> kind of block, for every row inside blocks. Any other row is outside blocks."""
        rows = {site.row: site.kind for site in self.sites if site.kind is not None}
        for kind in self.kinds:
            rows |= {self.qualify(kind.name, row): kind.name for row in ("attn", "rope")}
        return rows

    def blocks(self, row: str) -> int:
        """Number of profiled blocks whose time a row sums up; 1 for a row outside blocks."""
        return self._blocks_of_row.get(row, 1)

    @cached_property
    def _blocks_of_row(self) -> dict[str, int]:
        return {row: self.profiled(kind) for row, kind in self.block_rows().items()}

    def row_of(self, module: nn.Module) -> str:
        """The row that a module's time goes to: its own, or else that of the innermost module around it with a row."""
        around = [site.row for site in self.sites if any(m is module for m in site.module.modules())]
        return around[-1] if around else MODEL_OTHER

    def qualify(self, kind: str | None, row: str) -> str:
        """The row's name in the table: the kind stands in front, if the model has blocks of several kinds."""
        return f"{kind}.{row}" if kind is not None and len(self.kinds) > 1 else row


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds all experts of a block, judged by its parameters and its arguments.

    It either owns a parameter with a matrix per expert, [num_experts, ., .], and has no sub-module with parameters (a
    token mixer with a matrix per head has some); or it has `num_experts` and an argument EXPERT_INDICES.
    """
    if type(module).__module__.startswith("torch.nn."):
        return False
    own = list(module.parameters(recurse=False))
    if any(p.ndim == 3 and p.shape[0] > 1 for p in own):
        return len(own) == len(list(module.parameters()))
    return isinstance(getattr(module, "num_experts", None), int) and takes(module, EXPERT_INDICES)


def _block_rows(block: nn.Module, above: Place, seen: Probe, mixtures: set[nn.Module]) -> list[Named]:
    """Each module of one block that ran, outer before inner, with its place and the row that it should get.

    Names of rows are not yet distinct. above: put in front of each place, for blocks that consist of several modules.
    mixtures: the modules that hold experts.
    """
    fired = set(seen.fired)
    paths = {path: m for path, m in block.named_modules() if m in fired}
    mixers = {m for path, m in paths.items() if m in seen.attention_callers or _attends(path, m, seen)}
    experts = [path for path, m in paths.items() if path and m in mixtures]
    named: list[Named] = []
    for path, module in paths.items():
        if any(path.startswith(outer + ".") for outer in experts):
            continue
        parts = without_indices(path)
        if path in experts:
            row = "experts"
        elif any(m in fired for m in module.children()):
            row = _container_row(parts, module, mixers, seen)
        else:
            parent = paths.get(path.rpartition(".")[0])
            level = "attn" if parent in mixers else "block" if parent is block else "mlp"
            attribute = parts[-1] if parts else "block"
            row = "attn" if module in mixers else ALIASES.get((level, attribute), attribute)
        named.append(Named(module, (*above, *parts), row))
    return named


def _attends(path: str, module: nn.Module, seen: Probe) -> bool:
    """Whether a module computes attention without the attention interface: it launches kernels and is so named."""
    computes = module in seen.own_kernels and type(module).__module__.startswith("transformers")
    attribute = path.rpartition(".")[2]
    return computes and bool(ATTENTION_NAME.search(attribute)) and not LINEAR_NAME.search(attribute)


def _container_row(parts: Place, module: nn.Module, mixers: set[nn.Module], seen: Probe) -> str:
    """The row of a module with parts, for what it launches itself.

    That is an `_other` row, unless the module itself runs operators that are a layer's work (Probe.own_kernels).
    """
    attribute = CONTAINER_ALIASES.get(parts[-1], parts[-1]) if parts else "block"
    stem = "attn" if module in mixers else attribute
    if module not in seen.own_kernels:
        return f"{stem}_other"
    return attribute if module in seen.attention_callers else stem


def _model_rows(model: nn.Module, seen: Probe, inside: set[nn.Module], taken: set[str]) -> list[tuple[nn.Module, str]]:
    """Each layer outside blocks with its row, outer before inner.

    inside: all modules of blocks. taken: rows of blocks, which these rows must differ from.
    """
    order = {module: number for number, module in enumerate(seen.fired)}
    behind_blocks = max(order[module] for module in inside & order.keys())
    first_and_last = _first_and_last_layer(model)
    known: list[Named] = []
    others: list[Named] = []
    for path, module in model.named_modules():
        works = module in seen.own_kernels or not any(True for _ in module.children())
        if module not in order or module in inside or not works or not any(True for _ in module.parameters()):
            continue
        place = ("model", *without_indices(path))
        if (end := first_and_last.get(module)) is not None:
            known.append(Named(module, ("model", end), end))
        else:
            row = ALIASES.get(("model", place[-1]), place[-1]) if path else "lm_head"
            others.append(Named(module, place, row))
    norms = [layer for layer in others if layer.row == FINAL_NORM and order[layer.module] > behind_blocks]
    known += sorted(norms, key=lambda norm: order[norm.module])[:1]
    rows = {FINAL_NORM, *(layer.row for layer in known)}
    others = [o._replace(row=o.place[-1]) if o.row in rows else o for o in others if o not in known]
    row_of = dict(distinct_rows(known, taken) + distinct_rows(others, taken | rows))
    return [(module, row_of[module]) for module in model.modules() if module in row_of]


def _first_and_last_layer(model: nn.Module) -> dict[nn.Module, str]:
    """The embedding and the head, each with all of its parts, and the row. A module that is both has the first's."""
    rows: dict[nn.Module, str] = {}
    for method, row in ROW_OF_GETTER.items():
        with suppress(NotImplementedError):
            layer = getattr(model, method)()
            rows = dict.fromkeys(layer.modules() if layer is not None else (), row) | rows
    return rows


def find_layout(
    model: nn.Module, full_model: nn.Module, kept: Kept, forward: Callable[[], Any], learned_positions: int | None
) -> Layout:
    """Find the layers of `model` by watching which modules run in small passes.

    full_model: the same architecture at full depth on the meta device, which tells how many blocks of each kind there
    are. kept: the blocks of full_model that `model` has. forward: runs the small passes. learned_positions: see Layout.

    Raises UsageError if no list of decoder blocks is found.
    """
    seen = probe(model, forward)
    fired = set(seen.fired)
    ran = [s for s in kept if any(m in fired for block in s.blocks(model) for part in block for m in part.modules())]
    if not ran:
        raise UsageError(f"--model: no list of decoder blocks was found in {type(model).__name__}")
    kinds: list[BlockKind] = []
    block_kind: dict[nn.Module, str] = {}
    above: dict[nn.Module, Place] = {}  # for blocks of several modules: each of these -> the name of its list
    for stack, label in zip(ran, _labels(ran), strict=True):
        names = [_label_kind(label, kind) for kind in find_kinds(full_model, stack)]
        kinds += kinds_of(names, kept[stack])
        for index, block in zip(kept[stack], stack.blocks(model), strict=True):
            block_kind.update(dict.fromkeys(block, names[index]))
            if len(block) > 1:
                above |= {part: without_indices(path)[-1:] for path, part in zip(stack.paths, block, strict=True)}
    layout = Layout((), tuple(kinds), block_kind, learned_positions)

    mixtures = set(expert_modules(model))
    sites: dict[nn.Module, Site] = {}  # a module that several blocks share has one row, that of the first kind
    for kind in layout.kinds:
        blocks = [block for block, name in block_kind.items() if name == kind.name]
        named = [row for block in blocks for row in _block_rows(block, above.get(block, ()), seen, mixtures)]
        for module, row in distinct_rows(named):
            sites.setdefault(module, Site(module, layout.qualify(kind.name, row), kind.name))
    inside = {module for block in block_kind for module in block.modules()}
    taken = set(replace(layout, sites=tuple(sites.values())).block_rows())
    sites |= {module: Site(module, row, None) for module, row in _model_rows(model, seen, inside, taken)}
    return replace(layout, sites=tuple(sites.values()))


def _labels(stacks: list[Stack]) -> list[str]:
    """A name for each stack: none if there is one stack; else the name of its list, or the path if names are equal."""
    if len(stacks) == 1:
        return [""]
    last = [stack.paths[0].rpartition(".")[2] for stack in stacks]
    return last if len(set(last)) == len(last) else [stack.paths[0].replace(".", "_") for stack in stacks]


def _label_kind(label: str, kind: str) -> str:
    return kind if not label else label if kind == "block" else f"{label}_{kind}"


def expert_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that each hold all experts of a block; none where the configuration mentions no experts.

    The configuration is asked because parameters with a matrix per head look the same (XLNet, RecurrentGemma).
    """
    config: Any = model.config
    if "experts" not in str(config.get_text_config(decoder=True).to_dict()):
        return []
    return [module for module in model.modules() if is_experts(module)]


def num_experts(module: nn.Module) -> int:
    """Number of experts in a module that `expert_modules` found."""
    counts = [p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3]
    return counts[0] if counts else int(module.num_experts)  # type: ignore[arg-type]
