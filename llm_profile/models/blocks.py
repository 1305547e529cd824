"""Which decoder blocks a model of few blocks keeps, and how it is made of them.

A model is built at full depth on the meta device, so that its own code decides what each block is. Then blocks are
dropped, those that stay get the numbers that caches and masks will look them up by, and configuration lists with an
entry a block are cut to the blocks that stayed. No configuration has to be able to express the few blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from llm_profile.block_kinds import BlockKind
from llm_profile.models.code_names import is_read

LAYER_TYPE_KEYS = ("layer_types", "layers_block_type", "block_types", "attention_layers", "mlp_layer_types")
"""Config keys that name each block's type where structure cannot tell (sliding against full attention)."""

INDEX_ATTRIBUTES = ("layer_idx", "layer_id", "kv_shared_layer_index", "layer_dic")
"""Attributes of modules that say which entry of a cache they use, or (a dictionary) have something for a block."""

DEPTH_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "num_decoder_layers")
"""Config keys that say how many blocks there are."""

INDEX_LISTS = ("cross_attention_layers",)
"""Lists of indices of blocks that a model's code looks into while it runs."""

TIED_KEYS = ("_tied_weights_keys", "all_tied_weights_keys")
"""Attributes of models that say which parameters are one."""

MATTERS_WITH: dict[str, str] = {"store_full_length_kv": "is_kv_shared_layer"}
"""Trait -> another that must be on in some block for it to matter: keys are left there for blocks that share them."""

MOST_VALUES = 4
"""A configuration list with an entry a block tells kinds apart only if it has few values: a type, not a number each."""


@dataclass(frozen=True)
class Stack:
    """A list of decoder blocks. Sibling lists of one length are one stack: block i is entry i of each."""

    paths: tuple[str, ...]

    def lists(self, model: nn.Module) -> list[nn.ModuleList]:
        return [model.get_submodule(path) for path in self.paths]  # type: ignore[misc]

    def blocks(self, model: nn.Module) -> list[tuple[nn.Module, ...]]:
        """Its blocks, each as the modules that make it up."""
        return list(zip(*self.lists(model), strict=True))


Kept = Mapping[Stack, tuple[int, ...]]
"""The original indices of the blocks of each stack that a model keeps, ascending."""


def find_stacks(model: nn.Module) -> list[Stack]:
    """The outermost module lists with members that have parts of their own, embeddings left out."""
    lists: list[str] = []
    groups: dict[tuple[str, int], list[str]] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer in lists):
            continue
        if len(module) and not any(isinstance(member, nn.Embedding) for member in module):
            lists.append(path)
            groups.setdefault((path.rpartition(".")[0], len(module)), []).append(path)
    stacks = [Stack(tuple(paths)) for paths in groups.values()]
    return [s for s in stacks if any(any(True for _ in part.children()) for block in s.blocks(model) for part in block)]


def find_kinds(model: nn.Module, stack: Stack) -> list[str]:
    """The kind of each block of a full model's stack, by name.

    Alike are blocks of the same modules, of the same shapes, with the same traits and entries in those lists of the
    configuration that the model's code reads.
    """
    blocks = stack.blocks(model)
    entries = _entries(model, len(blocks))
    types: list[str | None] = _layer_types(model, len(blocks)) or [None] * len(blocks)
    made = [_signature(block) for block in blocks]
    switched_on = {name for _, _, traits in made for *_, name, value in traits if value is True}
    idle = {name for name, other in MATTERS_WITH.items() if other not in switched_on}
    signatures = [
        (types[i], modules, shapes, tuple(trait for trait in traits if trait[-2] not in idle), entries[i])
        for i, (modules, shapes, traits) in enumerate(made)
    ]
    distinct = list(dict.fromkeys(signatures))
    names = dict(zip(distinct, _kind_names(distinct), strict=True))
    return [names[signature] for signature in signatures]


