"""Real weights: fetches and reads only what a model of few blocks needs.

The tensors of the kept blocks, and those outside all blocks (embedding, final norm, head), are handed to transformers,
which does the rest (fused experts, tied weights, renamings). Files are mapped into memory, so a tensor that nobody
asks for is never read.
"""

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging

from llm_profile import download
from llm_profile.blocks import Kept, keep_entries, kept_of_depth
from llm_profile.errors import UsageError, one_line
from llm_profile.hub import PICKLE_FILES, ModelSource
from llm_profile.model import built_with_few_blocks, meta_model
from llm_profile.quantizer import cut_once_quantised, device_map, quantisation_of

NAMES_SHOWN = 4
"""Most tensors that an error names."""


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

        Raises UsageError for a damaged file.
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
    for at, part in enumerate(parts):
        if part.isdigit():
            for path, indices in kept.items():
                if _same_list(parts[:at], path.split(".")):
                    if int(part) not in indices:
                        return None
                    return ".".join([*parts[:at], str(indices.index(int(part))), *parts[at + 1 :]])
    return key


def _same_list(one: list[str], other: list[str]) -> bool:
    length = min(len(one), len(other))
    return length > 0 and (one[-length:] == other[-length:] or sorted(one) == sorted(other))


def checkpoint_view(source: ModelSource, *, kept: Kept, token: str | None = None) -> CheckpointView:
    """Choose the shards that hold the kept blocks and all that is outside blocks, and fetch only those.

    A checkpoint of one file is fetched whole.
    Raises UsageError for a broken index or a shard that is not there; HubError for one that cannot be fetched.
    """
    if source.weights_file is None:
        raise ValueError(f"{source.name} was found without weights")

    def local(filename: str) -> Path:
        if source.path is None:
            return download.fetch(source.name, filename, revision=source.revision, token=token)
        if not (source.path / filename).is_file():
            raise UsageError(f"--model {source.name}: its shard {filename} is missing; fetch the checkpoint again")
        return source.path / filename

    filenames = [source.weights_file]
    if source.weights_file.endswith(".index.json"):
        shard_of = _read_index(source.name, local(source.weights_file))
        indices = kept_indices(kept)
        filenames = sorted({shard for key, shard in shard_of.items() if kept_name(key, indices) is not None})
    files = tuple(local(filename) for filename in filenames)
    return CheckpointView(source.name, files, kept, source.weights_file in PICKLE_FILES)


def load_weights(
    view: CheckpointView, config: Any, dtype: torch.dtype, device: str, **implementations: Any
) -> nn.Module:
    """The view's blocks of a model of `config`, which is at full depth, with their real weights.

    implementations: arguments of `from_pretrained` (`attn_implementation`, `experts_implementation`). Tensors go from
    the mapped files to the device; host memory holds those that change on the way (another dtype, fused experts).
    Quantised ones are handed to transformers' quantizer, which is told the device.
    Raises UsageError, naming them, for tensors that the checkpoint lacks or has in another shape.
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
        raise UsageError(f"--model {view.name}: transformers cannot load its checkpoint: {one_line(error)}") from error
    mismatched = [name for name, *_ in info["mismatched_keys"]]
    for problem, names in (("lacks", info["missing_keys"]), ("has in another shape than its config", mismatched)):
        if names:
            shown = ", ".join(sorted(names)[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
            raise UsageError(
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
    """The shard of each tensor. Raises UsageError for an index that is none, or that points out of its folder."""
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        inside = all(not {"", "/", ".."} & set(PurePosixPath(shard).parts) for shard in shard_of.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        inside = False
    if not inside:
        raise UsageError(f"--model {name}: {index.name} is no index of shards beside it; fetch the checkpoint again")
    return dict(shard_of)


def _safetensors(name: str, file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (it is no dict)
                yield key, opened.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"--model {name}: {file.name} is cut or no safetensors file; fetch it again") from error


def _pickled_tensors(name: str, file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        # weights_only: tensors and plain containers, nothing else that a pickle could build
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UsageError(f"--model {name}: {file.name} is damaged, or holds more than tensors; not loaded") from error
    yield from state.items()


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
