"""One rank's shard of a model for tensor parallelism: modules with the parameters of rank 0, which runs alone.

Sums and gathers over ranks are not computed; where a layer's output would be gathered, it is replaced by random numbers
of the full width, which take no kernel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llm_profile.errors import UsageError
from llm_profile.models.shard_forwards import gather_output, mask_vocabulary, split_input
from llm_profile.models.tp_plan import ANY_SIZE, COLWISE, GATHERS, SPLITS, VOCABULARY, Cut, TpPlan, tp_plan_of

HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
KEY_VALUE_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
GROUP_COUNTS = ("num_key_value_groups", "num_kv_groups", "n_rep")
WIDTHS = ("embed_dim", "all_head_size", "inner_dim")
"""Attributes of attention modules: number of heads, of heads of keys and values, of heads of queries that share these,
and the width of all heads of queries together."""

KEYS_AND_VALUES = ("k_proj", "v_proj")
"""Layers whose heads are copied where there are fewer than ranks."""

HEAD_SIZES = ("head_dim", "attention_head_size", "qk_head_dim")
"""Attributes of attention modules: the width of one head."""


@dataclass(frozen=True)
class Heads:
    """Heads of an attention module: of queries, and of keys and values, in the whole model."""

    module: nn.Module
    path: str
    queries: int
    keys: int

    def keys_of_rank(self, degree: int) -> int:
        """Heads of keys and values on one rank: the fewest that hold its share and that its queries divide among.

        Where there are fewer than ranks, each has one at least, so ranks hold copies.
        """
        queries = self.queries // degree
        return next(n for n in range(1, queries + 1) if queries % n == 0 and n * degree >= self.keys)


def cut_to_shard(model: Any, degree: int) -> None:
    """Make a model (on any device, the meta device too) the shard of rank 0 of `degree` ranks; 1 changes nothing.

    Raises UsageError for a degree that does not divide the model, with those that do.
    """
    if degree == 1:
        return
    plan = tp_plan_of(model, degree)
    heads = list(_heads(model, plan))
    _check_degree(model, plan, heads, degree)
    copied = {f"{of.path}.{name}": of for of in heads for name in KEYS_AND_VALUES}
    done: dict[int, nn.Parameter] = {}  # parameters that several modules share stay shared
    for path, parameter in list(model.named_parameters(remove_duplicate=False)):
        owner, _, name = path.rpartition(".")
        cut = plan.cut(path, parameter)
        if cut is None:
            continue
        if id(parameter) not in done:
            size = parameter.shape[cut.dim] // cut.parts
            of = copied.get(owner)
            kept = -(-size // degree) if of is None else size // of.keys * of.keys_of_rank(degree)
            done[id(parameter)] = _first_part(parameter, cut, kept)
        setattr(model.get_submodule(owner), name, done[id(parameter)])
    for attention in heads:
        _set_heads(attention, degree)
    for path, style in plan.modules.items():
        _adapt(model.get_submodule(path), style)


def _heads(model: nn.Module, plan: TpPlan) -> Iterator[Heads]:
    """The attention modules whose heads are divided among ranks."""
    for path, module in model.named_modules():
        queries, keys = (dict(module.named_children()).get(name) for name in ("q_proj", "k_proj"))
        size = _head_size(module)
        if plan.modules.get(f"{path}.q_proj") != COLWISE or not isinstance(queries, nn.Linear) or not size:
            continue
        groups = next((n for name in GROUP_COUNTS if isinstance(n := vars(module).get(name), int)), 1)
        if isinstance(keys, nn.Linear):  # more to be relied on than queries, which a gate may be joined to
            of_keys = keys.out_features // size
            of_queries = of_keys * groups
        else:  # the keys are those of another block
            of_queries = queries.out_features // size
            of_keys = of_queries // groups
        if of_keys and of_queries:
            yield Heads(module, path, of_queries, of_keys)


def _head_size(module: nn.Module) -> int | None:
    return next((size for name in HEAD_SIZES if isinstance(size := vars(module).get(name), int)), None)


def _check_degree(model: Any, plan: TpPlan, heads: list[Heads], degree: int) -> None:
    """Raise UsageError for a degree that does not divide all of `_divided_sizes`."""
    sizes = _divided_sizes(model, plan, heads)
    undivided = [name for name, size in sizes.items() if size % degree]
    if undivided:
        fitting = [n for n in range(1, max(sizes.values()) + 1) if not any(size % n for size in sizes.values())]
        *most, last = map(str, fitting)
        told = f"{', '.join(most)} or {last}" if most else last
        raise UsageError(f"--tp {degree}: does not divide the {undivided[0]} of {model.config.model_type}; use {told}")


def _divided_sizes(model: Any, plan: TpPlan, heads: list[Heads]) -> dict[str, int]:
    """What a degree has to divide, in words -> the number of it. Heads of keys are not among it."""
    sizes = {f"{of.queries} attention heads": of.queries for of in heads}
    of_keys = {f"{of.path}.{name}" for of in heads for name in KEYS_AND_VALUES}
    of_config = model.config.get_text_config(decoder=True).to_dict().get("num_attention_heads")
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owner, cut = path.rpartition(".")[0], plan.cut(path, parameter)
        if cut is None or plan.parameters[path] in ANY_SIZE or owner in of_keys:
            continue
        if isinstance(of_config, int) and _head_size(model.get_submodule(owner.rpartition(".")[0])):
            sizes[f"{of_config} attention heads"] = of_config
        size = parameter.shape[cut.dim] // cut.parts
        sizes[f"size {size} of {path.removesuffix('.weight').rpartition('.')[2]}"] = size
    return sizes


def _first_part(parameter: nn.Parameter, cut: Cut, kept: int) -> nn.Parameter:
    """The part of rank 0: the first `kept` of each part, along the dimension of the cut."""
    parts = parameter.data.chunk(cut.parts, cut.dim)
    part = torch.cat([each.narrow(cut.dim, 0, kept) for each in parts], cut.dim).clone()
    made = nn.Parameter(part, parameter.requires_grad)
    made.__dict__.update(vars(parameter))
    return made


def _set_heads(attention: Heads, degree: int) -> None:
    """Tell an attention module how many heads it has now."""
    queries, keys = attention.queries // degree, attention.keys_of_rank(degree)
    counts = {
        HEAD_COUNTS: (attention.queries, queries),
        KEY_VALUE_COUNTS: (attention.keys, keys),
        GROUP_COUNTS: (attention.queries // attention.keys, queries // keys),
    }
    own, size = vars(attention.module), _head_size(attention.module) or 0
    counts[WIDTHS] = (attention.queries * size, queries * size)
    for names, (before, now) in counts.items():
        for name in names:
            if own.get(name) == before:
                setattr(attention.module, name, now)


def _adapt(module: Any, style: str) -> None:
    """Give a module of a style the sizes of its weights, and a forward for a part of its inputs or outputs."""
    weight: Any = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        outputs = module.out_features
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        outputs = module.embedding_dim
        module.num_embeddings, module.embedding_dim = weight.shape
    else:
        return
    if style in GATHERS:
        gather_output(module, outputs)
    if style in SPLITS:
        split_input(module)
    if style == VOCABULARY:
        mask_vocabulary(module)
