"""Which decoder blocks of a model are kept for profiling, and how the others are removed.

A model is first built at full depth on the meta device, so that its own code decides what each block is. Then all other
blocks are dropped, the kept ones are renumbered from 0 (caches and masks look blocks up by these numbers), and lists of
the configuration with one entry per block are cut to the kept blocks. So any blocks can be kept, even if no config.json
could describe a model of just these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from llm_profile.block_kinds import BlockKind
from llm_profile.models.code_names import is_read

LAYER_TYPE_KEYS = ("layer_types", "layers_block_type", "block_types", "attention_layers", "mlp_layer_types")
"""Config keys with the type of each block, for types whose modules look the same (sliding and full attention)."""

INDEX_ATTRIBUTES = ("layer_idx", "layer_id", "kv_shared_layer_index", "layer_dic")
"""Attributes of modules that hold the index of a block, or a dictionary with such indices as keys."""

DEPTH_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "num_decoder_layers")
"""Config keys that hold the number of blocks."""

INDEX_LISTS = ("cross_attention_layers",)
"""Lists of indices of blocks that a model's code reads while it runs."""

TIED_KEYS = ("_tied_weights_keys", "all_tied_weights_keys")
"""Attributes of models that map names of tied parameters: each name -> the name of the parameter that it shares."""

NEEDS_TRAIT: dict[str, str] = {"store_full_length_kv": "is_kv_shared_layer"}
"""Trait of a block -> trait that some block must have switched on, or else the first has no effect and is ignored.

`store_full_length_kv` makes a block store its keys for blocks that share them (`is_kv_shared_layer`).
"""

MOST_VALUES = 4
"""Most distinct values of a configuration list by which blocks are told apart. With more, it holds a number for each
block, not a type."""


@dataclass(frozen=True)
class Stack:
    """A list of decoder blocks of a model. paths: of the module lists that hold it, mostly one.

    Where a module has several lists of equal length, they are one stack: block i is made of entry i of each list.
    """

    paths: tuple[str, ...]

    def lists(self, model: nn.Module) -> list[nn.ModuleList]:
        return [model.get_submodule(path) for path in self.paths]  # type: ignore[misc]

    def blocks(self, model: nn.Module) -> list[tuple[nn.Module, ...]]:
        """The stack's blocks, each as the modules that it is made of."""
        return list(zip(*self.lists(model), strict=True))


Kept = Mapping[Stack, tuple[int, ...]]
"""Stack -> the indices of its kept blocks in the full model, ascending."""


def find_stacks(model: nn.Module) -> list[Stack]:
    """The stacks of a model: its outermost module lists whose members have sub-modules, but are no embeddings."""
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
    """The name of the kind of each block in a stack of a full model.

    Blocks are of one kind if they have the same modules, shapes of parameters and traits (`_traits`), and the same
    entries in those lists of the configuration that the model's code reads.
    """
    blocks = stack.blocks(model)
    entries = _entries(model, len(blocks))
    types: list[str | None] = _layer_types(model, len(blocks)) or [None] * len(blocks)
    made = [_signature(block) for block in blocks]
    switched_on = {name for _, _, traits in made for *_, name, value in traits if value is True}
    ignored = {name for name, needed in NEEDS_TRAIT.items() if needed not in switched_on}
    signatures = [
        (types[i], modules, shapes, tuple(trait for trait in traits if trait[-2] not in ignored), entries[i])
        for i, (modules, shapes, traits) in enumerate(made)
    ]
    distinct = list(dict.fromkeys(signatures))
    names = dict(zip(distinct, _kind_names(distinct), strict=True))
    return [names[signature] for signature in signatures]


def kinds_of(kinds: Sequence[str], kept: Sequence[int]) -> list[BlockKind]:
    """The kinds of a stack. kinds: the name of each block's kind. kept: indices of the blocks that are profiled."""
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
    """Drop all blocks but the kept ones, and renumber these in order, since a cache has one entry for each.

    The configuration stays that of the full model, because weights are initialised with it. Call `keep_entries` after
    that.
    """
    for stack, indices in kept.items():
        for module_list in stack.lists(model):
            members = list(module_list)
            module_list._modules.clear()
            module_list.extend(members[i] for i in indices)
    modules = {m for stack in kept for block in stack.blocks(model) for part in block for m in part.modules()}
    numbers = sorted({n for m in modules if isinstance(n := vars(m).get("layer_idx"), int) and n >= 0})
    most = max(kept.values(), key=len)  # blocks that use no cache may have no number, but count
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
            if tied and len(outside) < len(tied):  # kept blocks share weights, whose names have the new numbers now
                setattr(module, attribute, outside | _shared_parameters(module))


