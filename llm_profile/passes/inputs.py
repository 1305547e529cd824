"""What a pass is fed: random token ids, positions, and what some model types take beside them."""

from typing import Any

import torch
from torch import nn

from llm_profile.errors import check_at_least_one
from llm_profile.models.transformers_names import adds_past, takes
from llm_profile.points import SweepPoint

OWN_POSITIONS = frozenset({"reformer"})
"""Model types whose code takes an argument of position numbers and cannot use it."""

WHOLE_SEQUENCE = frozenset({"cpmant"})
"""Model types that take the ids of the past again at each step, beside a cache that has tokens of their own too."""

PARALLEL_CODES = frozenset({"musicgen_decoder", "musicgen_melody_decoder"})
"""Model types that take a sequence of ids for each codebook."""

NEEDS_MASK = frozenset({"git"})
"""Model types that cannot do without an attention mask: ones, for tokens that are all there."""


class PassInputs:
    """Arguments of a model's forward, the cache left out. Tensors are made once; a pass gets views of them.

    max_input, max_total: most tokens of one pass, and most with the cache. batch: sequences of every pass.
    takes_positions, takes_logits_to_keep: whether the model's code takes these arguments and uses them.
    """

    def __init__(self, model: nn.Module, max_input: int, max_total: int, seed: int, batch: int) -> None:
        config: Any = model.config
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        vocab_size = config.get_text_config(decoder=True).vocab_size
        check_at_least_one("vocab_size", vocab_size)
        self.input_ids = torch.randint(vocab_size, (batch, max_input), device=device, generator=generator)
        self.position_ids = torch.arange(max_total, device=device)[None]  # [1, max_total]
        self.takes_positions = takes(model, "position_ids") and config.model_type not in OWN_POSITIONS
        self.takes_logits_to_keep = takes(model, "logits_to_keep")
        self._adds_past = adds_past(model)
        self._config = config

    def of_pass(self, point: SweepPoint, last_token_only: bool) -> dict[str, Any]:
        """Arguments of one pass. last_token_only: `lm_head` sees one token, if the model's code can do that."""
        arguments: dict[str, Any] = {"input_ids": self.input_ids[:, : point.input_len], **self._of_type(point)}
        if self.takes_positions:
            first = 0 if self._adds_past else point.kv_len
            arguments["position_ids"] = self.position_ids[:, first : first + point.input_len]
        if last_token_only and self.takes_logits_to_keep:
            arguments["logits_to_keep"] = 1
        return arguments

    def prompt_ids(self, tokens: int) -> torch.Tensor:
        """Token ids of a prompt of any length: one token, repeated. Shape [batch, tokens]."""
        return self.input_ids[:, :1].expand(-1, tokens)

    def _of_type(self, point: SweepPoint) -> dict[str, Any]:
        """What models of some types take beside the token ids, or in their place."""
        if self._config.model_type in WHOLE_SEQUENCE:
            return {"input_ids": self.prompt_ids(point.total_len)}
        if self._config.model_type in PARALLEL_CODES:
            return {"input_ids": self.input_ids[:, : point.input_len].repeat(self._config.num_codebooks, 1)}
        if self._config.model_type in NEEDS_MASK:
            return {"attention_mask": torch.ones_like(self.input_ids[:, : point.input_len])}
        return {}
