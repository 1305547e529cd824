"""Code that a model repository brings: its configuration and model classes, where the user trusts it.

transformers finds classes by the type of a model. For as long as a model is built, trusted classes stand in its tables,
under this type; nothing else knows of them.
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
"""How a config.json names a class: its file, without `.py`, and its name."""


@contextmanager
def code_of(source: ModelSource, token: str | None = None) -> Iterator[None]:
    """While open, transformers knows the classes of a trusted source; any other source changes nothing.

    As in transformers, trusted classes come before its own of the same type. Raises UsageError where a type is known
    only to code that is not trusted, before any of it is read, and for code that cannot be used.
    """
    model_type = source.config.get("model_type")
    if not source.code or not source.trusted:
        if source.code and model_type not in CONFIG_MAPPING:
            raise UsageError(
                f"--model {source.name}: transformers does not know model type {model_type!r}, so its own code would "
                "have to run: --trust-remote-code runs it; read it before"
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
    """Which code of a repository a model is made of: commit or folder, hash of the files, class; None for none."""
    for ancestor in type(model).__mro__:  # a class without `generate` was given it in a class of its own
        if ancestor.__module__.startswith("transformers_modules."):
            return f"{ancestor.__module__.partition('.')[2]}.{ancestor.__qualname__}"
    return None


def _class(source: ModelSource, kind: str, token: str | None) -> Any:
    """Import one class of a source. Its code runs here."""
    reference = source.code[kind]
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError(
            f"--model {source.name}: its {kind} is {reference!r}, and --trust-remote-code is for code of {source.name} "
            "alone (file.Class); copy both into a folder"
        )
    folder = source.path or _fetch(source, match[1], token)
    try:
        # a folder, even for the hub: transformers would fetch by itself, and wait without bounds
        return get_class_from_dynamic_module(reference, str(folder))
    except Exception as error:
        # it is code of others: any error may come of it
        raise UsageError(f"--model {source.name}: its code {reference} fails: {one_line(error)}") from error


def _fetch(source: ModelSource, file: str, token: str | None) -> Path:
    """The cached folder of the source's commit, with a file of code and those that it imports from beside it."""
    path, wanted, seen = Path(), [file], set[str]()
    while wanted:
        name = wanted.pop()
        if name not in seen:
            seen.add(name)
            path = download.fetch(source.name, f"{name}.py", revision=source.revision, token=token)
            wanted += get_relative_imports(path)
    return path.parent
