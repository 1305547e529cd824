"""Which decoder blocks a model of few blocks keeps, and how it is made of them.

A model is built at full depth on the meta device, so that its own code decides what each block is. Then blocks are
dropped, those that stay get the numbers that caches and masks will look them up by, and configuration lists with an
entry a block are cut to the blocks that stayed. No configuration has to be able to express the few blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from llm_profile.backends.base import BlockKind

LAYER_TYPE_KEYS = ("layer_types", "layers_block_type", "block_types", "attention_layers", "mlp_layer_types")
"""Config keys that name each block's type where structure cannot tell (sliding against full attention)."""

INDEX_ATTRIBUTES = ("layer_idx", "layer_id", "kv_shared_layer_index")
"""Attributes of modules that say which entry of a cache they use."""

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
    return [
        Stack(tuple(paths))
        for paths in groups.values()
        if any(any(True for _ in member.children()) for path in paths for member in _list(model, path))
    ]


def _list(model: nn.Module, path: str) -> Any:
    return model.get_submodule(path)


def find_kinds(model: nn.Module, stack: Stack) -> list[str]:
    """The kind of each block of a full model's stack, by name.

    Alike are blocks of the same modules, of the same shapes, with the same traits and entries in the configuration.
    """
    blocks = stack.blocks(model)
    entries = _entries(model.config, len(blocks))
    types: list[str | None] = _layer_types(model.config, len(blocks)) or [None] * len(blocks)
    signatures = [(types[i], *_signature(block), entries[i]) for i, block in enumerate(blocks)]
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
    """Drop every other block, and renumber those that stay: a cache has one entry for each, in order."""
    depths = {}
    numbers: set[int] = set()
    for stack, indices in kept.items():
        for module_list in stack.lists(model):
            members = list(module_list)
            depths[len(members)] = indices
            module_list._modules.clear()
            module_list.extend(members[i] for i in indices)
        for block in stack.blocks(model):
            numbers |= {vars(m)["layer_idx"] for m in _modules(block) if isinstance(vars(m).get("layer_idx"), int)}
    new = {old: number for number, old in enumerate(sorted(numbers))}
    for module in {m for stack in kept for block in stack.blocks(model) for m in _modules(block)}:
        for attribute in INDEX_ATTRIBUTES:
            old = vars(module).get(attribute)
            if isinstance(old, int) and old in new:
                setattr(module, attribute, new[old])
    for config in _configs(model):
        _cut(config, depths, len(numbers))


def _cut(config: Any, depths: Mapping[int, tuple[int, ...]], entries: int) -> None:
    """Cut a configuration's lists with an entry a block to the kept ones, and its counts of blocks."""
    shared = getattr(config, "num_kv_shared_layers", None)
    depth = getattr(config, "num_hidden_layers", None)
    for key, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == depth and len(value) in depths:
            setattr(config, key, type(value)(value[i] for i in depths[len(value)]))
    if isinstance(depth, int) and depth in depths:
        if shared:
            config.num_kv_shared_layers = sum(i >= depth - shared for i in depths[depth])
        config.num_hidden_layers = len(depths[depth])


def _configs(model: nn.Module) -> list[Any]:
    """Every configuration object that a part of the model holds."""
    found = [vars(module).get("config") for module in model.modules()]
    held: list[Any] = [config for config in found if hasattr(config, "to_dict")]
    held += [config.get_text_config(decoder=True) for config in held]
    return list({id(config): config for config in held}.values())


def _modules(block: tuple[nn.Module, ...]) -> list[nn.Module]:
    return [module for part in block for module in part.modules()]


def _signature(block: tuple[nn.Module, ...]) -> tuple[Any, ...]:
    """What a block is made of: its modules, the shapes of their parameters, and their traits."""
    modules, shapes, traits = [], [], []
    for number, part in enumerate(block):
        modules += [(number, path, type(m).__name__) for path, m in part.named_modules()]
        shapes += [(number, path, tuple(p.shape)) for path, p in part.named_parameters()]
        traits += [(number, path, *trait) for path, m in part.named_modules() for trait in _traits(m)]
    return tuple(modules), tuple(shapes), tuple(traits)


def _traits(module: nn.Module) -> list[tuple[str, bool | str | None]]:
    """Attributes that switch what a module does (`is_sliding`, `use_rope`), or that it lacks (`sliding_window`)."""
    return [
        (name, value)
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "training" and (value is None or isinstance(value, bool | str))
    ]


def _entries(config: Any, depth: int) -> list[tuple[Any, ...]]:
    """What the configuration's lists say of each block."""
    lists = [
        tuple(value)
        for _, value in sorted(vars(config.get_text_config(decoder=True)).items())
        if isinstance(value, list | tuple)
        and len(value) == depth
        and all(isinstance(entry, bool | str | int | float) for entry in value)
        and len(set(value)) <= min(MOST_VALUES, depth - 1)
    ]
    return list(zip(*lists, strict=True)) if lists else [()] * depth


def _layer_types(config: Any, depth: int) -> Any:
    text_config = config.get_text_config(decoder=True)
    named = (getattr(text_config, key, None) for key in LAYER_TYPE_KEYS)
    return next((list(value) for value in named if isinstance(value, list | tuple) and len(value) == depth), None)


def _kind_names(signatures: Sequence[tuple[Any, ...]]) -> list[str]:
    """A short name per distinct signature: its layer type where that tells them apart, with dense or moe where not."""
    if len(signatures) == 1:
        return ["block"]
    types = [str(s[0]) if s[0] else "block" for s in signatures]
    sparse = ["moe" if any(len(shape) == 3 for *_, shape in s[2]) else "dense" for s in signatures]
    for names in (types, sparse, [f"{t}_{s}" for t, s in zip(types, sparse, strict=True)]):
        if len(set(names)) == len(names):
            return names
    longest = [f"{t}_{s}" if len(set(sparse)) > 1 else t for t, s in zip(types, sparse, strict=True)]
    return [
        f"{name}_{longest[:i].count(name) + 1}" if longest.count(name) > 1 else name for i, name in enumerate(longest)
    ]
