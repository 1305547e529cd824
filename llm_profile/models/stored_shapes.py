"""Compares the shapes in a checkpoint with those of its config.json, from file headers, without reading a tensor.

transformers checks the kept blocks when it loads them. The other blocks are not loaded, but their latency is taken to
be that of the kept blocks of their kind, so their shapes must be equal to those. That is checked here.
"""

from collections.abc import Iterator, Mapping

from torch import nn

from llm_profile.errors import CheckpointError
from llm_profile.models.blocks import Kept, find_kinds
from llm_profile.models.checkpoint import NAMES_SHOWN, Stored, place_of

MASK_DIMENSIONS = 4
"""Dimensions of an attention mask, [1, 1, positions, positions] of bytes, which old checkpoints contain."""


def check_shapes(name: str, stored: Mapping[str, Stored], full_model: nn.Module, kept: Kept, quantised: bool) -> None:
    """Raise CheckpointError where blocks of one kind have tensors of different shapes.

    name: of the model, for the message. stored: from checkpoint.stored_shapes. full_model: the model of config.json, on
    the meta device. quantised: whether weights are; if so, vectors are not compared, since they may hold text.
    """
    made = {key: tuple(tensor.shape) for key, tensor in full_model.state_dict().items()}
    alike: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for key, path, number, kind, rest in _of_blocks(stored, full_model, kept):
        if not quantised or len(stored[key].shape) > 1:
            front = key.removesuffix(f"{number}.{rest}")
            alike.setdefault((front, kind, rest), []).append((key, f"{path}.{number}.{rest}"))
    wrong = []
    for tensors in alike.values():
        shapes = [stored[key].shape for key, _ in tensors]
        if len(set(shapes)) > 1:
            said = made.get(tensors[0][1])
            right = said if said in shapes else shapes[0]
            wrong += [
                f"{key} is {list(shape)} where its config.json makes it {list(right)}"
                for (key, _), shape in zip(tensors, shapes, strict=True)
                if shape != right
            ]
    if wrong:
        more = f", and {len(wrong) - NAMES_SHOWN} more" if len(wrong) > NAMES_SHOWN else ""
        raise CheckpointError(
            f"--model {name}: blocks of its checkpoint differ that are equal by its config.json: "
            f"{', '.join(wrong[:NAMES_SHOWN])}{more}; correct its config.json or fetch the checkpoint again"
        )


def are_plain(stored: Mapping[str, Stored], plain_model: nn.Module, kept: Kept) -> bool:
    """Whether the stored weights are not quantised, even if config.json says that they are.

    plain_model: the model of config.json without its quantization_config. Matrices in blocks must be stored as floats
    of two bytes or more, and those of the kept blocks with the shapes of plain_model.
    """
    found = {}
    for key, path, number, _, rest in _of_blocks(stored, plain_model, kept):
        tensor = stored[key]
        if not tensor.plain and 1 < len(tensor.shape) < MASK_DIMENSIONS:
            return False
        found[f"{path}.{number}.{rest}"] = tensor
    blocks = [f"{path}.{number}." for stack, numbers in kept.items() for path in stack.paths for number in numbers]
    matrices = {
        key: tuple(parameter.shape)
        for key, parameter in plain_model.named_parameters()
        if parameter.ndim == 2 and key in found and key.startswith(tuple(blocks))  # names outside blocks may differ
    }
    return bool(matrices) and all(found[key] == (shape, True) for key, shape in matrices.items())


def _of_blocks(
    stored: Mapping[str, Stored], full_model: nn.Module, kept: Kept
) -> Iterator[tuple[str, str, int, str, str]]:
    """Each stored tensor that is part of a block, as five values.

    Its name in the checkpoint, the path of the block's list in the model, the block's index, the name of its kind, and
    the tensor's name inside the block.
    """
    kinds = {path: find_kinds(full_model, stack) for stack in kept for path in stack.paths}
    for key in stored:
        parts = key.split(".")
        if (place := place_of(parts, kinds)) is not None:
            at, path = place
            number = int(parts[at])
            if number < len(kinds[path]):  # higher indices: layers behind the blocks that predict further tokens
                yield key, path, number, kinds[path][number], ".".join(parts[at + 1 :])
