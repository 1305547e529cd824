"""Parts of `--kernels fused`: what is a norm or an activation, gate products taken out of MLPs, grouped attention."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.activations import ACT2FN
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm

from llm_profile.layers.roles import Call, find_roles, is_activation, is_norm
from llm_profile.passes.attention_check import _agrees
from llm_profile.passes.compiling import CannotFuseError, agree
from llm_profile.passes.gate_products import gate_product
from llm_profile.passes.grouped_attention import grouped


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def call_of(*shape: int, dtype: torch.dtype = torch.float32) -> Call:
    return Call((torch.randn(*shape, dtype=dtype),), {})


# ---- norms and activations

NORMS = [
    LlamaRMSNorm(32),
    Gemma3RMSNorm(32),  # (1 + weight), of weights 0
    CohereLayerNorm((4, 32)),  # a weight of two dimensions, as of queries
    OlmoLayerNorm(32),  # no weight
    nn.LayerNorm(32),
    nn.RMSNorm(32),
]
OTHERS = [
    *(nn.Linear(32, 32), nn.Identity(), nn.Dropout(0.1), nn.Softmax(-1), nn.ReLU(), nn.SiLU(), nn.Sigmoid()),
    *(nn.Conv1d(4, 4, 1), nn.Embedding(8, 32)),
]


def name_of(module: nn.Module) -> str:
    return type(module).__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("module", NORMS, ids=name_of)
def test_norms_do_not_change_with_the_scale_of_their_input(module: nn.Module, dtype: torch.dtype) -> None:
    assert is_norm(module.to(dtype).eval().forward, call_of(1, 4, 32, dtype=dtype))
    assert not is_activation(module, call_of(1, 4, 32, dtype=dtype))


@pytest.mark.parametrize("module", OTHERS, ids=name_of)
def test_other_layers_are_no_norms(module: nn.Module) -> None:
    assert not is_norm(module.eval().forward, call_of(1, 4, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu2", "quick_gelu", "tanh"])
def test_activations_compute_each_value_by_itself(name: str, dtype: torch.dtype) -> None:
    assert is_activation(ACT2FN[name].eval(), call_of(1, 4, 32, dtype=dtype))


@pytest.mark.parametrize(
    "module",
    [nn.Softmax(-1), nn.Identity(), nn.Dropout(0.1), nn.Linear(32, 32), nn.GLU(), nn.LayerNorm(32)],
    ids=name_of,
)
def test_other_layers_are_no_activations(module: nn.Module) -> None:
    assert not is_activation(module.eval(), call_of(1, 4, 32))


def test_a_gated_norm_is_one_of_its_first_argument() -> None:
    def gated(hidden: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(hidden, (32,)) * functional.silu(gate)

    assert is_norm(gated, Call((torch.randn(1, 4, 32),), {"gate": torch.randn(1, 4, 32)}))
    assert not is_norm(lambda hidden, gate: hidden * gate, Call((torch.randn(1, 32), torch.randn(1, 32)), {}))


# ---- gate products


class Mlp(nn.Module):
    """A gated MLP. combine: what stands between its products, given the activation and the outputs of these."""

    def __init__(self, combine: Callable[..., torch.Tensor], wide: int = 48) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(16, wide), nn.Linear(16, wide)
        self.down = nn.Linear(48, 16)
        self.act, self.norm = nn.SiLU(), nn.LayerNorm(16)
        self.combine = combine

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down(self.combine(self.act, self.gate(x), self.up(x)))
        return y


def halves(act: nn.Module, both: torch.Tensor, _up: torch.Tensor) -> torch.Tensor:
    gate, up = both.chunk(2, dim=-1)
    return up * act(gate)


GATED: dict[str, Callable[..., torch.Tensor]] = {
    "plain": lambda act, gate, up: act(gate) * up,
    "the other way round": lambda act, gate, up: up * act(gate),
    "clamped": lambda act, gate, up: act(gate.clamp(max=0.1)) * (up.clamp(-0.1, 0.1) + 1),
    "with a factor": lambda act, gate, up: act(gate * 0.3) * up * 1.7,
    "of a function": lambda act, gate, up: act(gate) * torch.sigmoid(up),
}


def with_product(mlp: nn.Module, activation: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """What an MLP computes with its product in the place of the activation, and how many tensors that is given."""
    apart = gate_product(mlp, activation, Call((x,), {}))
    given: list[int] = []

    def product(*parts: torch.Tensor) -> Any:
        given.append(len(parts))
        return apart.function(*parts)

    vars(activation)["forward"] = product
    try:
        return apart.forward(x), given
    finally:
        del vars(activation)["forward"]


@pytest.mark.parametrize("name", GATED)
def test_what_is_between_products_runs_in_the_place_of_the_activation(name: str) -> None:
    mlp, x = Mlp(GATED[name]), torch.randn(1, 5, 16)
    found, given = with_product(mlp, mlp.act, x)
    assert torch.equal(found, mlp(x)) and given == [2]


def test_a_product_of_two_halves_gets_one_tensor() -> None:
    mlp, x = Mlp(halves, wide=96), torch.randn(1, 5, 16)
    found, given = with_product(mlp, mlp.act, x)
    assert torch.equal(found, mlp(x)) and given == [1]


def test_products_are_still_calls_of_their_modules() -> None:
    mlp, x = Mlp(GATED["plain"]), torch.randn(1, 5, 16)
    called: list[nn.Module] = []
    handles = [m.register_forward_pre_hook(lambda module, _args: called.append(module)) for m in mlp.children()]
    with_product(mlp, mlp.act, x)
    for handle in handles:
        handle.remove()
    assert called[-4:] in ([mlp.gate, mlp.up, mlp.act, mlp.down], [mlp.up, mlp.gate, mlp.act, mlp.down])


def by_value(act: nn.Module, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return act(gate) * up if gate.sum() > 0 else up


@pytest.mark.parametrize(
    ("combine", "why"),
    [
        (by_value, "cannot be traced"),
        (lambda act, gate, up: act(gate) * act(up), "calls the activation 2 times"),
        (lambda act, gate, up: act(gate) * torch.rand_like(up), "computes something else"),
    ],
)
def test_other_structures_are_refused(combine: Callable[..., torch.Tensor], why: str) -> None:
    mlp = Mlp(combine)
    with pytest.raises(CannotFuseError, match=why):
        gate_product(mlp, mlp.act, call_of(1, 5, 16))


def test_only_multiplied_activations_have_a_product() -> None:
    gated, plain = Mlp(GATED["plain"]), Mlp(lambda act, gate, up: act(gate))
    model = nn.Sequential(gated, plain, nn.LayerNorm(16))
    roles = find_roles(model, lambda: model(torch.randn(1, 1, 16)))
    assert roles.products == {gated.act: gated} and roles.activations.keys() == {gated.act, plain.act}
    assert roles.norms.keys() == {model[2]} and roles.unclear == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# ---- agreement


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_agreement_is_to_some_steps_of_the_dtype(dtype: torch.dtype) -> None:
    values = torch.linspace(-4, 4, 64, dtype=dtype)
    step = 4 * torch.finfo(dtype).eps
    assert agree((values, [values]), (values, [values + 8 * step]))
    assert not agree(values, values + 32 * step)
    assert not agree(values, values.float() if dtype is not torch.float32 else values.double())
    assert not agree(values, values[None])
    assert not agree(values, values * float("nan"))


# ---- attention


class Largest(TorchDispatchMode):
    """The most values of any tensor that an operator made; views make none."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [t for t in (made if isinstance(made, tuple) else (made,)) if isinstance(t, torch.Tensor)]
        if not func.is_view and "empty" not in func.name():
            self.values = max([self.values, *(t.numel() for t in tensors)])
        return made


