"""Real weights: fetches and reads only what a model of few blocks needs.

The tensors of the kept blocks, and those outside all blocks (embedding, final norm, head), are handed to transformers,
which does the rest (fused experts, tied weights, renamings). Files are mapped into memory, so a tensor that nobody
asks for is never read.
"""

import json
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging

from llm_profile.errors import CheckpointError, UsageError, one_line
from llm_profile.models import download
from llm_profile.models.blocks import Kept, keep_entries, kept_of_depth
from llm_profile.models.building import built_with_few_blocks, meta_model
from llm_profile.models.hub import PICKLE_FILES, ModelSource
from llm_profile.models.transformers_quantizer import cut_once_quantised, device_map, quantisation_of

NAMES_SHOWN = 4
"""Most tensors that an error names."""


WIDE = ("F16", "BF16", "F32", "F64")
"""Types of plain weights, as safetensors calls them."""


class Stored(NamedTuple):
    """A tensor as its file's header has it. wide: of floats of two bytes or more."""

    shape: tuple[int, ...]
    wide: bool


@dataclass(frozen=True)
class CheckpointView:
    """The part of a checkpoint that the kept blocks need.

    files: the only ones that will be read. pickled: they are read by torch.load.
    """

    name: str
    files: tuple[Path, ...]
    kept: Kept
    pickled: bool = False

    def tensors(self) -> dict[str, torch.Tensor]:
        """The needed tensors, not yet read, by their names in a checkpoint of the kept blocks alone.

        Raises CheckpointError for a damaged file.
        """
        read = _pickled_tensors if self.pickled else _safetensors
        indices = kept_indices(self.kept)
        return {
            name: tensor
            for file in self.files
            for key, tensor in read(self.name, file)
            if (name := kept_name(key, indices)) is not None
        }


def kept_indices(kept: Kept) -> dict[str, tuple[int, ...]]:
    """Path of each list of blocks (`model.layers`) -> the original indices that are kept."""
    return {path: indices for stack, indices in kept.items() for path in stack.paths}


def kept_name(key: str, kept: Mapping[str, tuple[int, ...]]) -> str | None:
    """What a tensor of a checkpoint is called where there are the kept blocks only; None if it belongs to another.

    The checkpoint may name the list of blocks with more in front than the model does (`language_model.model.layers`),
    with less (`decoder.layers` for `model.decoder.layers`), or in another order (`model.language_model.layers`).
    Numbered parts of any other list are kept.
    """
    parts = key.split(".")
    if (place := place_of(parts, kept)) is None:
        return key
    at, path = place
    number, indices = int(parts[at]), kept[path]
    return ".".join([*parts[:at], str(indices.index(number)), *parts[at + 1 :]]) if number in indices else None


def place_of(parts: list[str], paths: Collection[str]) -> tuple[int, str] | None:
    """Which part of a tensor's name is the number of its block, and the list of `paths` that has it; None for none."""
    return next(
        (
            (at, path)
            for at, part in enumerate(parts)
            if part.isdecimal()
            for path in paths
            if _same_list(parts[:at], path.split("."))
        ),
        None,
    )


def _same_list(one: list[str], other: list[str]) -> bool:
    length = min(len(one), len(other))
    return length > 0 and (one[-length:] == other[-length:] or sorted(one) == sorted(other))


def checkpoint_view(source: ModelSource, *, kept: Kept, token: str | None = None) -> CheckpointView:
    """Choose the shards that hold the kept blocks and all that is outside blocks, and fetch only those.

    A checkpoint of one file is fetched whole.
    Raises CheckpointError for a broken index or a shard that is not there; HubError for one that cannot be fetched.
    """
    if source.weights_file is None:
        raise ValueError(f"{source.name} was found without weights")

    def local(filename: str) -> Path:
        if source.path is None:
            return download.fetch(source.name, filename, revision=source.revision, token=token)
        if not (source.path / filename).is_file():
            raise CheckpointError(f"--model {source.name}: its shard {filename} is missing; fetch the checkpoint again")
        return source.path / filename

    filenames = [source.weights_file]
    if source.weights_file.endswith(".index.json"):
        shard_of = _read_index(source.name, local(source.weights_file))
        indices = kept_indices(kept)
        filenames = sorted({shard for key, shard in shard_of.items() if kept_name(key, indices) is not None})
    files = tuple(local(filename) for filename in filenames)
    return CheckpointView(source.name, files, kept, source.weights_file in PICKLE_FILES)


def stored_shapes(source: ModelSource) -> dict[str, Stored]:
    """What the headers say of all tensors in those files of a checkpoint that are here. Fetches and reads none.

    Raises CheckpointError for a broken index and for damaged files.
    """

    def here(filename: str) -> Path | None:
        if source.path is None:
            return download.cached(source.name, filename, revision=source.revision)
        return source.path / filename if (source.path / filename).is_file() else None

    assert source.weights_file is not None
    head = here(source.weights_file)
    filenames = [source.weights_file] if head else []
    if head and source.weights_file.endswith(".index.json"):
        filenames = sorted(set(_read_index(source.name, head).values()))
    files = [file for filename in filenames if (file := here(filename)) is not None]
    read = _pickled_shapes if source.weights_file in PICKLE_FILES else _header
    return {key: stored for file in files for key, stored in read(source.name, file)}


