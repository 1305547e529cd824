"""Where a model comes from: a local folder, the hub or its cache, or the built-in table. Imports no torch.

Of a config.json, the fields that could lead transformers to code are left out. The classes that a repository brings are
kept apart, and run only where that is asked for (remote_code.py).
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError, one_line
from llm_profile.models import catalog, download
from llm_profile.models.bounds import check_bounds
from llm_profile.models.download import HubError, ModelNotFound

LOAD_FORMATS = ("auto", "hf", "dummy")

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")
PICKLE_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""The only file of a checkpoint, or the one that lists its shards: in the order in which transformers looks for them,
so that an index that was left behind when a model was saved again in one file is not read."""

CODE_FIELDS = frozenset({"auto_map", "custom_pipelines", "fusion_config", "transformers_weights"}) | {
    # an implementation may be the name of a repository of kernels: which one runs is for the command line to say
    f"{underscore}{kind}_implementation{internal}"
    for kind in ("attn", "experts")
    for underscore in ("", "_")
    for internal in ("", "_internal")
}

JSON_NAMES = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}

REPOSITORY = "models--"
"""How the folder of a model in the hub's cache begins: `models--org--name/snapshots/<commit>`."""

CONFIG, CAUSAL_LM = "AutoConfig", "AutoModelForCausalLM"
"""The classes of a repository that matter here, as the `auto_map` of its config.json calls them."""


@dataclass(frozen=True)
class ModelSource:
    """What a model is built from.

    name: the id on the hub or in the table, or the folder as given. config: the fields of config.json, without those
    that name code. origin: where the config is from, `folder`, `hub`, `cache` or `table`. revision: the commit that
    was asked for, resolved (hub and cache). path: the local folder. weights_file: the file that lists the checkpoint's
    shards or holds all of it; None: random weights. notice: what `--load-format auto` chose and why, in one line.
    code: the classes that the repository brings, `file.Class` by CONFIG and CAUSAL_LM. trusted: whether they may run.
    """

    name: str
    config: Mapping[str, Any]
    origin: str
    revision: str | None = None
    path: Path | None = None
    weights_file: str | None = None
    notice: str | None = None
    code: Mapping[str, str] = field(default_factory=dict[str, str])
    trusted: bool = False

    @property
    def weights(self) -> str:
        """`hf` (real) or `dummy` (random)."""
        return "hf" if self.weights_file else "dummy"


def folder_name(path: Path) -> str:
    """What a folder is called: its own last part, not that of what it links to; a snapshot of the hub by its model."""
    there = path.resolve() if path.name == ".." else Path(os.path.abspath(path))
    repository = there.parent.parent.name
    if there.parent.name == "snapshots" and repository.startswith(REPOSITORY):
        return repository.removeprefix(REPOSITORY).replace("--", "/", 1)
    return there.name


def find_model(
    model: str,
    *,
    load_format: str,
    revision: str | None = None,
    token: str | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> ModelSource:
    """Find the config of `--model`, and its weights if they are wanted.

    A folder with a config.json comes first, wherever it lies. `dummy` asks the table, then the hub. `hf` wants real
    weights: a folder or the hub. `auto` wants them too, and makes do with random ones where there are none, saying so
    in the notice; the weights themselves are fetched later (checkpoint.py), which may still raise HubError. A table
    name without its owner means that model on the hub as well. A revision is one of the hub, so it rules out the table.

    Raises UsageError (HubError where the hub is to blame) in one line, after bounded time.
    """
    if load_format not in LOAD_FORMATS:
        raise UsageError(f"--load-format {load_format}: choose one of {', '.join(LOAD_FORMATS)}")
    try:
        folder = Path(model).expanduser()
        is_model = (folder / "config.json").is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, no right to look, no such user, a zero byte
        why = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--model {model[:80]}: {why}; give a folder with a config.json, or an id of the hub"
        ) from error
    if is_model:
        found = _from_folder(model, folder, load_format, revision, allow_pickle)
        return replace(found, trusted=trust_remote_code)
    if folder.is_absolute() or model.startswith(("~", ".")) or model.endswith("/") or not model:
        missing = "has no config.json" if folder.is_dir() else "is no folder"
        raise UsageError(f"--model {model}: {missing}; give a folder with a config.json, or an id of the hub")

    entry = catalog.find(model)
    name = entry[0] if entry else model
    table = ModelSource(name, entry[1], "table") if entry and revision is None else None
    if table and load_format == "dummy":
        return table
    if entry and "/" not in name:  # ours: no hub has it
        if table is None or load_format == "hf":
            raise UsageError(f"--model {name}: in the built-in table only; use --load-format dummy and no --revision")
        return replace(table, notice=dummy_notice(f"--model {name}: in the built-in table only"))
    try:
        return replace(_from_hub(name, load_format, revision, token, allow_pickle), trusted=trust_remote_code)
    except HubError as error:
        if table and load_format == "auto":
            return replace(table, notice=dummy_notice(error))
        if isinstance(error, ModelNotFound) or entry is None:
            raise type(error)(f"{error}{_hint(model)}") from None
        raise


