"""Finds a model in a local folder, on the hub, in the hub's cache, or in the built-in table. Imports no torch.

Fields of a config.json that could make transformers run code are left out. The classes that a repository brings are
noted apart, and run only with --trust-remote-code (remote_code.py).
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
"""Names of a checkpoint's single file and of its index of shards, for safetensors and for pickles.

They are looked for in this order, as in transformers: if a model was saved again in one file, an index that is left
from before is not read.
"""

CODE_FIELDS = frozenset({"auto_map", "custom_pipelines", "fusion_config", "transformers_weights"}) | {
    # an implementation can be a repository of kernels on the hub, so only the command line may choose one
    f"{underscore}{kind}_implementation{internal}"
    for kind in ("attn", "experts")
    for underscore in ("", "_")
    for internal in ("", "_internal")
}

"""Fields of a config.json, nested ones included, that are left out because they name code or files to run or load."""

JSON_NAMES = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}

CACHE_FOLDER = "models--"
"""Beginning of a model's folder in the hub's cache: `models--org--name/snapshots/<commit>`."""

CONFIG, CAUSAL_LM = "AutoConfig", "AutoModelForCausalLM"
"""Keys of `auto_map` in a config.json: the classes of the repository's code that are used."""


@dataclass(frozen=True)
class ModelSource:
    """What a model is built from.

    name: the id on the hub or in the table, or the folder as given.
    config: the fields of config.json, without CODE_FIELDS.
    origin: where the config is from: `folder`, `hub`, `cache` or `table`.
    revision: hash of the commit on the hub; None for folders and the table.
    path: the local folder; None for others.
    weights_file: name of the checkpoint's single file or of its index of shards; None for random weights.
    notice: a line for the user: which weights `--load-format auto` chose, and why.
    code: CONFIG or CAUSAL_LM -> class that the repository brings, as `file.Class`.
    trusted: whether these classes may run.
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
    """The name that a model in a folder gets: the last part of the path, before links are followed.

    A snapshot folder in the hub's cache has the id of its model as name.
    """
    there = path.resolve() if path.name == ".." else Path(os.path.abspath(path))
    repository = there.parent.parent.name
    if there.parent.name == "snapshots" and repository.startswith(CACHE_FOLDER):
        return repository.removeprefix(CACHE_FOLDER).replace("--", "/", 1)
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
    """Find the config of `--model`, and which file its weights are in; weights are fetched later (checkpoint.py).

    A local folder with a config.json comes first. Otherwise it depends on load_format:
    `dummy` (random weights): the table, then the hub.
    `hf` (real weights): the hub.
    `auto`: the hub, or the table if the hub fails. Without real weights, random ones are taken and `notice` says so.

    model: a folder, an id on the hub, or a name in the table, with or without its owner. revision: branch, tag or
    commit on the hub; with one, the table is not used.

    Raises UsageError, or HubError for problems of the hub, in one line and after a limited time.
    """
    if load_format not in LOAD_FORMATS:
        raise UsageError(f"--load-format {load_format}: choose one of {', '.join(LOAD_FORMATS)}")
    try:
        folder = Path(model).expanduser()
        is_model = (folder / "config.json").is_file()
    except (OSError, RuntimeError, ValueError) as error:  # name too long, no permission, unknown ~user, zero byte
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
    if entry and "/" not in name:  # a model of this project, which is not on the hub
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
    """`source` with its weights_file, or with a notice of why it has none; unchanged for `--load-format dummy`.

    looks: functions that tell whether a file is there. All names are tried with the first before the next is asked.
    Raises UsageError for `--load-format hf` without weights.
    """

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
    """The fields of a config.json without CODE_FIELDS, and its classes: CONFIG or CAUSAL_LM -> `file.Class`."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise UsageError(
            f"--model: {path} is no JSON: {error.msg} at {at}; correct that line, or fetch the file again"
        ) from None
    except RecursionError:
        raise UsageError(f"--model: {path} is nested too deeply; fetch or write it again") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or numbers with too many digits
        raise UsageError(f"--model: {path} cannot be read ({one_line(error)}); fetch or write it again") from None
    if not isinstance(config, dict):
        found = JSON_NAMES.get(type(config), "null")
        raise UsageError(f"--model: {path} holds {found} where a JSON object is expected; fetch or write it again")
    check_bounds(config)
    auto_map = config.get("auto_map")
    named = auto_map if isinstance(auto_map, dict) else {}
    return _without_code(config), {kind: str(named[kind]) for kind in (CONFIG, CAUSAL_LM) if kind in named}


def _without_code(value: Any) -> Any:
    """A config without CODE_FIELDS, in nested configs too."""
    if isinstance(value, dict):
        return {key: _without_code(inner) for key, inner in value.items() if key not in CODE_FIELDS}
    return value


def dummy_notice(reason: object) -> str:
    """The line for the user where `--load-format auto` takes random weights. reason: for example the hub's error."""
    return f"dummy (random) weights, because of {reason}"


def _hint(model: str) -> str:
    """End of a message with names of the table that are similar to `model`; empty without any."""
    near = catalog.near_names(model)
    return f"; did you mean {' or '.join(near)} of the built-in table?" if near else ""