def _shared_parameters(model: nn.Module) -> dict[str, str]:
    """For parameters with several names: each further name -> the first one."""
    first: dict[nn.Parameter, str] = {}
    names = model.named_parameters(remove_duplicate=False)
    return {name: first[p] for name, p in names if first.setdefault(p, name) != name}


def kept_of_depth(full_model: nn.Module, kept: Kept) -> dict[int, tuple[int, ...]]:
    """Depth of a stack in the full model -> indices of its kept blocks. Of stacks of equal depth, the one that keeps
    most blocks counts."""
    depths: dict[int, tuple[int, ...]] = {}
    for stack, indices in kept.items():
        depth = len(stack.blocks(full_model))
        depths[depth] = max(depths.get(depth, ()), indices, key=len)
    return depths


def keep_entries(model: nn.Module, kept: Mapping[int, tuple[int, ...]]) -> None:
    """Cut what the model's configurations hold for each block to the kept blocks. kept: from `kept_of_depth`."""
    for holder in [*_configs(model), *model.modules()]:
        for key in INDEX_LISTS:
            numbers = vars(holder).get(key)
            for indices in kept.values() if numbers else ():
                setattr(holder, key, [indices.index(i) for i in numbers if i in indices])
    for config in _configs(model):
        depth = next((v for key in DEPTH_KEYS if isinstance(v := vars(config).get(key), int) and v in kept), None)
        if depth is not None:
            _cut_lists(config, depth, kept[depth])


def _cut_lists(config: Any, depth: int, indices: tuple[int, ...]) -> None:
    """Cut the lists of a configuration that have one entry per block to the entries of the kept blocks.

    The number of blocks (DEPTH_KEYS) stays: some models hold one tensor for all blocks, with that size.
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
    if lists:  # properties that compute a list from a period: kept blocks need no period, so attributes replace them
        config.__class__ = type(type(config).__name__, (type(config),), lists)


def _configs(model: nn.Module) -> list[Any]:
    """Every configuration object that a part of the model holds."""
    found = [vars(module).get("config") for module in model.modules()]
    held: list[Any] = [config for config in found if hasattr(config, "to_dict")]
    held += [config.get_text_config(decoder=True) for config in held]
    return list({id(config): config for config in held}.values())


def _signature(block: tuple[nn.Module, ...]) -> tuple[Any, ...]:
    """A block's modules, the shapes of their parameters, and their traits. block: the modules that it is made of."""
    modules, shapes, traits = [], [], []
    for number, part in enumerate(block):
        modules += [(number, path, type(m).__name__) for path, m in part.named_modules()]
        shapes += [(number, path, tuple(p.shape), p.dtype) for path, p in part.named_parameters()]
        traits += [(number, path, *trait) for path, m in part.named_modules() for trait in _traits(m)]
    return tuple(modules), tuple(shapes), tuple(traits)


def _traits(module: nn.Module) -> list[tuple[str, bool | str | None]]:
    """Attributes of a module that are a truth value, a string or None: switches such as `is_sliding` or `use_rope`,
    and values that blocks may lack, such as `sliding_window`."""
    return [
        (name, value)
        for name, value in sorted(vars(module).items())
        if not name.startswith("_") and name != "training" and (value is None or isinstance(value, bool | str))
    ]


def _entries(model: Any, depth: int) -> list[tuple[Any, ...]]:
    """For each block, its entries in those lists of the configuration by which blocks are told apart."""
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
    """The type of each block from the first list of LAYER_TYPE_KEYS that the model has and reads; None without one."""
    text_config = model.config.get_text_config(decoder=True)
    named = (getattr(text_config, key, None) for key in LAYER_TYPE_KEYS if is_read(model, key))
    return next((list(value) for value in named if isinstance(value, list | tuple) and len(value) == depth), None)


def _of_experts(parameter: tuple[int, str, tuple[int, ...], Any]) -> bool:
    """Whether a parameter (list, path, shape, type) has a matrix per expert.

    A convolution over time has three dimensions as well, but the second is 1.
    """
    shape = parameter[2]
    return len(shape) == 3 and shape[1] > 1


def _kind_names(signatures: Sequence[tuple[Any, ...]]) -> list[str]:
    """A short name for each signature: its layer type, `dense` or `moe`, or both, whichever tells all of them apart.

    Where none does, signatures of the same name are numbered from 1.
    """
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