def _from_folder(model: str, folder: Path, load_format: str, revision: str | None, allow_pickle: bool) -> ModelSource:
    if revision is not None:
        raise UsageError(f"--revision {revision}: {model} is a local folder, which has no revisions; leave it out")
    config, code = _read_config(folder / "config.json")
    source = ModelSource(model, config, "folder", path=folder, code=code)
    return _with_weights(source, load_format, allow_pickle, lambda filename: (folder / filename).is_file())


def _from_hub(name: str, load_format: str, revision: str | None, token: str | None, allow_pickle: bool) -> ModelSource:
    known = download.cached(name, "config.json", revision=revision)
    path = download.fetch(name, "config.json", revision=revision, token=token)
    commit = path.parent.name  # the cache keeps a commit's files in a folder of its name
    config, code = _read_config(path)
    source = ModelSource(name, config, "cache" if path == known else "hub", revision=commit, code=code)
    try:
        return _with_weights(
            source,
            load_format,
            allow_pickle,
            lambda filename: download.cached(name, filename, revision=commit) is not None,
            lambda filename: download.has(name, filename, revision=commit, token=token),
        )
    except HubError as error:
        if load_format != "auto":
            raise
        return replace(source, notice=dummy_notice(error))


def _with_weights(
    source: ModelSource, load_format: str, allow_pickle: bool, *looks: Callable[[str], bool]
) -> ModelSource:
    """`source` with the file that heads its checkpoint, if weights are wanted. looks: whether a file is there."""

    def first(filenames: Sequence[str]) -> str | None:
        return next((filename for look in looks for filename in filenames if look(filename)), None)

    if load_format == "dummy":
        return source
    weights_file, problem = first(WEIGHT_FILES), f"no weights there ({' or '.join(WEIGHT_FILES)})"
    if weights_file is None and (pickle := first(PICKLE_FILES)):
        problem = f"its weights are a pickle ({pickle}), which may run code when it is read; --allow-pickle reads it"
        weights_file = pickle if allow_pickle else None
    if weights_file is not None:
        place = f"at revision {source.revision}" if source.revision else "in its folder"
        notice = f"real weights, those of {source.name} {place}" if load_format == "auto" else None
        return replace(source, weights_file=weights_file, notice=notice)
    message = f"--model {source.name}: {problem}"
    if load_format == "hf":
        raise UsageError(f"{message}; --load-format dummy needs none")
    return replace(source, notice=dummy_notice(message))


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A config without what names code, and the classes that it names."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise UsageError(
            f"--model: {path} is no JSON: {error.msg} at {at}; mend that line, or fetch it again"
        ) from None
    except RecursionError:
        raise UsageError(f"--model: {path} is nested too deeply; fetch or write it again") from None
    except (OSError, ValueError) as error:  # ValueError: bytes that are no UTF-8, numbers of too many digits
        raise UsageError(f"--model: {path} cannot be read ({one_line(error)}); fetch or write it again") from None
    if not isinstance(config, dict):
        found = JSON_NAMES.get(type(config), "null")
        raise UsageError(f"--model: {path} holds {found} where a JSON object has to be; fetch or write it again")
    check_bounds(config)
    auto_map = config.get("auto_map")
    named = auto_map if isinstance(auto_map, dict) else {}
    return _without_code(config), {kind: str(named[kind]) for kind in (CONFIG, CAUSAL_LM) if kind in named}


def _without_code(value: Any) -> Any:
    """A config without the fields of CODE_FIELDS, in nested configs too."""
    if isinstance(value, dict):
        return {key: _without_code(inner) for key, inner in value.items() if key not in CODE_FIELDS}
    return value


def dummy_notice(reason: object) -> str:
    """What is said where `--load-format auto` takes random weights."""
    return f"dummy (random) weights, because of {reason}"


def _hint(model: str) -> str:
    near = catalog.near_names(model)
    return f"; did you mean {' or '.join(near)} of the built-in table?" if near else ""
