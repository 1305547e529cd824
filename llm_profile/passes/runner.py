"""Forward passes of a model at sweep points. Every pass of a point starts from the same state."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from llm_profile.models.transformers_names import cache_argument
from llm_profile.passes.cache import CopiedCache
from llm_profile.passes.cache_choice import cache_for
from llm_profile.passes.inputs import PassInputs
from llm_profile.passes.masks import KeptMasks
from llm_profile.passes.packed import PackedPasses
from llm_profile.passes.routing import ExpertRouting
from llm_profile.points import SweepPoint


class PassRunner:
    """Context manager: runs passes of `model` with prepared inputs, masks, choice of experts, and KV cache.

    max_input: most tokens of any pass, per sequence. max_total: the same with the tokens in the cache. batch: sequences
    of every pass. routing: one of request.ROUTINGS. packed: points that run as packed passes, once `open_packed` was
    called; those of `batch` and the lengths above do not hold for them. Inside the context, the model's code is patched
    and gradients are off.
    """

    def __init__(
        self,
        model: nn.Module,
        max_input: int,
        max_total: int,
        seed: int,
        routing: str = "model",
        batch: int = 1,
        packed: Sequence[SweepPoint] = (),
    ) -> None:
        self.model = model
        self.inputs = PassInputs(model, max_input, max_total, seed, batch)
        self.packed: PackedPasses | None = None
        self._packed_points, self._seed = packed, seed
        self.experts = ExpertRouting(model, routing, max(batch * max_input, *(point.tokens for point in packed), 0))
        self.cache_argument = cache_argument(model)
        self.cache = cache_for(model, max_total, self._cache_of_prompt)
        self._masks = KeptMasks(model)
        self._primed = False
        self._undo = ExitStack()

    def __enter__(self) -> "PassRunner":
        with ExitStack() as undo:
            undo.enter_context(self._masks.installed())
            undo.enter_context(self.experts.installed())
            undo.enter_context(torch.no_grad())
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._undo.close()

    @property
    def input_ids(self) -> torch.Tensor:
        """The token ids of the longest prompt, [batch, max_input]."""
        return self.inputs.input_ids

    @property
    def routing(self) -> str:
        """How the experts of a token are chosen now: one of request.ROUTINGS."""
        return self.experts.routing

    def open_packed(self, sdpa_backend: str) -> None:
        """Make the packed points ready to run, if there are any. Raises UsageError for a model that has no such passes.

        sdpa_backend: as of `--sdpa-backend`. Call it inside the context.
        """
        if self._packed_points:
            packed = PackedPasses(self.model, self._packed_points, sdpa_backend, self._seed)
            packed.open()
            self.packed = packed

    def forget_masks(self, point: SweepPoint | None = None) -> None:
        """Free the attention masks, or the layout of the packed pass, of a point or of all that were run so far."""
        self._masks.forget(point)
        if self.packed is not None:
            self.packed.forget(point)

    def run(self, point: SweepPoint, last_token_only: bool = False) -> Any:
        """Run one pass and return the model's output.

        last_token_only: `lm_head` sees only the last token, as when a prompt is served, if the model's code allows it.
        In a packed pass, it always sees the last token of each sequence only.
        """
        if self.packed is not None and point in self.packed.points:
            return self.packed.run(point)
        self._refuse(point)
        past = self.past(point.kv_len)  # before the masks' context, since this may run the model at another point
        with self._masks.of_pass(point):
            arguments = self.inputs.of_pass(point, last_token_only)
            return self.model(**arguments, **{self.cache_argument: past, "use_cache": True})

    def _refuse(self, point: SweepPoint) -> None:
        """Raise ValueError for a point that the inputs cannot make: another batch, mixed or longer sequences."""
        batch, max_input = self.input_ids.shape
        if point.kind == "mixed" or point.batch != batch or point.input_len > max_input:
            raise ValueError(f"{point}: this runner has {batch} sequences of one length, of {max_input} tokens at most")

    def past(self, kv_len: int) -> Any:
        """The cache for a pass that starts from `kv_len` past tokens."""
        if isinstance(self.cache, CopiedCache):
            return self.cache.copy_at(kv_len)
        if kv_len and not self._primed:  # the in-place cache allocates its buffers in a pass without a past
            self._primed = True
            self.run(SweepPoint(1, 0, len(self.input_ids)))
        self.cache.rewind(kv_len)
        return self.cache

    def _cache_of_prompt(self, tokens: int) -> Any:
        """The cache that a prompt of so many tokens leaves."""
        return self.model(input_ids=self.inputs.prompt_ids(tokens), use_cache=True)[self.cache_argument]
