"""Real weights: fetches and reads only what a model of few blocks needs.

The tensors of the first blocks, and those outside all blocks (embedding, final norm, head), are handed to transformers,
which does the rest (fused experts, tied weights, renamings). Files are mapped into memory, so a tensor that nobody
asks for is never read.
"""

import json
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from llm_profile import download
from llm_profile.errors import UsageError
from llm_profile.hub import PICKLE_FILES, ModelSource

NAMES_SHOWN = 4
"""Most tensors that an error names."""


@dataclass(frozen=True)
class CheckpointView:
    """The part of a checkpoint that the first `num_layers` blocks need.

    files: the only ones that will be read. block_prefixes: paths of the model's lists of blocks. pickled: files are
    read by torch.load.
    """

    name: str
    files: tuple[Path, ...]
    num_layers: int
    block_prefixes: tuple[str, ...]
    pickled: bool = False

    def tensors(self) -> dict[str, torch.Tensor]:
        """The needed tensors by their names in the checkpoint, not yet read. Raises UsageError for a damaged file."""
        read = _pickled_tensors if self.pickled else _safetensors
        return {
            key: tensor
            for file in self.files
            for key, tensor in read(self.name, file)
            if is_kept(key, self.num_layers, self.block_prefixes)
        }


def block_prefixes(model: nn.Module, depth: int) -> list[str]:
    """Paths of the outermost module lists with an entry for each of the model's `depth` blocks (`model.layers`).

    Where there are none, nothing of a checkpoint can be told to be a block, and all of it is read.
    """
    paths: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in paths)
        if isinstance(module, nn.ModuleList) and len(module) == depth and not inside:
            paths.append(path)
    return paths


def is_kept(key: str, num_layers: int, block_prefixes: Sequence[str]) -> bool:
    """Whether a tensor of a checkpoint is outside all blocks or in one of the first `num_layers`.

    The checkpoint may name the list of blocks with more in front than the model does (`language_model.model.layers`),
    or with less (`decoder.layers` for `model.decoder.layers`). Numbered parts of any other list are kept.
    """
    parts = key.split(".")
    prefixes = [prefix.split(".") for prefix in block_prefixes]
    for at, part in enumerate(parts):
        if part.isdigit() and any(_same_end(parts[:at], prefix) for prefix in prefixes):
            return int(part) < num_layers
    return True


def _same_end(one: list[str], other: list[str]) -> bool:
    length = min(len(one), len(other))
    return length > 0 and one[-length:] == other[-length:]


def checkpoint_view(
    source: ModelSource, *, num_layers: int, block_prefixes: Sequence[str], token: str | None = None
) -> CheckpointView:
    """Choose the shards that hold the first `num_layers` blocks and all that is outside blocks, and fetch only those.

    block_prefixes: paths of the full model's lists of blocks. A checkpoint of one file is fetched whole.
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
        filenames = sorted({shard for key, shard in shard_of.items() if is_kept(key, num_layers, block_prefixes)})
    files = tuple(local(filename) for filename in filenames)
    return CheckpointView(source.name, files, num_layers, tuple(block_prefixes), source.weights_file in PICKLE_FILES)


def load_weights(
    view: CheckpointView, config: Any, dtype: torch.dtype, device: str, **implementations: Any
) -> nn.Module:
    """A model of `config`, which has the view's number of blocks, with its real weights.

    implementations: arguments of `from_pretrained` (`attn_implementation`, `experts_implementation`). Tensors go from
    the mapped files to the device; host memory holds those that change on the way (another dtype, fused experts).
    Raises UsageError, naming them, for tensors that the checkpoint lacks or has in another shape.
    """
    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(config, **implementations)
    try:
        with _quiet_transformers():
            model, info = type(shell).from_pretrained(
                None,
                config=shell.config,
                state_dict=view.tensors(),
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # else transformers raises before it tells which
                **implementations,
            )
    except (ImportError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"--model {view.name}: transformers cannot load its checkpoint: {reason}") from error
    mismatched = [name for name, *_ in info["mismatched_keys"]]
    for problem, names in (("lacks", info["missing_keys"]), ("has in another shape than its config", mismatched)):
        if names:
            shown = ", ".join(sorted(names)[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
            raise UsageError(
                f"--model {view.name}: its checkpoint {problem} {len(names)} of the model's tensors ({shown}); "
                "fetch it again, or use --load-format dummy"
            )
    try:
        loaded: nn.Module = model.to(device)
    except torch.OutOfMemoryError as error:
        raise UsageError(f"--num-layers {view.num_layers}: the weights do not fit on {device}; use fewer") from error
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
