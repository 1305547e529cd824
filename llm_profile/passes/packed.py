"""Packed passes, as serving engines run a step: the tokens of all sequences in one row, over a KV cache in place.

The model's own code runs, with a cache and an attention function of ours, so that every layer is as in any other pass.
Norms and products see one sequence of all tokens. What of attention the model leaves to transformers' attention
interface is computed by packed_attention.py; other models are refused.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface

from llm_profile.compositions import is_sampled
from llm_profile.errors import UsageError
from llm_profile.models.memory import available_bytes
from llm_profile.models.patches import MASK_FUNCTION, modelling_functions, overridden, patched
from llm_profile.models.transformers_names import COMMON_CACHES, adds_past, cache_argument
from llm_profile.passes.inputs import PassInputs
from llm_profile.passes.packed_attention import WAYS, backends_of, choose_way
from llm_profile.passes.packed_cache import PackedCache
from llm_profile.passes.packed_layout import PackedLayout
from llm_profile.passes.samplers import samplers
from llm_profile.points import SweepPoint

PACKED = "llm_profile_packed"
"""Of the attention function. transformers makes no masks for a function that it has no masks of."""

IMPLEMENTATION = "_attn_implementation_internal"
"""Attribute of a configuration with the name of its attention function, without the checks of the property."""

CACHE_SHARE = 0.7
"""Most of the free memory that the cache takes: activations of passes and copies of weights need the rest."""

PROBE = (SweepPoint.of([(3, 0), (2, 1), (1, 3)]), SweepPoint(1, 2, 2))
"""Compositions that show whether a model can be packed. They need no more than four positions."""

PLAIN_MASKS = ("create_causal_mask", "create_sliding_window_causal_mask")
"""Functions whose masks attention of packed passes knows: a token sees those before it, in a window or all."""

MASKS_BY_LAYER = "create_masks_for_generate"
PLAIN_LAYERS = {"full_attention", "sliding_attention"}
"""That function makes masks of all `layer_types` of a configuration. They are plain if these are."""

WITHOUT_KERNEL = ("softcap", "s_aux", "position_bias", "attention_bias", "head_mask")
"""Arguments of attention that packed attention does not apply, if they are anything."""


class PackedPasses:
    """Runs packed passes of a model.

    points: the compositions that may run. sdpa_backend: as of `--sdpa-backend`. samplers: row -> what ends the pass of
    a point of `per-sequence`. most_cached: tokens of all sequences that the cache has memory for; is_padded: whether no
    kernel takes sequences of different lengths as they are. Both are known after `open`.
    """

    def __init__(self, model: nn.Module, points: Sequence[SweepPoint], sdpa_backend: str, seed: int) -> None:
        self.points = frozenset(points)
        self.samplers = samplers() if any(map(is_sampled, points)) else {}
        self.most_cached: int | None = None
        self.is_padded = False
        self._model, self._sdpa_backend = model, sdpa_backend
        self._device = next(model.parameters()).device
        tokens = max(point.tokens for point in (*points, *PROBE))
        self._inputs = PassInputs(model, tokens, 1, seed, 1)
        self._layouts: dict[SweepPoint, PackedLayout] = {}
        self._layout: PackedLayout | None = None
        self._ways: dict[SweepPoint, str] = {}
        self._calls: list[dict[str, Any]] = []
        self._cache: PackedCache | None = None
        self._configs = [c for c in _configs(model) if hasattr(c, IMPLEMENTATION)]

    def open(self) -> None:
        """Try small passes, and allot the cache. Raises UsageError for a model that cannot be packed."""
        self._cache = self._new_cache(max(point.cache_len for point in PROBE))
        masks: Counter[str] = Counter()
        with _noting_calls(self._model, masks):
            for point in PROBE:
                self.run(point)
                self._check(masks)
        self.is_padded = self._ways[PROBE[0]] == "padded"
        self.most_cached = int(CACHE_SHARE * self._free_bytes()) // self._cache.bytes_per_token
        fitting = [point.cache_len for point in self.points if point.cache_len <= self.most_cached]
        self._cache = self._new_cache(max([*fitting, *(point.cache_len for point in PROBE)]))
        self.run(PROBE[0])  # allocates the cache, before other things take the memory
        self.forget()
        self._ways.clear()

    def run(self, point: SweepPoint) -> Any:
        """Run one pass and return the model's output, with the logits of each sequence's last token if it can."""
        assert self._cache is not None
        layout = self._layout = self._layout_of(point)
        self._cache.lay_out(layout)
        self._calls.clear()
        AttentionInterface.register(PACKED, self._attend)
        arguments: dict[str, Any] = {
            "input_ids": self._inputs.input_ids[:, : layout.tokens],
            "position_ids": layout.positions[None],
            cache_argument(self._model): self._cache,
            "use_cache": True,
        }
        if self._inputs.takes_logits_to_keep:
            arguments["logits_to_keep"] = layout.last
        with ExitStack() as undo:
            for config in self._configs:
                undo.enter_context(overridden(config, IMPLEMENTATION, PACKED))
            output = self._model(**arguments)
        if self.samplers and is_sampled(point):
            for sampler in self.samplers.values():
                sampler(output.logits[0])
        return output

    def forget(self, point: SweepPoint | None = None) -> None:
        """Free the tensors of the layout of a point, or of all points."""
        self._layouts = {key: kept for key, kept in self._layouts.items() if point is not None and key != point}

    def facts(self) -> dict[str, int]:
        """How many compositions took each of WAYS so far."""
        return {way: count for way in WAYS if (count := Counter(self._ways.values())[way])}

    def _new_cache(self, capacity: int) -> PackedCache:
        config: Any = self._model.config
        refusal = self._refusal()
        try:
            if refusal is None:
                return PackedCache(config, capacity)
        except NotImplementedError as error:
            refusal = f"its cache has layers of {error}, which hold no keys and values alone"
        raise _cannot_pack(self._model, refusal)

    def _refusal(self) -> str | None:
        """Why the arguments of the model allow no packed passes, None if they do."""
        if not self._inputs.takes_positions or adds_past(self._model):
            return "it takes no position of each token"
        return None if cache_argument(self._model) in COMMON_CACHES else "its cache is of its own format"

    def _layout_of(self, point: SweepPoint) -> PackedLayout:
        if point not in self._layouts:
            if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                raise RuntimeError("a packed pass is laid out during a capture; run it once before")
            self._layouts[point] = PackedLayout(point, self._device)
        return self._layouts[point]

    def _attend(
        self,
        _module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """query: [1, heads, tokens, dim]; key and value: [1, groups, total, dim]; result: [1, tokens, heads, dim]."""
        layout = self._layout
        assert layout is not None
        self._calls.append({**options, "mask": attention_mask, "sliding_window": sliding_window})
        packed = [each[0].transpose(0, 1) for each in (query, key, value)]
        way = self._ways[layout.point] = choose_way(layout, *packed)
        with backends_of(way, self._sdpa_backend, query.device):
            return WAYS[way](layout, *packed, scaling, sliding_window)[None], None

    def _check(self, masks: Counter[str]) -> None:
        """Raise UsageError unless all attention of the latest pass was packed, and as the model means it."""
        refuse = partial(_cannot_pack, self._model)
        assert self._cache is not None
        if not self._calls or len(self._calls) != self._cache.updates:
            raise refuse("not all of its attention goes through transformers' attention interface")
        if strange := [name for name in masks if name not in self._plain_masks()]:
            raise refuse(f"its masks ({strange[0]}) are none that a kernel makes by itself")
        if any(call["mask"] is not None for call in self._calls):
            raise refuse("it makes attention masks of its own")
        windows = [call["sliding_window"] for call in self._calls]
        if masks["create_sliding_window_causal_mask"] and not any(windows):
            raise refuse("it does not tell the attention function its sliding window")
        for call in self._calls:
            if used := [name for name in WITHOUT_KERNEL if call.get(name) is not None]:
                raise refuse(f"no kernel of torch for packed sequences takes its {used[0]}")
            if call.get("is_causal") is False:
                raise refuse("its attention is not causal")

    def _plain_masks(self) -> tuple[str, ...]:
        config: Any = self._model.config
        types = getattr(config.get_text_config(decoder=True), "layer_types", None)
        return (*PLAIN_MASKS, MASKS_BY_LAYER) if types and {*types} <= PLAIN_LAYERS else PLAIN_MASKS

    def _free_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.mem_get_info(self._device)[0]
        return available_bytes()


def _configs(model: nn.Module) -> list[Any]:
    """The model's configuration and those of its parts, each once."""
    found = [model.config, *(getattr(module, "config", None) for module in model.modules())]
    return list({id(config): config for config in found if config is not None}.values())


@contextmanager
def _noting_calls(model: nn.Module, calls: Counter[str]) -> Iterator[None]:
    """While open, calls of the functions that build masks in the model's code are counted."""

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def build(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return build

    with ExitStack() as undo:
        for namespace, name, function in modelling_functions(model, MASK_FUNCTION):
            undo.enter_context(patched(namespace, name, noting(name, function)))
        yield


def _cannot_pack(model: nn.Module, why: str) -> UsageError:
    config: Any = model.config
    return UsageError(f"--axes: passes of a {config.model_type} cannot be packed: {why}; leave out --axes")
