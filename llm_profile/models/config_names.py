"""Reads fields of a config.json that model types call by different names, such as the depth. Imports no torch.

GPT-2 has `n_layer` where Llama has `num_hidden_layers`. transformers keeps the names and defaults of a type in the
class of its configuration. Importing the class imports torch, which takes seconds, so its source is parsed instead.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NESTED = ("text_config", "decoder", "generator")
"""Fields in which configurations of composite models keep the configuration of the model that generates text."""

POSITION_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions")
"""Names that types have for the number of positions."""


@dataclass
class Declared:
    """What the source of a configuration class says. Empty for types that transformers does not have.

    other_names: name that all types share -> the type's own name, `num_hidden_layers` -> `n_layer`.
    defaults: the type's own name of a field -> its default.
    nested: field with a nested configuration -> name of its class; empty if several classes are possible.
    derived: fields that the class computes from others.
    """

    other_names: dict[str, str] = field(default_factory=dict[str, str])
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    nested: dict[str, str] = field(default_factory=dict[str, str])
    derived: set[str] = field(default_factory=set[str])
    model_type: str = ""


class WorkedOut(LookupError):
    """A field that the class of a configuration computes, so that its value is known only after running the class."""


def field_of_decoder(config: Mapping[str, Any], name: str) -> Any:
    """The value of a field in the configuration of the model that generates text; None if unknown.

    name: the one that all types share in transformers, such as `num_hidden_layers`. A field that config.json leaves out
    has the default of its type. For types that transformers does not have, only the shared name is looked up.
    Raises WorkedOut for a field that the class computes.
    """
    fields, declared = _decoder(config)
    own = declared.other_names.get(name, name)
    of_decoder = f"decoder_{own.removeprefix('encoder_')}"
    if own.startswith("encoder_") and of_decoder in declared.defaults:
        own = of_decoder
    if own in declared.derived:
        raise WorkedOut(own)
    known = (*((key, fields) for key in (own, name)), *((key, declared.defaults) for key in (own, name)))
    return next((holder[key] for key, holder in known if holder.get(key) is not None), None)


def _decoder(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Declared]:
    """The fields of the model that generates text, which may be nested, and what the class of its type says."""
    whole = declared_by(str(config.get("model_type")))
    for name in NESTED:
        inner = config.get(name)
        if isinstance(inner, Mapping) or (inner is None and name in whole.nested):
            fields = inner if isinstance(inner, Mapping) else {}
            declared = declared_by(str(fields.get("model_type")))
            if not declared.model_type and name in whole.nested:
                declared = _declared_by_class(whole.nested[name], _file_of(whole.model_type))
                if not declared.model_type:
                    raise WorkedOut(name)
            return fields, declared
    return config, whole


@cache
def declared_by(model_type: str) -> Declared:
    """What the configuration class of this type in transformers says; an empty Declared without such a class."""
    file = _file_of(model_type)
    for node in _classes(file).values() if file else ():
        if _assigned(node).get("model_type") == model_type:
            return _declared_by_class(node.name, file)
    return Declared()


@cache
def _file_of(model_type: str) -> Path | None:
    """The file with the configuration class of this type. The folder named after the type is searched first."""
    spec = find_spec("transformers")  # does not import it
    if spec is None or not spec.submodule_search_locations or not re.fullmatch(r"[\w.-]+", model_type):
        return None
    models = Path(spec.submodule_search_locations[0]) / "models"
    says = re.compile(rf'^    model_type(: [^=]+)? = "{re.escape(model_type)}"$', re.MULTILINE)
    likely = re.sub(r"\W", "_", model_type)
    folders = [likely, likely.removesuffix("_text"), "*"]
    files = (file for folder in folders for file in sorted(models.glob(f"{folder}/configuration_*.py")))
    return next((file for file in files if says.search(file.read_text(encoding="utf-8"))), None)


def _declared_by_class(name: str, file: Path | None) -> Declared:
    """What a class in this file says, including what it inherits. An empty Declared if the file has no such class."""
    declared = Declared()
    node = _classes(file).get(name) if file else None
    if file is None or node is None:
        return declared
    for base in reversed(node.bases):
        if isinstance(base, ast.Name):
            inherited = _declared_by_class(base.id, _file_that_has(base.id, file))
            declared.other_names |= inherited.other_names
            declared.defaults |= inherited.defaults
            declared.nested |= inherited.nested
            declared.derived |= inherited.derived
    values = _assigned(node)
    declared.model_type = str(values.get("model_type", ""))
    declared.other_names |= values.pop("attribute_map", {})
    declared.defaults |= values
    declared.derived |= _worked_out(node)
    declared.nested |= dict(_nested(node))
    return declared


@cache
def _classes(file: Path) -> dict[str, ast.ClassDef]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _file_that_has(name: str, file: Path) -> Path | None:
    """The file that defines a class which `file` uses: itself, or the file of another type that it imports from."""
    if name in _classes(file):
        return file
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and name in [alias.name for alias in node.names]:
            found = file.parents[node.level - 1].joinpath(*node.module.split(".")).with_suffix(".py")
            return found if node.level > 1 and "models" in found.parts and found.is_file() else None
    return None


def _assigned(node: ast.ClassDef) -> dict[str, Any]:
    """Name -> value of the attributes of a class that are assigned constant expressions."""
    values: dict[str, Any] = {}
    for part in node.body:
        target: ast.expr | None = part.target if isinstance(part, ast.AnnAssign) else None
        target = part.targets[0] if isinstance(part, ast.Assign) else target
        if isinstance(target, ast.Name) and getattr(part, "value", None) is not None:
            with suppress(ValueError):
                values[target.id] = _value(part.value)  # type: ignore[attr-defined]
    return values


def _value(node: ast.expr) -> Any:
    """The value of a literal or of a product of literals (`4096 * 32`). Raises ValueError for other expressions."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _value(node.left) * _value(node.right)
    return ast.literal_eval(node)


def _worked_out(node: ast.ClassDef) -> set[str]:
    """The fields that a class computes: those with a decorated method (properties), and those that methods assign."""
    functions = [part for part in node.body if isinstance(part, ast.FunctionDef)]
    inner = [part for function in functions for part in ast.walk(function)]
    return {function.name for function in functions if function.decorator_list} | {
        part.attr for part in inner if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)
    }


def _nested(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Field and class name of each nested configuration, from `sub_configs`; an empty name if the class is no name."""
    for part in node.body:
        names = part.targets if isinstance(part, ast.Assign) else [getattr(part, "target", None)]
        value = getattr(part, "value", None)
        if isinstance(names[0], ast.Name) and names[0].id.startswith("sub_configs") and isinstance(value, ast.Dict):
            for key, inner in zip(value.keys, value.values, strict=True):
                if isinstance(key, ast.Constant):
                    yield str(key.value), inner.id if isinstance(inner, ast.Name) else ""
