"""Runs code that a model repository brings (its configuration and model classes), with --trust-remote-code only.

transformers looks classes up by the type of a model. While a model is built, the trusted classes are in the tables of
transformers under the model's type, and afterwards the tables are as before.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers.dynamic_module_utils import get_class_from_dynamic_module, get_relative_imports
from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from llm_profile.errors import UsageError, one_line
from llm_profile.models import download
from llm_profile.models.hub import CAUSAL_LM, CONFIG, ModelSource
from llm_profile.models.patches import patched

REFERENCE = re.compile(r"(\w+)\.(\w+)")
"""A class as a config.json names it: its file without `.py`, a point, its name."""


@contextmanager
def code_of(source: ModelSource, token: str | None = None) -> Iterator[None]:
    """While open, transformers uses the classes of a trusted source. For any other source, nothing changes.

    As in transformers itself, trusted classes replace those that it has for the same type. Raises UsageError for code
    that cannot be used, and, before any code is read, for a type that only code which is not trusted could run.
    """
    model_type = source.config.get("model_type")
    if not source.code or not source.trusted:
        if source.code and model_type not in CONFIG_MAPPING:
            raise UsageError(
                f"--model {source.name}: transformers does not know model type {model_type!r}, so its own code would "
                "have to run: --trust-remote-code runs it; read it first"
            )
        yield
        return
    if CAUSAL_LM not in source.code:
        raise UsageError(f"--model {source.name}: its auto_map names no {CAUSAL_LM}; leave out --trust-remote-code")
    with ExitStack() as stack:
        if CONFIG in source.code:
            known = CONFIG_MAPPING._extra_content | {model_type: _class(source, CONFIG, token)}
            stack.enter_context(patched(CONFIG_MAPPING, "_extra_content", known))
        if model_type not in CONFIG_MAPPING:
            raise UsageError(f"--model {source.name}: its auto_map names no {CONFIG}, and transformers has none for it")
        model_class = add_generation_mixin_to_remote_model(_class(source, CAUSAL_LM, token))
        models = MODEL_FOR_CAUSAL_LM_MAPPING._extra_content | {CONFIG_MAPPING[model_type]: model_class}
        stack.enter_context(patched(MODEL_FOR_CAUSAL_LM_MAPPING, "_extra_content", models))
        yield


def code_id(model: nn.Module) -> str | None:
    """Identifies the repository code of a model: commit or folder, hash of the files, class. None without such code."""
    for ancestor in type(model).__mro__:  # the class itself may be a subclass that adds `generate`
        if ancestor.__module__.startswith("transformers_modules."):
            return f"{ancestor.__module__.partition('.')[2]}.{ancestor.__qualname__}"
    return None


def _class(source: ModelSource, kind: str, token: str | None) -> Any:
    """Import the class of a source that `kind` names (CONFIG or CAUSAL_LM). This runs the code of its file."""
    reference = source.code[kind]
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError(
            f"--model {source.name}: its {kind} is {reference!r}, but --trust-remote-code runs code of {source.name} "
            "alone (file.Class); copy the model and that code into one folder"
        )
    folder = source.path or _fetch(source, match[1], token)
    try:
        # a folder even for the hub, because transformers would download with unlimited retries
        return get_class_from_dynamic_module(reference, str(folder))
    except Exception as error:
        # code of others may raise any error
        raise UsageError(f"--model {source.name}: its code {reference} fails: {one_line(error)}") from error


def _fetch(source: ModelSource, file: str, token: str | None) -> Path:
    """Fetch a file of code and the files of the repository that it imports. Returns their folder in the cache."""
    path, wanted, seen = Path(), [file], set[str]()
    while wanted:
        name = wanted.pop()
        if name not in seen:
            seen.add(name)
            path = download.fetch(source.name, f"{name}.py", revision=source.revision, token=token)
            wanted += get_relative_imports(path)
    return path.parent