def kinds_of(kinds: Sequence[str], kept: Sequence[int]) -> list[BlockKind]:
    """The kinds of a stack: how many blocks each has, which, and which of them are `kept`."""
    of_kind = {name: tuple(i for i, kind in enumerate(kinds) if kind == name) for name in dict.fromkeys(kinds)}
    return [BlockKind(name, len(at), at, tuple(i for i in at if i in kept)) for name, at in of_kind.items()]


def first_blocks(model: nn.Module, depth: int) -> Kept:
    """The first `depth` blocks of every stack."""
    return {stack: tuple(range(min(depth, len(stack.blocks(model))))) for stack in find_stacks(model)}


def blocks_of_each_kind(model: nn.Module, num_layers: int) -> Kept:
    """The first `num_layers` blocks of each kind, of every stack of a full model."""
    kept: dict[Stack, tuple[int, ...]] = {}
    for stack in find_stacks(model):
        kinds = kinds_of(find_kinds(model, stack), ())
        kept[stack] = tuple(sorted(i for kind in kinds for i in kind.layers[:num_layers]))
    return kept


def keep_blocks(model: nn.Module, kept: Kept) -> None:
    """Drop every other block, and renumber those that stay: a cache has one entry for each, in order.

    The configuration is still that of the full model: weights are initialised by it. `keep_entries` comes last.
    """
    for stack, indices in kept.items():
        for module_list in stack.lists(model):
            members = list(module_list)
            module_list._modules.clear()
            module_list.extend(members[i] for i in indices)
    modules = {m for stack in kept for block in stack.blocks(model) for part in block for m in part.modules()}
    numbers = sorted({n for m in modules if isinstance(n := vars(m).get("layer_idx"), int) and n >= 0})
    most = max(kept.values(), key=len)  # blocks that need no cache may have no number, yet count
    new = {old: number for number, old in enumerate(most if set(numbers) <= set(most) else numbers)}
    for module in modules:
        for attribute in INDEX_ATTRIBUTES:
            old = vars(module).get(attribute)
            if isinstance(old, int) and old in new:
                setattr(module, attribute, new[old])
            elif isinstance(old, dict):
                setattr(module, attribute, {new[key]: value for key, value in old.items() if key in new})
    names = {path.rpartition(".")[2] for stack in kept for path in stack.paths}
    for module in model.modules():
        for attribute in TIED_KEYS:
            tied = vars(module).get(attribute)
            outside = {k: v for k, v in (tied or {}).items() if not any(f"{name}." in k for name in names)}
            if tied and len(outside) < len(tied):  # blocks share weights: those that stay do so under other numbers
                setattr(module, attribute, outside | _shared_parameters(module))


def _shared_parameters(model: nn.Module) -> dict[str, str]:
    """Each further name of a parameter -> the first."""
    first: dict[nn.Parameter, str] = {}
    names = model.named_parameters(remove_duplicate=False)
    return {name: first[p] for name, p in names if first.setdefault(p, name) != name}


def kept_of_depth(full_model: nn.Module, kept: Kept) -> dict[int, tuple[int, ...]]:
    """Number of blocks of a stack -> the indices that are kept, of the stack with most kinds where several have it."""
    depths: dict[int, tuple[int, ...]] = {}
    for stack, indices in kept.items():
        depth = len(stack.blocks(full_model))
        depths[depth] = max(depths.get(depth, ()), indices, key=len)
    return depths


def keep_entries(model: nn.Module, kept: Mapping[int, tuple[int, ...]]) -> None:
    """Cut what the model's configurations say of each block to the kept ones. kept: of each depth, as above."""
    for holder in [*_configs(model), *model.modules()]:
        for key in INDEX_LISTS:
            numbers = vars(holder).get(key)
            for indices in kept.values() if numbers else ():
                setattr(holder, key, [indices.index(i) for i in numbers if i in indices])
    for config in _configs(model):
        depth = next((v for key in DEPTH_KEYS if isinstance(v := vars(config).get(key), int) and v in kept), None)
        if depth is not None:
            _cut(config, depth, kept[depth])


