"""Names of rows: layers of one place share a row, layers of different places have different ones."""

from collections import Counter
from collections.abc import Container, Sequence
from typing import NamedTuple

from torch import nn

Place = tuple[str, ...]
"""Where a module is: its path without indices, since members of a list are alike."""


class Named(NamedTuple):
    """row: what it would be called if no other place had the same name."""

    module: nn.Module
    place: Place
    row: str


def without_indices(path: str) -> Place:
    """Where the module of this path is."""
    return tuple(part for part in path.split(".") if part and not part.isdigit())


def distinct(named: Sequence[Named], taken: Container[str] = ()) -> list[tuple[nn.Module, str]]:
    """The row of each module, none of them `taken`.

    Parents stand in front of a name that several places would have, as many as it takes. Where siblings would have one,
    each keeps the name of its attribute.
    """
    siblings = Counter((place[:-1], row) for place, row in {(place, row) for _, place, row in named})
    names = {(place, row): _own(place, row) if siblings[place[:-1], row] > 1 else row for _, place, row in named}
    parents = {key: list(key[0][:-1]) for key in names}
    while True:
        shared = Counter(names.values())
        vague = [key for key, name in names.items() if parents[key] and (shared[name] > 1 or name in taken)]
        if not vague:
            return [(module, names[place, row]) for module, place, row in named]
        for key in vague:
            names[key] = f"{parents[key].pop()}.{names[key]}"


def _own(place: Place, row: str) -> str:
    return row if not place else f"{place[-1]}_other" if row.endswith("_other") else place[-1]
