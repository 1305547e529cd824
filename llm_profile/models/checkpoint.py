"""Real weights: only the files that the kept blocks need are fetched, and only the tensors that they need are read.

The tensors of the kept blocks and those outside all blocks (embedding, final norm, head) are handed to transformers,
which fuses experts, ties weights and renames tensors. Files are mapped into memory, so other tensors are never read.
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
from llm_profile.models.shards import cut_to_shard
from llm_profile.models.transformers_quantizer import cut_once_quantised, device_map, quantisation_of

NAMES_SHOWN = 4
"""Most tensors that one error message names."""


PLAIN_DTYPES = ("F16", "BF16", "F32", "F64")
"""Types of weights that are not quantised, as safetensors calls them."""


class Stored(NamedTuple):
    """Shape and type of a tensor in a checkpoint. plain: whether its type is a float of two bytes or more."""

    shape: tuple[int, ...]
    plain: bool


@dataclass(frozen=True)
class CheckpointView:
    """The part of a checkpoint that the kept blocks need.

    name: of the model, for messages. files: those with needed tensors, in local folders. pickled: whether they are
    pickles, which torch.load reads.
    """

    name: str
    files: tuple[Path, ...]
    kept: Kept
    pickled: bool = False

    def tensors(self) -> dict[str, torch.Tensor]:
        """Name -> tensor, for the needed tensors, with blocks numbered as if the kept ones were all.

        The tensors are mapped into memory, not read yet. Raises CheckpointError for a damaged file.
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
    """Path of each list of blocks (`model.layers`) -> indices of its kept blocks in the full model."""
    return {path: indices for stack, indices in kept.items() for path in stack.paths}


def kept_name(key: str, kept: Mapping[str, tuple[int, ...]]) -> str | None:
    """The name of a checkpoint's tensor in a model of the kept blocks only; None for a tensor of another block.

    key: its name in the checkpoint. kept: from `kept_indices`. The checkpoint's path to the list of blocks may have
    more parts in front than the model's (`language_model.model.layers`), fewer (`decoder.layers` for
    `model.decoder.layers`), or the same parts in another order (`model.language_model.layers`). Numbers that belong to
    other lists, such as experts, stay as they are.
    """
    parts = key.split(".")
    if (place := place_of(parts, kept)) is None:
        return key
    at, path = place
    number, indices = int(parts[at]), kept[path]
    return ".".join([*parts[:at], str(indices.index(number)), *parts[at + 1 :]]) if number in indices else None


def place_of(parts: list[str], paths: Collection[str]) -> tuple[int, str] | None:
    """Where a tensor's name has the number of its block, and the path of the block's list; None outside blocks.

    parts: the name split at its points. paths: of the lists of blocks in the model. The place is an index of `parts`.
    """
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
    """Fetch the shards that hold tensors of the kept blocks or tensors outside blocks, and no others.

    A checkpoint that is a single file is fetched whole. source: must have a weights_file.
    Raises CheckpointError for a broken index or a missing shard, and HubError for a file that cannot be fetched.
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
    """Name -> shape and type, for the tensors in all local files of a checkpoint, from the headers of these files.

    Nothing is fetched, and no tensor is read. source: must have a weights_file.
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
    read = _pickled_shapes if source.weights_file in PICKLE_FILES else _safetensors_shapes
    return {key: stored for file in files for key, stored in read(source.name, file)}


def load_weights(
    view: CheckpointView, config: Any, dtype: torch.dtype, device: str, tp: int = 1, **implementations: Any
) -> nn.Module:
    """A model of the view's kept blocks with their real weights, on `device`.

    config: of the full model. tp: tensor parallel degree; above 1, only the shard of the first rank is read and moved,
    which must be of plain weights. implementations: arguments of `from_pretrained` (`attn_implementation`,
    `experts_implementation`). Tensors go from the mapped files to the device; host memory is only needed for those that
    change on the way (another dtype, fused experts). Quantised weights are loaded by a quantizer of transformers.

    Raises CheckpointError for tensors that are missing or have another shape than in the model, and for weights that
    transformers cannot load; UsageError for weights that do not fit on the device.
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
                ignore_mismatched_sizes=True,  # without it, transformers raises an error that does not list the tensors
                **implementations,
                **placement,
            )
    except torch.OutOfMemoryError as error:
        raise UsageError(f"--num-layers: the weights do not fit on {device}; use fewer blocks") from error
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
    cut_to_shard(model, tp)
    try:
        # not moved if it was loaded onto the device: some quantised models refuse `to`
        loaded: nn.Module = model if placement.get("device_map") else model.to(device)
    except torch.OutOfMemoryError as error:
        raise UsageError(f"--num-layers: the weights do not fit on {device}; use fewer blocks") from error
    keep_entries(loaded, kept_of_depth(shell, view.kept))
    return loaded.eval().requires_grad_(False)


def _read_index(name: str, index: Path) -> dict[str, str]:
    """Name of each tensor -> the file of its shard, from an index file.

    Raises CheckpointError for a file that is no index, is empty, or names files outside its folder.
    """
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        inside = bool(shard_of) and all(
            not {"", "/", ".."} & set(PurePosixPath(shard).parts) for shard in shard_of.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        inside = False
    if not inside:
        raise CheckpointError(
            f"--model {name}: {index.name} is no index of shards in its folder; fetch the checkpoint again"
        )
    return dict(shard_of)


def _safetensors_shapes(name: str, file: Path) -> Iterator[tuple[str, Stored]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (it is no dict)
                tensor = opened.get_slice(key)
                yield key, Stored(tuple(tensor.get_shape()), tensor.get_dtype() in PLAIN_DTYPES)
    except (SafetensorError, OSError) as error:
        raise _damaged(name, file) from error


def _damaged(name: str, file: Path) -> CheckpointError:
    return CheckpointError(f"--model {name}: {file.name} is truncated or no safetensors file; fetch it again")


def _safetensors(name: str, file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (it is no dict)
                yield key, opened.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise _damaged(name, file) from error


def _pickled_shapes(name: str, file: Path) -> Iterator[tuple[str, Stored]]:
    for key, tensor in _pickled_tensors(name, file):
        yield key, Stored(tuple(tensor.shape), tensor.is_floating_point() and tensor.dtype.itemsize > 1)


def _pickled_tensors(name: str, file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        # weights_only: load tensors and plain containers, and refuse other objects, which could run code
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:
        # files that are no pickles make torch.load raise errors of many types
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
    """While open, transformers shows no progress bar and no report of tensors that are left out, as is intended."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