HEADS, GROUPS, DIM, CACHED = 8, 2, 16, 96
MODULE = SimpleNamespace(num_key_value_groups=HEADS // GROUPS, is_causal=True)


def tensors(batch: int, tokens: int, kv: int = CACHED) -> list[torch.Tensor]:
    """Queries, keys and values with the strides that models and caches give them: tokens before heads; a view."""
    query = torch.randn(batch, tokens, HEADS, DIM).transpose(1, 2)
    return [query, *(torch.randn(batch, GROUPS, kv + 7, DIM)[:, :, :kv] for _ in range(2))]


def causal(batch: int, tokens: int, kv: int = CACHED) -> torch.Tensor:
    return torch.ones(tokens, kv, dtype=torch.bool).tril(kv - tokens).expand(batch, 1, tokens, kv)


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (3, 1), (1, 6), (3, 6), (1, CACHED)])
def test_grouped_attention_with_a_mask_copies_no_keys(batch: int, tokens: int, additive: bool) -> None:
    given, mask = tensors(batch, tokens), causal(batch, tokens)
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    wanted, _ = sdpa_attention_forward(MODULE, *given, mask, scaling=0.3)
    with Largest() as largest:
        found, weights = grouped(sdpa_attention_forward)(MODULE, *given, mask, scaling=0.3)
    torch.testing.assert_close(found, wanted)
    assert found.is_contiguous() and weights is None and found.shape == (batch, tokens, HEADS, DIM)
    expanded = batch * HEADS * CACHED * DIM
    assert largest.values < expanded or tokens == CACHED  # as large as the queries and the result


@pytest.mark.parametrize(("tokens", "kv"), [(6, 6), (1, CACHED)])
def test_without_a_mask_transformers_does_not_copy_either(tokens: int, kv: int) -> None:
    given = tensors(1, tokens, kv)
    with Largest() as largest:
        found, _ = grouped(sdpa_attention_forward)(MODULE, *given, None)
    torch.testing.assert_close(found, sdpa_attention_forward(MODULE, *given, None)[0])
    assert largest.values < HEADS * CACHED * DIM


@pytest.mark.parametrize("options", [{}, {"attention_mask": None}])
def test_grouped_attention_is_compared_with_the_models(options: dict[str, Any]) -> None:
    call = Call((MODULE, *tensors(1, 6)), options)
    assert _agrees(sdpa_attention_forward, call)

    def other(module: Any, query: torch.Tensor, *rest: Any, **more: Any) -> Any:
        return sdpa_attention_forward(module, 2 * query, *rest, **more)

    assert not _agrees(other, call)


def test_what_is_not_grouped_stays_with_transformers() -> None:
    calls: list[Any] = []

    def attend(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return sdpa_attention_forward(*args, **kwargs)

    query, key, value = tensors(1, 6)
    all_heads = SimpleNamespace(num_key_value_groups=1)
    grouped(attend)(all_heads, query, query, query, causal(1, 6, 6))
    bias = torch.zeros(1, HEADS, 6, CACHED)
    grouped(attend)(MODULE, query, key, value, causal(1, 6), position_bias=bias)
    grouped(attend)(MODULE, query, key, value, bias)  # a mask of each head
    assert len(calls) == 3 and calls[1]["position_bias"] is bias
