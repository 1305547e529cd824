import pytest

from llm_profile import request
from llm_profile.errors import UsageError
from llm_profile.models import building
from llm_profile.models.building import ModelOptions
from llm_profile.models.hub import ModelSource
from llm_profile.passes.attention import ALLOWED_BACKENDS
from llm_profile.passes.loading import subject_options, weights_id
from tests.tiny import CONFIGS

OPTIONS = ModelOptions(1, "cpu", "float32")


def test_random_weights_do_not_stand_in_for_quantised_ones() -> None:
    config = {**CONFIGS["llama"], "quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(UsageError, match="someone/fp8: its weights are quantised .fp8.*--load-format hf"):
        subject_options(ModelSource("someone/fp8", config, "hub"), OPTIONS, max_input=8, max_total=8)


def test_random_weights_are_a_condition_of_the_table() -> None:
    source = ModelSource("tiny", CONFIGS["llama"], "table")
    options = subject_options(source, OPTIONS, max_input=8, max_total=8)
    assert options.load is None
    assert options.weights == weights_id(source) == "dummy"


def test_real_weights_go_by_their_revision() -> None:
    source = ModelSource("a/b", CONFIGS["llama"], "hub", revision="0123abc", weights_file="model.safetensors")
    options = subject_options(source, OPTIONS, max_input=8, max_total=8)
    assert options.load is not None
    assert options.weights == "0123abc"


def test_every_choice_of_the_command_line_has_its_meaning() -> None:
    assert tuple(ALLOWED_BACKENDS) == request.SDPA_BACKENDS
    assert ("auto", *building.TORCH_DTYPES) == request.DTYPES
