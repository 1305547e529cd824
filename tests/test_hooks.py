"""Hooks and patches around layers: outputs stay the same while they are there, and none is left afterwards."""

import sys
from typing import Any

import pytest
import torch
from transformers.modeling_utils import AttentionInterface

from llm_profile.layers.ranges import LayerRanges
from llm_profile.points import SweepPoint
from tests.tiny import CONFIGS, subject


class Counting:
    """A recorder that counts how many ranges are open."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.depth = 0

    def enter(self, row: str) -> None:
        self.entered.append(row)
        self.depth += 1

    def leave(self) -> None:
        self.depth -= 1


def footprint(model: torch.nn.Module) -> dict[str, Any]:
    """Everything that a hook or a patch could have changed: hook tables, instance attributes, globals of modules."""
    files = {type(m).__module__ for m in model.modules()} | {"transformers.masking_utils", "torch.nn.functional"}
    return {
        "modules": {
            path: {
                key: list(value.items()) if "hooks" in key else id(value)
                for key, value in vars(m).items()
                if key not in ("_modules", "_parameters", "_buffers")
            }
            for path, m in model.named_modules()
        },
        "globals": {file: {k: id(v) for k, v in vars(sys.modules[file]).items()} for file in sorted(files)},
        "interface": dict(vars(AttentionInterface)),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_bit_equal_and_nothing_stays(name: str) -> None:
    tiny = subject(name, 4)
    torch.manual_seed(0)
    points = [SweepPoint(6, 0), SweepPoint(1, 9)]
    for point in points:  # the first pass at a length makes the buffers of the cache
        tiny.runner.run(point)
    before = footprint(tiny.model)
    plain = [tiny.runner.run(point).logits.clone() for point in points]
    recorder = Counting()
    with LayerRanges(tiny.model, tiny.layout, recorder):
        hooked = [tiny.runner.run(point).logits.clone() for point in points]
    assert recorder.depth == 0 and len(recorder.entered) > 20
    assert all(torch.equal(a, b) for a, b in zip(plain, hooked, strict=True))
    assert footprint(tiny.model) == before
    tiny.close()


def test_closing_a_subject_undoes_its_own_patches() -> None:
    import transformers.models.llama.modeling_llama as modeling

    before = modeling.create_causal_mask
    tiny = subject("llama")
    assert modeling.create_causal_mask is not before
    tiny.close()
    assert modeling.create_causal_mask is before


def test_an_error_inside_a_pass_leaves_nothing_open() -> None:
    tiny = subject("llama")
    tiny.runner.run(SweepPoint(2, 0))
    before = footprint(tiny.model)
    recorder = Counting()
    broken = tiny.model.model.layers[0].mlp.up_proj
    handle = broken.register_forward_pre_hook(lambda _m, _a: 1 / 0)
    with pytest.raises(ZeroDivisionError), LayerRanges(tiny.model, tiny.layout, recorder):
        tiny.runner.run(SweepPoint(2, 0))
    handle.remove()
    assert recorder.depth == 0
    assert footprint(tiny.model) == before
    tiny.close()