def _cut(config: Any, depth: int, indices: tuple[int, ...]) -> None:
    """Cut a configuration's lists with an entry a block to the kept ones.

    The number of blocks stays: what a model keeps for all of its blocks in one tensor has a place for each.
    """
    derived: dict[str, Any] = {}
    for key in LAYER_TYPE_KEYS:
        if isinstance(getattr(type(config), key, None), property):
            derived[key] = getattr(config, key)
    for key, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == depth:
            setattr(config, key, type(value)(value[i] for i in indices))
    shared = vars(config).get("num_kv_shared_layers")
    if shared:
        config.num_kv_shared_layers = sum(i >= depth - shared for i in indices)
    lists = {k: [v[i] for i in indices] for k, v in derived.items() if isinstance(v, list | tuple) and len(v) == depth}
    if lists:  # worked out anew at each look from a period, which the kept blocks need not have
        config.__class__ = type(type(config).__name__, (type(config),), lists)


def _configs(model: nn.Module) -> list[Any]:
    """Every configuration object that a part of the model holds."""
    found = [vars(module).get("config") for module in model.modules()]
    held: list[Any] = [config for config in found if hasattr(config, "to_dict")]
    held += [config.get_text_config(decoder=True) for config in held]
    return list({id(config): config for config in held}.values())


def _signature(block: tuple[nn.Module, ...]) -> tuple[Any, ...]:
    """What a block is made of: its modules, the shapes of their parameters, and their traits."""
    modules, shapes, traits = [], [], []
    for number, part in enumerate(block):
        modules += [(number, path, type(m).__name__) for path, m in part.named_modules()]
        shapes += [(number, path, tuple(p.shape), p.dtype) for path, p in part.named_parameters()]
        traits += [(number, path, *trait) for path, m in part.named_modules() for trait in _traits(m)]
    return tuple(modules), tuple(shapes), tuple(traits)


def _traits(module: nn.Module) -> list[tuple[str, bool | str | None]]:
    """Attributes that switch what a module does (`is_sliding`, `use_rope`), or that it lacks (`sliding_window`)."""
    return [
        (name, value)
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "training" and (value is None or isinstance(value, bool | str))
    ]


def _entries(model: Any, depth: int) -> list[tuple[Any, ...]]:
    """What the configuration's lists say of each block."""
    lists = [
        tuple(value)
        for key, value in sorted(vars(model.config.get_text_config(decoder=True)).items())
        if isinstance(value, list | tuple)
        and len(value) == depth
        and all(isinstance(entry, bool | str | int | float) for entry in value)
        and len(set(value)) <= min(MOST_VALUES, depth - 1)
        and is_read(model, key)
    ]
    return list(zip(*lists, strict=True)) if lists else [()] * depth


def _layer_types(model: Any, depth: int) -> Any:
    text_config = model.config.get_text_config(decoder=True)
    named = (getattr(text_config, key, None) for key in LAYER_TYPE_KEYS if is_read(model, key))
    return next((list(value) for value in named if isinstance(value, list | tuple) and len(value) == depth), None)


def _of_experts(parameter: tuple[int, str, tuple[int, ...], Any]) -> bool:
    """Whether a parameter (list, path, shape, type) has a matrix per expert; a convolution over time has a row each."""
    shape = parameter[2]
    return len(shape) == 3 and shape[1] > 1


def _kind_names(signatures: Sequence[tuple[Any, ...]]) -> list[str]:
    """A short name per distinct signature: its layer type where that tells them apart, with dense or moe where not."""
    if len(signatures) == 1:
        return ["block"]
    types = [str(s[0]) if s[0] else "block" for s in signatures]
    sparse = ["moe" if any(map(_of_experts, s[2])) else "dense" for s in signatures]
    for names in (types, sparse, [f"{t}_{s}" for t, s in zip(types, sparse, strict=True)]):
        if len(set(names)) == len(names):
            return names
    longest = [f"{t}_{s}" if len(set(sparse)) > 1 else t for t, s in zip(types, sparse, strict=True)]
    return [
        f"{name}_{longest[:i].count(name) + 1}" if longest.count(name) > 1 else name for i, name in enumerate(longest)
    ]
