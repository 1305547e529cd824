"""Row names that tell layers apart: modules at the same place share a row, modules at different places do not."""

from collections import Counter
from collections.abc import Container, Sequence
from typing import NamedTuple

from torch import nn

Place = tuple[str, ...]
"""The parts of a module's path without list indices: `experts.0.up_proj` and `experts.1.up_proj` are one place."""


class Named(NamedTuple):
    """A module with its place. row: the name that its row gets unless another place has the same name."""

    module: nn.Module
    place: Place
    row: str


def without_indices(path: str) -> Place:
    """The place of the module with this path."""
    return tuple(part for part in path.split(".") if part and not part.isdigit())


def distinct_rows(named: Sequence[Named], taken: Container[str] = ()) -> list[tuple[nn.Module, str]]:
    """Each module with the name of its row; no name is in `taken`.

    Where places with the same parent would get the same name, each gets its attribute's name instead. Where others
    would, names of parents are put in front, one by one, until the names differ: `mlp.up_proj`.
    """
    siblings = Counter((place[:-1], row) for place, row in {(place, row) for _, place, row in named})
    names = {
        (place, row): _attribute_row(place, row) if siblings[place[:-1], row] > 1 else row for _, place, row in named
    }
    parents = {key: list(key[0][:-1]) for key in names}  # those that are not yet in front of the name
    while True:
        shared = Counter(names.values())
        ambiguous = [key for key, name in names.items() if parents[key] and (shared[name] > 1 or name in taken)]
        if not ambiguous:
            return [(module, names[place, row]) for module, place, row in named]
        for key in ambiguous:
            names[key] = f"{parents[key].pop()}.{names[key]}"


def _attribute_row(place: Place, row: str) -> str:
    """The row's name from the module's attribute, with the `_other` of `row`."""
    return row if not place else f"{place[-1]}_other" if row.endswith("_other") else place[-1]
