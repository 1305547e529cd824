"""One forward pass at a sweep point, run again and again from the same state."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from llm_profile.errors import check_at_least_one
from llm_profile.layers.layout import expert_modules, num_experts
from llm_profile.models.patches import MASK_FUNCTION, modelling_functions, patched
from llm_profile.models.transformers_names import COMMON_CACHES, adds_past, cache_argument, takes
from llm_profile.passes.cache import InPlaceCache, PastOfAPrompt
from llm_profile.sweep import SweepPoint

OWN_POSITIONS = frozenset({"reformer"})
"""Model types whose code takes an argument of position numbers and cannot use it."""

WHOLE_SEQUENCE = frozenset({"cpmant"})
"""Model types that take the ids of the past again at each step, beside a cache that has tokens of their own too."""

PARALLEL_CODES = frozenset({"musicgen_decoder", "musicgen_melody_decoder"})
"""Model types that take a sequence of ids for each codebook."""

NEEDS_MASK = frozenset({"git"})
"""Model types that cannot do without an attention mask: ones, for tokens that are all there."""

OWN_CACHE = re.compile(r"Cache$")
"""Classes of this name in a modelling file: its model takes a cache of that class and no other."""


class PassRunner:
    """Runs `model` at sweep points: random token ids, positions and an in-place cache, nothing made anew per pass.

    max_input, max_total: most tokens of one pass, and most with the cache, of any point to be run. batch: sequences of
    every pass. routing: one of request.ROUTINGS, applied to every experts module that is told a choice (`routed`).
    Attention masks are built once per point and kept, as a serving engine prepares them with the batch; the pass itself
    has none of their kernels.
    """

    def __init__(
        self, model: nn.Module, max_input: int, max_total: int, seed: int, routing: str = "model", batch: int = 1
    ) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        config: Any = model.config
        generator = torch.Generator(self.device).manual_seed(seed)
        vocab_size = config.get_text_config(decoder=True).vocab_size
        check_at_least_one("vocab_size", vocab_size)
        self.input_ids = torch.randint(vocab_size, (batch, max_input), device=self.device, generator=generator)
        self.position_ids = torch.arange(max_total, device=self.device)[None]  # [1, max_total]
        self.routing = routing
        self.routed: set[nn.Module] = set()  # experts modules of which a choice was replaced
        self._routes = ExitStack()
        self.max_tokens = batch * max_input
        self._takes_positions = takes(model, "position_ids") and config.model_type not in OWN_POSITIONS
        self._adds_past = adds_past(model)
        self.takes_logits_to_keep = takes(model, "logits_to_keep")
        self._model_type = config.model_type
        self.cache_argument = cache_argument(model)
        self.cache = self._make_cache(config, max_total)
        self._primed = False
        self._masks: dict[tuple[Any, ...], Any] = {}
        self._calls: dict[str, int] = {}
        self._point: SweepPoint | None = None
        self._undo = ExitStack()

    def __enter__(self) -> "PassRunner":
        with ExitStack() as undo:
            for namespace, name, function in modelling_functions(self.model, MASK_FUNCTION):
                undo.enter_context(patched(namespace, name, self._kept(name, function)))
            undo.enter_context(self._routes)
            if self.routing != "model":
                for module in expert_modules(self.model):
                    self._routes.callback(module.register_forward_pre_hook(self._route, with_kwargs=True).remove)
            undo.enter_context(torch.no_grad())
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._undo.close()

    def leave_routing_to_model(self) -> None:
        """Replace no choice of experts from now on."""
        self.routing = "model"
        self._routes.close()

    def forget_masks(self) -> None:
        """Free the masks of the points that were run so far."""
        self._masks.clear()

    def run(self, point: SweepPoint, last_token_only: bool = False) -> Any:
        """One pass. last_token_only: `lm_head` sees one token, as when a prompt is served, if the model's code can."""
        self._refuse(point)
        past = self.past(point.kv_len)  # may run the model
        self._point = point
        self._calls.clear()
        arguments: dict[str, Any] = {
            "input_ids": self.input_ids[:, : point.input_len],
            **self._extra_inputs(point),
            self.cache_argument: past,
            "use_cache": True,
        }
        if self._takes_positions:
            first = 0 if self._adds_past else point.kv_len
            arguments["position_ids"] = self.position_ids[:, first : first + point.input_len]
        if last_token_only and self.takes_logits_to_keep:
            arguments["logits_to_keep"] = 1
        try:
            return self.model(**arguments)
        finally:
            self._point = None

    def _make_cache(self, config: Any, capacity: int) -> InPlaceCache | PastOfAPrompt:
        own = modelling_functions(self.model, OWN_CACHE, own=True) or self._model_type in WHOLE_SEQUENCE
        if self.cache_argument in COMMON_CACHES and not own:
            with suppress(NotImplementedError):  # it has nothing for these layers
                return InPlaceCache(config, capacity)
        return PastOfAPrompt(self._cache_of_prompt)

    def _refuse(self, point: SweepPoint) -> None:
        """Raises ValueError for a point that would be run as another one."""
        batch, max_input = self.input_ids.shape
        if point.kind == "mixed" or point.batch != batch or point.input_len > max_input:
            raise ValueError(f"{point}: this runner has {batch} sequences of one length, of {max_input} tokens at most")

    def past(self, kv_len: int) -> Any:
        """The cache for a pass behind `kv_len` tokens."""
        if isinstance(self.cache, PastOfAPrompt):
            return self.cache.at(kv_len)
        if kv_len and not self._primed:  # a pass without a past shows the cache its shapes
            self._primed = True
            self.run(SweepPoint(1, 0, len(self.input_ids)))
        self.cache.rewind(kv_len)
        return self.cache

    def _extra_inputs(self, point: SweepPoint) -> dict[str, Any]:
        if self._model_type in WHOLE_SEQUENCE:
            return {"input_ids": self.input_ids[:, :1].expand(-1, point.total_len)}
        if self._model_type in PARALLEL_CODES:
            books = cast(Any, self.model.config).num_codebooks
            return {"input_ids": self.input_ids[:, : point.input_len].repeat(books, 1)}
        if self._model_type in NEEDS_MASK:
            return {"attention_mask": torch.ones_like(self.input_ids[:, : point.input_len])}
        return {}

    def _cache_of_prompt(self, tokens: int) -> Any:
        ids = self.input_ids[:, :1].expand(-1, tokens)
        return self.model(input_ids=ids, use_cache=True)[self.cache_argument]

    def _kept(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def build(*args: Any, **kwargs: Any) -> Any:
            if self._point is None:  # not a pass of ours
                return function(*args, **kwargs)
            call = self._calls[name] = self._calls.get(name, -1) + 1
            key = (self._point, name, call)
            if key not in self._masks:
                self._masks[key] = function(*args, **kwargs)
            return self._masks[key]

        return build

    def _route(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Replace the router's choice, a [tokens, top_k] tensor of expert numbers, by a prepared one."""

        def replaced(value: Any) -> Any:
            return self._assignment(module, value) if is_choice(value) else value

        return tuple(replaced(a) for a in args), {k: replaced(v) for k, v in kwargs.items()}

    def _assignment(self, module: nn.Module, chosen: torch.Tensor) -> torch.Tensor:
        self.routed.add(module)
        tokens, top_k = chosen.shape
        table = module.__dict__.get("_llm_profile_assignment")
        if table is None or table.shape[0] < tokens:
            longest = max(tokens, self.max_tokens)
            table = expert_assignment(self.routing, longest, top_k, num_experts(module)).to(chosen)
            module.__dict__["_llm_profile_assignment"] = table
            self._undo.callback(module.__dict__.pop, "_llm_profile_assignment", None)
        return table[:tokens]


def is_choice(value: Any) -> bool:
    """Whether an argument of an experts module is the router's choice: expert numbers, [tokens, top_k]."""
    return isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_floating_point()


def expert_assignment(routing: str, tokens: int, top_k: int, num_experts: int) -> torch.Tensor:
    """Expert numbers [tokens, top_k], distinct within a token.

    balanced: any n tokens in a row give each expert n * top_k / num_experts of them, to within one.
    random: each token draws its experts uniformly.
    """
    if routing == "balanced":
        return (torch.arange(tokens * top_k) % num_experts).view(tokens, top_k)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(tokens, num_experts, generator=generator).argsort(dim=1)[:, :top_k].contiguous()


class HostCopies(TorchDispatchMode):
    """Sends host-to-device copies of a pass through pinned memory that outlives it.

    A model may move a small host tensor to the device in each pass (a rotary table made on the host). From pageable
    memory that waits for the device and cannot be captured in a graph; from pinned memory it is the same copy without
    the wait. The n-th such copy of a pass uses the n-th buffer of its shape, never freed, since graphs read it again.
    A model that made none in its first pass is taken to make none: watching each operator costs more than running it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pinned: dict[tuple[int, torch.Size, torch.dtype], torch.Tensor] = {}
        self._next = 0
        self._idle = False

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Buffers are used in order from the first."""
        if self._idle:
            yield
            return
        self._next = 0
        with self:
            yield
        self._idle = not self._pinned

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu":
            device = kwargs.get("device")
            if device is not None and torch.device(device).type != "cpu":
                return self._copy(args[0], torch.device(device), kwargs)
        return func(*args, **kwargs)

    def _copy(self, host: torch.Tensor, device: torch.device, kwargs: dict[str, Any]) -> torch.Tensor:
        dtype = kwargs.get("dtype") or host.dtype
        key = (self._next, host.shape, dtype)
        if key not in self._pinned:
            self._pinned[key] = torch.empty(host.shape, dtype=dtype, pin_memory=True)
        pinned = self._pinned[key]
        self._next += 1
        pinned.copy_(host)
        return torch.empty_like(pinned, device=device, pin_memory=False).copy_(pinned, non_blocking=True)
