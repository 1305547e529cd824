"""How tensor parallelism divides a model: the model's own plan, or a plan by the roles of its layers.

A plan gives modules and parameters a style, in the names of transformers: `colwise` layers have a part of their outputs
on each rank, `rowwise` ones a part of their inputs, and what has no style is whole on each rank.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import transformers
from torch import nn

from llm_profile.errors import UsageError
from llm_profile.models.blocks import find_stacks

COLWISE, ROWWISE, GATHERED, VOCABULARY = "colwise", "rowwise", "colwise_gather_output", "embedding_rowwise"


class Cut(NamedTuple):
    """Along which dimension a parameter is divided. parts: matrices that lie side by side along it, each divided."""

    dim: int
    parts: int = 1


CUTS: dict[str, Callable[[str, int], Cut | None]] = {
    # style -> function from the name and the number of dimensions of a parameter to its cut, None where it stays whole
    **dict.fromkeys((COLWISE, GATHERED, "colwise_rep"), lambda name, ndim: Cut(-1 if ndim == 1 else -2)),
    **dict.fromkeys(
        (ROWWISE, "rowwise_split_input", "rowwise_rep"), lambda name, ndim: None if name == "bias" else Cut(-1)
    ),
    "packed_colwise": lambda name, ndim: Cut(-1) if ndim == 1 else Cut(-2, 2),
    "packed_rowwise": lambda name, ndim: None if ndim == 1 else Cut(-1, 2),
    VOCABULARY: lambda name, ndim: Cut(0),
    "embedding_colwise": lambda name, ndim: Cut(1),
    "last_dim": lambda name, ndim: Cut(-1),
    "second_last_dim": lambda name, ndim: Cut(-2),
    **dict.fromkeys(
        (
            *("replicate", "replicated_with_grad_allreduce", "mla_kv_a_proj", "all_reduce", "moe_tp_experts"),
            *("moe_identity_expert", "local_params", "sequence_parallel"),
        ),
        lambda name, ndim: None,
    ),
}
"""`last_dim` and `second_last_dim` are no styles of transformers: they divide experts of the layout [in, out]."""

GATHERS = (GATHERED, "colwise_rep", "embedding_colwise")
"""Styles whose outputs are gathered: what follows has all of them, on each rank."""

SPLITS = ("rowwise_split_input", "rowwise_rep")
"""Styles whose layers are given all inputs and take their part of them."""

ANY_SIZE = (*GATHERS, *SPLITS, VOCABULARY)
"""Styles that divide any size: the last rank has less."""

ROLES: dict[str, str] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "fc1"), COLWISE),
    **dict.fromkeys(("o_proj", "out_proj", "down_proj", "fc2"), ROWWISE),
}
"""Attribute of a linear layer in a block -> its style, in models without a plan."""

ROUTERS = ("gate", "router")
"""Attributes of layers that choose experts: whole on each rank."""

EXPERT_ROLES: dict[tuple[str, bool], str] = {
    # (parameter of an experts module, whether its matrices are [in, out]) -> its style, in models without a plan
    ("gate_up_proj", False): "packed_colwise",
    ("down_proj", False): ROWWISE,
    ("gate_up_proj", True): "last_dim",
    ("gate_up_proj_bias", True): "last_dim",
    ("down_proj", True): "second_last_dim",
}

PER_HEAD = ("sinks",)
"""Parameters of attention with a number for each head."""

INDEX = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True)
class TpPlan:
    """modules, parameters: path -> style, of those that have one."""

    modules: dict[str, str]
    parameters: dict[str, str]

    def cut(self, path: str, parameter: nn.Parameter) -> Cut | None:
        """The cut of a parameter; None where it stays whole."""
        style = self.parameters.get(path)
        return None if style is None else CUTS[style](path.rpartition(".")[2], parameter.ndim)


def tp_plan_of(model: Any, degree: int) -> TpPlan:
    """How `degree` ranks divide a model: by its own plan where that has rules for its blocks, else by ROLES.

    The embedding is divided by its vocabulary where the plan has no rule for it. Raises UsageError for a style that is
    not known here, and for layers without a role.
    """
    paths = tuple(path for stack in find_stacks(model) for path in stack.paths)
    own = dict(getattr(model, "tp_plan", None) or {})
    has_plan = any(name.startswith(f"{path}.") for name in own for path in paths)
    rules = own if has_plan else _by_role(model, degree)
    if unknown := sorted({*rules.values()} - CUTS.keys()):
        raise UsageError(
            f"--tp {degree}: the plan that transformers {transformers.__version__} has for {model.config.model_type} "
            f"divides layers in a way that is not known here ({', '.join(unknown)}); use --tp 1"
        )
    rules = _ends(model, by_role=not has_plan) | rules
    modules = {path: rules[named] for path, _ in model.named_modules() if (named := INDEX.sub(".*", path)) in rules}
    parameters: dict[str, str] = {}
    for path, _ in model.named_parameters(remove_duplicate=False):
        named = INDEX.sub(".*", path)
        style = rules.get(named, rules.get(named.rpartition(".")[0]))
        if style is not None:
            parameters[path] = style
    return TpPlan(modules, parameters)


def whole_layers(model: Any, degree: int) -> list[str]:
    """Attributes of the layers in blocks that have matrices and are whole on each rank.

    Routers are not among them, nor layers of stacks without any rule, such as those of images.
    """
    plan = tp_plan_of(model, degree)
    stacks = [path for stack in find_stacks(model) for path in stack.paths]
    ruled = tuple(f"{path}." for path in stacks if any(name.startswith(f"{path}.") for name in plan.parameters))
    found = {
        path.rpartition(".")[2]: None
        for path, module in _modules_of_blocks(model)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1 and path.startswith(ruled) and plan.cut(f"{path}.{name}", parameter) is None
    }
    return [attribute for attribute in found if attribute not in ROUTERS]


def _ends(model: Any, by_role: bool) -> dict[str, str]:
    """Rules for the embedding, and for a head that shares its weights or has no rule in a plan by roles."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: INDEX.sub(".*", path) for path, module in model.named_modules()}
    found: dict[str, str] = {}
    if isinstance(embedding, nn.Embedding) and embedding in names:
        found[names[embedding]] = VOCABULARY
    configs = (model.config, model.config.get_text_config(decoder=True))
    tied = any(getattr(config, "tie_word_embeddings", False) for config in configs)
    if isinstance(head, nn.Linear) and head in names and (tied or by_role):
        found[names[head]] = GATHERED
    return found


