import pytest
from torch import nn

from llm_profile.layers.naming import Named, distinct_rows, without_indices


def rows_of(places: dict[str, str], taken: frozenset[str] = frozenset()) -> dict[str, str]:
    """Path -> distinct row. places: path -> the row that its module would get if no other had it."""
    named = [Named(nn.Identity(), without_indices(path), row) for path, row in places.items()]
    return {path: row for path, (_, row) in zip(places, distinct_rows(named, taken), strict=True)}


@pytest.mark.parametrize(
    ("places", "rows"),
    [
        ({"attn.q_proj": "q_proj", "mlp.up_proj": "up_proj"}, ["q_proj", "up_proj"]),
        ({"attn.norm": "norm", "norm": "norm"}, ["attn.norm", "norm"]),
        ({"attn.output.dense": "dense", "output.dense": "dense", "inner.dense": "dense"}, None),
        ({"experts.0.up": "up", "experts.1.up": "up", "shared.up": "up"}, ["experts.up", "experts.up", "shared.up"]),
        ({"mlp.experts": "experts", "mlp.shared": "experts"}, ["experts", "shared"]),
        ({"a.fc1": "experts", "a.fc2": "experts", "b.fc1": "fc1"}, ["a.fc1", "fc2", "b.fc1"]),
        ({"attn.gate": "attn_other", "attn.scan": "attn_other"}, ["gate_other", "scan_other"]),
    ],
)
def test_places_have_rows_of_their_own(places: dict[str, str], rows: list[str] | None) -> None:
    """rows: None where each row has to be the whole path."""
    assert list(rows_of(places).values()) == (rows or list(places))


def test_a_row_that_is_taken_gets_parents() -> None:
    assert rows_of({"model.encoder.ln": "ln", "model.wpe": "wpe"}, frozenset({"ln", "encoder.ln"})) == {
        "model.encoder.ln": "model.encoder.ln",
        "model.wpe": "wpe",
    }
