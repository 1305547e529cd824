"""Whether a checkpoint has the shapes that its config.json says, told from the headers of its files: no tensor is read.

transformers compares the blocks that are kept when it loads them. The others are profiled as alike, so they are held
against the kept ones here.
"""

from collections.abc import Iterator, Mapping

from torch import nn

from llm_profile.errors import CheckpointError
from llm_profile.models.blocks import Kept, find_kinds
from llm_profile.models.checkpoint import NAMES_SHOWN, Stored, place_of

MASK_DIMENSIONS = 4
"""Old checkpoints hold masks, [1, 1, positions, positions] of bytes, which are no weights."""


def check_shapes(name: str, stored: Mapping[str, Stored], full_model: nn.Module, kept: Kept, quantised: bool) -> None:
    """Raise CheckpointError where blocks that the configuration makes alike have tensors of different shapes.

    full_model: of the configuration, at full depth. Vectors of quantised weights may hold text of any length.
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
            f"--model {name}: blocks of its checkpoint are not as alike as its config.json says: "
            f"{', '.join(wrong[:NAMES_SHOWN])}{more}; mend its config.json or fetch the checkpoint again"
        )


def are_plain(stored: Mapping[str, Stored], plain_model: nn.Module, kept: Kept) -> bool:
    """Whether the matrices of kept blocks are those of a model without quantisation, whatever its config.json says."""
    found = {}
    for key, path, number, _, rest in _of_blocks(stored, plain_model, kept):
        tensor = stored[key]
        if not tensor.wide and 1 < len(tensor.shape) < MASK_DIMENSIONS:
            return False
        found[f"{path}.{number}.{rest}"] = tensor
    blocks = [f"{path}.{number}." for stack, numbers in kept.items() for path in stack.paths for number in numbers]
    matrices = {
        key: tuple(parameter.shape)
        for key, parameter in plain_model.named_parameters()
        if parameter.ndim == 2 and key in found and key.startswith(tuple(blocks))  # others go by other names there
    }
    return bool(matrices) and all(found[key] == (shape, True) for key, shape in matrices.items())


def _of_blocks(
    stored: Mapping[str, Stored], full_model: nn.Module, kept: Kept
) -> Iterator[tuple[str, str, int, str, str]]:
    """Of each tensor in a block: its name, the path of the list in the model, the block's number and kind, the rest."""
    kinds = {path: find_kinds(full_model, stack) for stack in kept for path in stack.paths}
    for key in stored:
        parts = key.split(".")
        if (place := place_of(parts, kinds)) is not None:
            at, path = place
            number = int(parts[at])
            if number < len(kinds[path]):  # some keep layers that predict further tokens behind the others
                yield key, path, number, kinds[path][number], ".".join(parts[at + 1 :])
