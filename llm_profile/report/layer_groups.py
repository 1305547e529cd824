"""Layers that pictures show next to each other, and their colours. Imports no torch."""

from collections.abc import Iterable

from llm_profile.work import layer_of

OTHER_ROWS = "all other rows"
"""Label of the rows that no group names."""

LAYER_GROUPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    # label, colour, rows (without the kind of block in front); the first stands at the bottom of the stack
    ("MLP: gate, up, down", "#4e79a7", ("gate_proj", "up_proj", "down_proj", "fc1", "fc2", "gate", "experts")),
    ("q, k, v, o projections", "#a0cbe8", ("q_proj", "k_proj", "v_proj", "o_proj")),
    ("norms", "#59a14f", ("input_layernorm", "post_layernorm", "final_layernorm", "q_norm", "k_norm")),
    ("rope", "#edc948", ("rope",)),
    ("attn", "#e15759", ("attn",)),
    (OTHER_ROWS, "#bab0ac", ()),
    ("lm_head, one token", "#b07aa1", ("lm_head",)),
)

GROUP_OF = {row: number for number, (_label, _colour, rows) in enumerate(LAYER_GROUPS) for row in rows}
OTHER_NUMBER = [label for label, _colour, _rows in LAYER_GROUPS].index(OTHER_ROWS)

LIGHTEST, DARKEST = 0.35, -0.25
"""How far the rows of a group are mixed with white, and with black."""


def group_of(row: str) -> int:
    """Number of the group of a row in LAYER_GROUPS."""
    return GROUP_OF.get(layer_of(row), OTHER_NUMBER)


def stacked(rows: Iterable[str]) -> list[str]:
    """Rows from the bottom of a stack to its top: by group, and within one in the order given."""
    return sorted(rows, key=group_of)


def colours(rows: Iterable[str]) -> dict[str, str]:
    """A colour for each row: that of its group, lighter or darker."""
    groups: dict[int, list[str]] = {}
    for row in rows:
        groups.setdefault(group_of(row), []).append(row)
    found: dict[str, str] = {}
    for number, members in groups.items():
        for place, row in enumerate(members):
            share = place / (len(members) - 1) if len(members) > 1 else None
            mixed = 0.0 if share is None else LIGHTEST + share * (DARKEST - LIGHTEST)
            found[row] = _mixed(LAYER_GROUPS[number][1], mixed)
    return found


def _mixed(colour: str, amount: float) -> str:
    """A colour mixed with white, or with black for less than 0."""
    towards, share = (255, amount) if amount > 0 else (0, -amount)
    parts = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(part + share * (towards - part)):02x}" for part in parts)
