"""Depth and positions read from a config.json are compared with those of the configuration class."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_profile.models.building import make_config
from llm_profile.models.config_names import WorkedOut, field_of_decoder
from tests.shrunken import TYPES, WRITTEN, tiny_config

FIELDS = ("num_hidden_layers", "max_position_embeddings")
WORKED_OUT_AT_MOST = 50
"""Most fields, of some 380, that only the class itself can compute, which takes a plan seconds."""

ALIASES = {"gpt-sw3"}
"""Types that transformers reads with the configuration class of another type."""


def fields_of(model_type: str) -> dict[str, Any]:
    return WRITTEN[model_type] if model_type in WRITTEN else dict(tiny_config(model_type).to_dict())


def test_every_type_is_read_as_transformers_reads_it() -> None:
    wrong, worked_out, read = [], [], 0
    for model_type in TYPES:
        for written in (False, True):
            try:
                fields = fields_of(model_type) if written else {"model_type": model_type}
                config = make_config(fields).get_text_config(decoder=True)
            except Exception:  # a class that has no default for some field, or cannot read what it wrote
                continue
            for name in FIELDS:
                try:
                    told = field_of_decoder(fields, name)
                except WorkedOut:
                    worked_out.append((model_type, name))
                    continue
                read += 1
                if told != getattr(config, name, None):
                    wrong.append((model_type, name, told))
    assert {name for name, *_ in wrong} <= ALIASES
    assert read > 400
    assert len(worked_out) <= WORKED_OUT_AT_MOST


@pytest.mark.parametrize(
    ("config", "depth", "positions"),
    [
        ({"model_type": "gpt2", "n_layer": 4, "n_positions": 64}, 4, 64),
        ({"model_type": "gpt2"}, 12, 1024),
        ({"model_type": "gpt2", "num_hidden_layers": 3, "max_position_embeddings": 32}, 3, 32),
        ({"model_type": "mpt", "n_layers": 5}, 5, None),
        ({"model_type": "bloom", "n_layer": 5}, 5, None),
        ({"model_type": "bart", "encoder_layers": 2, "decoder_layers": 5, "max_position_embeddings": 50}, 5, 50),
        ({"model_type": "llava", "text_config": {"model_type": "gpt2", "n_layer": 7, "n_positions": 9}}, 7, 9),
        ({"model_type": "gemma3", "text_config": {"num_hidden_layers": 3}}, 3, 131072),
        ({"model_type": "mistral", "num_hidden_layers": 2}, 2, 4096 * 32),
        ({"model_type": "nobody-knows", "num_hidden_layers": 2}, 2, None),
        ({"model_type": "../../etc", "num_hidden_layers": 2}, 2, None),
        ({"model_type": ["llama"], "num_hidden_layers": 2}, 2, None),
        ({"num_hidden_layers": 2}, 2, None),
    ],
)
def test_names_of_depth_and_positions(config: dict[str, Any], depth: int, positions: int | None) -> None:
    def read(name: str) -> Any:
        try:
            return field_of_decoder(config, name)
        except WorkedOut:
            return getattr(make_config(config).get_text_config(decoder=True), name, None)

    assert (read("num_hidden_layers"), read("max_position_embeddings")) == (depth, positions)


def test_what_a_class_works_out_is_not_guessed() -> None:
    with pytest.raises(WorkedOut):
        field_of_decoder({"model_type": "nemotron_h", "num_hidden_layers": 9}, "num_hidden_layers")


def test_reading_imports_nothing() -> None:
    code = (
        "import sys; from llm_profile.models.config_names import field_of_decoder as f;"
        "depth = f({'model_type': 'gpt2', 'n_layer': 4}, 'num_hidden_layers');"
        "print(depth, {'torch', 'transformers'} & set(sys.modules))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", "set()"]
