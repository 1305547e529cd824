"""The model under measurement: loaded, its layers found, ready to run at any point of a sweep."""

from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from torch import nn

from llm_profile.kernels import FUSED
from llm_profile.layers.layout import Layout, Site, find_layout
from llm_profile.layers.slow_path import slow_layers, why_slow
from llm_profile.models.model_errors import as_usage_error
from llm_profile.models.transformers_quantizer import compressed_modules
from llm_profile.passes.attention import attention_backend
from llm_profile.passes.conditions import model_conditions
from llm_profile.passes.expert_load import expert_load
from llm_profile.passes.fused import FusedKernels
from llm_profile.passes.loaded import load_model
from llm_profile.passes.notices import PADDED, model_notices
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.probing import most_positions, run_probes
from llm_profile.passes.refusals import first_pass_errors, refuse_slow_path
from llm_profile.passes.runner import PassRunner


class Subject:
    """A model on its device, with the layout of its layers and a runner of passes. Close it to undo all patches.

    max_input, max_total: those of `options`, but at most as many tokens as the model has positions for. code:
    identifies the code of the model's repository that runs, None if there is none. slow_path: rows that run slow Python
    instead of a kernel, each with the reason. fused: the kernels of `--kernels fused`, None for the model's own. Raises
    UsageError for a model that cannot be measured, and for slow rows without `options.allow_slow_path`.
    """

    def __init__(self, options: SubjectOptions) -> None:
        self.options = options
        with as_usage_error(options.config.get("model_type"), _advice(options)), ExitStack() as undo:
            self._open(undo)
            self._undo = undo.pop_all()

    def _open(self, undo: ExitStack) -> None:
        options = self.options
        self._loaded, full_model, kept = load_model(options)
        self.model: nn.Module = self._loaded.model
        self.device = next(self.model.parameters()).device
        self.code = self._loaded.code
        compressed = compressed_modules(self.model)
        undo.enter_context(attention_backend(options.sdpa_backend))
        routing = options.routing if options.load is None else "model"  # the router of real weights is trained
        self.runner = undo.enter_context(
            PassRunner(
                self.model,
                options.max_input,
                options.max_total,
                options.model.seed,
                routing,
                packed=options.packed,
            )
        )
        with first_pass_errors(self._loaded, options.sdpa_backend):
            positions = most_positions(self.runner, options.config.get("model_type"))
            self.max_input = min(options.max_input, positions or options.max_input)
            self.max_total = min(options.max_total, positions or options.max_total)
            probes = partial(run_probes, self.runner, self.max_input, self.max_total)
            self.layout: Layout = find_layout(self.model, full_model, kept, probes, positions)
        self.runner.experts.leave_to_router_if_unused(self.layout.block_kind)
        self._decompressed = not compressed <= compressed_modules(self.model)
        slow = slow_layers(self.model, self.runner.run, self.max_input, self.max_total)
        self._missing_packages = sorted({package for packages in slow.values() for package in packages})
        self.slow_path = {self.layout.row_of(module): why_slow(packages) for module, packages in slow.items()}
        if not options.allow_slow_path:
            refuse_slow_path(self.slow_path)
        with first_pass_errors(self._loaded, options.sdpa_backend):
            self.runner.open_packed(options.sdpa_backend)
        if (packed := self.runner.packed) is not None:
            ends = (Site(sampler, row, None) for row, sampler in packed.samplers.items())
            self.layout = replace(self.layout, sites=(*self.layout.sites, *ends))
        self.fused: FusedKernels | None = None
        if options.kernels == FUSED:  # last, since the passes above watch the model's own operators
            self.fused = undo.enter_context(
                FusedKernels(self.model, self.layout, self.runner, self.max_input, self.max_total)
            )

    @property
    def routing(self) -> str:
        """How the experts of a token are chosen: one of request.ROUTINGS."""
        return self.runner.routing

    @property
    def most_cached(self) -> int | None:
        """Tokens that the cache of packed passes has memory for, of all sequences; None where no pass is packed."""
        return self.runner.packed.most_cached if self.runner.packed else None

    @property
    def notices(self) -> list[str]:
        """What the user should know about the model, a line each."""
        not_fused = self.fused.not_fused if self.fused else {}
        told = (self.routing, self._decompressed, self.slow_path, not_fused)
        packed = self.runner.packed
        padded = [PADDED] if packed is not None and packed.is_padded else []
        return [*model_notices(self._loaded, self.options, *told), *padded]

    def conditions(self) -> dict[str, Any]:
        """What must be the same in all runs that add to one table, of the model (JSON values by name)."""
        return model_conditions(self._loaded, self.options, self.runner, self._missing_packages, self._decompressed)

    def facts(self) -> dict[str, Any]:
        """What is recorded of the model in each run and may differ between runs. The first call runs passes."""
        return {
            "slow_path": self.slow_path,
            "expert_load": self._expert_load,
            "logits_to_keep": self.runner.inputs.takes_logits_to_keep,
            **({"packed_attention": self.runner.packed.facts()} if self.runner.packed else {}),
            **({"fused": self.fused.fused, "not_fused": self.fused.not_fused} if self.fused else {}),
        }

    @cached_property
    def _expert_load(self) -> dict[str, Any]:
        return expert_load(self.runner, self.layout, self.max_input)

    def close(self) -> None:
        """Undo all patches of the model's code."""
        self._undo.close()


def _advice(options: SubjectOptions) -> str:
    """What the user is told to try if the model's code fails."""
    if options.model.tp > 1:
        return f"a shard of --tp {options.model.tp} may be what it cannot run; use --tp 1"
    named = options.model.attn_implementation
    return "check its config.json" if named == "auto" else f"try another --attn-implementation than {named}"
