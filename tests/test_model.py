"""Which model is built from a configuration, and how configurations that no model can be built from are refused."""

from typing import Any

import pytest

from llm_profile.errors import UsageError
from llm_profile.models.building import ModelOptions, choose_blocks, make_config, meta_model
from tests import tiny

LLAMA = tiny.CONFIGS["llama"]


@pytest.mark.parametrize("model_type", ["llava", "mistral3", "internvl"])
def test_of_a_multimodal_type_without_a_causal_model_the_text_is_profiled(model_type: str) -> None:
    config = make_config({"model_type": model_type, "text_config": LLAMA})
    assert (config.model_type, config.hidden_size) == ("llama", LLAMA["hidden_size"])
    assert type(meta_model(config)).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("model_type", ["vit", "clip", "t5"])
def test_a_type_without_a_causal_model_is_refused_by_name(model_type: str) -> None:
    with pytest.raises(UsageError, match=f"has no causal language model of type {model_type}$"):
        meta_model(make_config({"model_type": model_type}))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_act": "nosuch"}, "llama cannot be built.*nosuch"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0; it must have at least one"),
        ({"model_type": ["llama"]}, r"does not know model type \['llama'\]"),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused_in_one_line(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as refused:
        choose_blocks(meta_model(make_config(LLAMA | fields)), ModelOptions(1, "cpu"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_act": "swiglu"}, r"its hidden_act is 'swiglu', .*; it may be .*silu"),
        (
            {"rope_scaling": {"type": "mrope", "factor": 2.0}},
            r"rope_scaling\)\.\w*type is 'mrope'.*; it may be default.*yarn",
        ),
        (
            {"torch_dtype": "torch.float16"},
            r"its torch_dtype is 'torch\.float16', .*; it may be float16, bfloat16, float32",
        ),
        ({"dtype": "int7"}, r"its dtype is 'int7', .*; it may be float16, bfloat16, float32"),
        ({"dtype": "nn"}, r"dtype is 'nn', which is no type of weights; it may be float16"),
        ({"dtype": "int8"}, r"dtype is 'int8', which is no type of weights; it may be float16, bfloat16"),
        ({"hidden_size": "wide"}, r"hidden_size"),
        ({"model_type": "lama"}, r"does not know model type 'lama'; did you mean llama"),
        (
            {"model_type": None, "architectures": ["OPTForCausalLM"]},
            r'no model_type.*add "model_type": "opt", that of OPT',
        ),
        ({"model_type": None, "architectures": ["LlamaForCausalLM"]}, r'add "model_type": "llama", that of Llama'),
        ({"model_type": None}, r'no model_type.*add one, such as "model_type": "llama"'),
        ({"model_type": None, "architectures": 3}, r"no model_type"),
        (
            {"model_type": "opt", "activation_function": "swish2"},
            r"its activation_function is 'swish2', .*; it may be .*gelu",
        ),
    ],
)
def test_a_refusal_names_the_field_its_value_and_what_is_allowed(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as refused:
        meta_model(make_config(LLAMA | fields))
    assert "\n" not in str(refused.value)