def load_weights(
    view: CheckpointView, config: Any, dtype: torch.dtype, device: str, **implementations: Any
) -> nn.Module:
    """The view's blocks of a model of `config`, which is at full depth, with their real weights.

    implementations: arguments of `from_pretrained` (`attn_implementation`, `experts_implementation`). Tensors go from
    the mapped files to the device; host memory holds those that change on the way (another dtype, fused experts).
    Quantised ones are handed to transformers' quantizer, which is told the device.
    Raises CheckpointError, naming them, for tensors that the checkpoint lacks or has in another shape.
    """
    shell: Any = meta_model(config, **implementations)
    quantised = quantisation_of(shell.config) is not None
    placement = {"device_map": device_map(device)} if quantised else {}
    cut = cut_once_quantised(view.kept) if quantised else built_with_few_blocks(type(shell), view.kept)
    try:
        with _quiet_transformers(), cut:
            model, info = type(shell).from_pretrained(
                None,
                config=shell.config,
                state_dict=view.tensors(),
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # else transformers raises before it tells which
                **implementations,
                **placement,
            )
    except torch.OutOfMemoryError as error:
        raise UsageError(f"--num-layers: the weights do not fit on {device}; use fewer") from error
    except (ImportError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"--model {view.name}: transformers cannot load its checkpoint: {one_line(error)}"
        ) from error
    mismatched = [
        f"{name} is {list(stored)} where its config.json makes it {list(made)}"
        for name, stored, made in info["mismatched_keys"]
    ]
    for problem, names in (("lacks", info["missing_keys"]), ("has another shape for", mismatched)):
        if names:
            shown = ", ".join(sorted(names)[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
            raise CheckpointError(
                f"--model {view.name}: its checkpoint {problem} {len(names)} of the model's tensors ({shown}); "
                f"fetch it again{'' if quantised else ', or use --load-format dummy'}"
            )
    try:
        loaded: nn.Module = model if placement.get("device_map") else model.to(device)  # some refuse to be moved
    except torch.OutOfMemoryError as error:
        raise UsageError(f"--num-layers: the weights do not fit on {device}; use fewer") from error
    keep_entries(loaded, kept_of_depth(shell, view.kept))
    return loaded.eval().requires_grad_(False)


def _read_index(name: str, index: Path) -> dict[str, str]:
    """The shard of each tensor. Raises CheckpointError for one that is none, empty, or points out of its folder."""
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        inside = bool(shard_of) and all(
            not {"", "/", ".."} & set(PurePosixPath(shard).parts) for shard in shard_of.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        inside = False
    if not inside:
        raise CheckpointError(
            f"--model {name}: {index.name} is no index of shards beside it; fetch the checkpoint again"
        )
    return dict(shard_of)


def _header(name: str, file: Path) -> Iterator[tuple[str, Stored]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (it is no dict)
                tensor = opened.get_slice(key)
                yield key, Stored(tuple(tensor.get_shape()), tensor.get_dtype() in WIDE)
    except (SafetensorError, OSError) as error:
        raise _cut(name, file) from error


def _cut(name: str, file: Path) -> CheckpointError:
    return CheckpointError(f"--model {name}: {file.name} is cut or no safetensors file; fetch it again")


def _safetensors(name: str, file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (it is no dict)
                yield key, opened.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise _cut(name, file) from error


def _pickled_shapes(name: str, file: Path) -> Iterator[tuple[str, Stored]]:
    for key, tensor in _pickled_tensors(name, file):
        yield key, Stored(tuple(tensor.shape), tensor.is_floating_point() and tensor.dtype.itemsize > 1)


def _pickled_tensors(name: str, file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        # weights_only: tensors and plain containers, nothing else that a pickle could build
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:
        # bytes that are no pickle make its reader raise errors of many types
        raise CheckpointError(
            f"--model {name}: {file.name} is damaged, or holds more than tensors; not loaded"
        ) from error
    strange = [key for key, value in state.items() if not _is_entry(key, value)] if isinstance(state, dict) else []
    if not isinstance(state, dict) or strange or not state:
        held = f"a {type(state).__name__}" + (f" with {one_line(repr(strange[0]), 60)}" if strange else "")
        raise CheckpointError(
            f"--model {name}: {file.name} holds {held} and no state dict (names of tensors and the tensors); save the "
            "model's state_dict() alone, or with save_pretrained"
        )
    yield from state.items()


def _is_entry(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, torch.Tensor)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its report of tensors left out (they are meant to be) and its bar."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