def _by_role(model: Any, degree: int) -> dict[str, str]:
    """A plan by ROLES and EXPERT_ROLES. Raises UsageError that names layers of blocks that have no role."""
    rules: dict[str, str] = {}
    strange: list[str] = []
    for path, module in _modules_of_blocks(model):
        attribute, named = path.rpartition(".")[2], INDEX.sub(".*", path)
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.Linear) and attribute in ROLES:
            rules[named] = ROLES[attribute]
        elif any(parameter.ndim == 3 for parameter in own.values()):
            turned = bool(getattr(module, "is_transposed", False))
            styles = {name: EXPERT_ROLES.get((name, turned)) for name in own}
            rules |= {f"{named}.{name}": style for name, style in styles.items() if style is not None}
            strange += [named for name, style in styles.items() if style is None and own[name].ndim == 3]
        elif attribute not in ROUTERS and any(parameter.ndim > 1 for parameter in own.values()):
            strange.append(named)
        rules |= {f"{named}.{name}": "last_dim" for name in own if name in PER_HEAD}
    if strange or not rules:
        layers = ", ".join(dict.fromkeys(name.rpartition(".*.")[2] for name in strange)) or "its blocks"
        raise UsageError(
            f"--tp {degree}: transformers {transformers.__version__} has no plan for {model.config.model_type}, and it "
            f"is not known how to divide {layers}; use --tp 1"
        )
    return rules


def _modules_of_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for stack in find_stacks(model):
        for path in stack.paths:
            for below, module in model.get_submodule(path).named_modules():
                yield f"{path}.{below}", module
