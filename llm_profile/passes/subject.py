"""The model under measurement: loaded, walked, ready to run at any point of a sweep."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_profile.errors import UsageError, is_out_of_memory, one_line
from llm_profile.layers.layout import Layout, expert_modules, walk
from llm_profile.layers.probe import running_modules
from llm_profile.layers.slow_path import reason, slow_layers
from llm_profile.models.blocks import Kept
from llm_profile.models.building import (
    ModelOptions,
    check_attention,
    choose_blocks,
    depth,
    dummy_model,
    make_config,
    resolve_dtype,
)
from llm_profile.models.code_names import unread_lists
from llm_profile.models.model_errors import place, told_in_a_line
from llm_profile.models.positions import learned_positions
from llm_profile.models.quantisation import method_of, parameters_of
from llm_profile.models.quantizer import ADVICE, compressed_modules, full_model_of, quantisation_of
from llm_profile.models.remote_code import code_id
from llm_profile.passes.expert_load import expert_load
from llm_profile.passes.runner import PassRunner
from llm_profile.sweep import SweepPoint

SDPA_BACKENDS: dict[str, list[SDPBackend]] = {
    # Those that torch may choose from; `torch` leaves it all. On Hopper torch takes cuDNN where it may, whatever
    # the order that it is told, and cuDNN builds a plan at each length's first use (60 ms): `auto` is all but cuDNN.
    "auto": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "torch": [],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "math": [SDPBackend.MATH],
}


NO_SDPA_BACKEND = ("No available kernel", "No viable backend")
"""What torch says where no allowed backend can compute attention: on a GPU, and on a CPU."""

PROBE_TOKENS = 256
"""Prompt of the pass that shows what the layers are: some, that compress their cache, run only each so many tokens."""


@dataclass(frozen=True)
class SubjectOptions:
    """What is measured and how it is computed.

    config: fields of config.json. weights: `dummy`, or what identifies real ones (a resolved revision, a folder).
    load: loads the real weights of the kept blocks, None for dummy ones.
    max_input, max_total: the largest pass that will be run. allow_slow_path: measure layers that run slowly for want of
    a kernel; if not, they are refused. notice: what the user should know of the weights.
    """

    config: Mapping[str, Any]
    model: ModelOptions
    max_input: int
    max_total: int
    weights: str = "dummy"
    load: Callable[[Any, ModelOptions, Kept], nn.Module] | None = None
    sdpa_backend: str = "auto"
    routing: str = "balanced"
    allow_slow_path: bool = False
    notice: str | None = None


@contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Let scaled_dot_product_attention use only the named backends."""
    backends = SDPA_BACKENDS[name]
    if not backends:
        yield
        return
    with sdpa_kernel(backends):
        yield


class Subject:
    """A model on its device with its layout of layers and a runner of passes. Close it to undo all patches.

    max_input, max_total: of options, as far as the model has positions. slow_path: rows that run slowly for want of a
    kernel, each with the reason. notices: what the user should know, a line each. Raises UsageError for what cannot be
    measured, and for slow rows that were not allowed.
    """

    def __init__(self, options: SubjectOptions) -> None:
        self.options = options
        with told_in_a_line(options.config.get("model_type"), self._advice()):
            self._open()

    def _advice(self) -> str:
        named = self.options.model.attn_implementation
        return "check its config.json" if named == "auto" else f"try another --attn-implementation than {named}"

    def _open(self) -> None:
        options = self.options
        check_attention(options.model.attn_implementation)
        full_config = make_config(options.config)
        full_model = full_model_of(full_config, options.model)
        kept = choose_blocks(full_model, options.model)
        self.unread_lists = unread_lists(full_model, depth(full_config))
        self.model = (options.load or dummy_model)(full_config, options.model, kept)
        self.code = code_id(self.model)
        self.device = next(self.model.parameters()).device
        self.quantisation = quantisation_of(full_config)
        compressed = compressed_modules(self.model)
        self.dtype = resolve_dtype(full_config, options.model.dtype)
        if self.quantisation is not None:  # a quantizer may have taken another
            self.dtype = resolve_dtype(self.model.config, "auto")
        with ExitStack() as undo:
            undo.enter_context(attention_backend(options.sdpa_backend))
            self.routing = options.routing if options.load is None else "model"
            self.runner = undo.enter_context(
                PassRunner(self.model, options.max_input, options.max_total, options.model.seed, self.routing)
            )
            with self._refusals():
                positions = self._positions()
                self.max_input = min(options.max_input, positions or options.max_input)
                self.max_total = min(options.max_total, positions or options.max_total)
                self.layout: Layout = walk(self.model, full_model, kept, self._probe, positions)
            self._settle_routing()
            self.decompressed = not compressed <= compressed_modules(self.model)
            slow = slow_layers(self.model, self.runner.run, self.max_input, self.max_total)
            self.missing_packages = sorted({package for packages in slow.values() for package in packages})
            self.slow_path = {self.layout.row_of(module): reason(packages) for module, packages in slow.items()}
            self._refuse_slow_path()
            self._undo = undo.pop_all()

    def _positions(self) -> int | None:
        """Most tokens that the model has positions for. Raises UsageError for one that returns no cache."""
        fired: list[nn.Module] = []
        with running_modules(self.model, fired.append):
            output = self.runner.run(SweepPoint(1, 0))
        if getattr(output, self.runner.cache_argument, None) is None:
            raise UsageError(
                f"--model: this {self.options.config.get('model_type')} returns no cache, so it is an encoder and "
                'cannot decode; "is_decoder": true in the config.json of a local copy would make it a decoder'
            )
        return learned_positions(self.model, fired)

    def _probe(self) -> None:
        """The passes that show what the layers are: a prompt, a step behind one token, and steps behind longer caches.

        Layers that compress their cache run each so many tokens, mostly a power of two: longer caches are shorter by
        one than those, and the last is the longest.
        """
        self.runner.run(SweepPoint(min(PROBE_TOKENS, self.max_input), 0))
        longest = self.max_total - 1
        powers = [2**n - 1 for n in range(1, longest.bit_length()) if 2**n - 1 < longest]
        for kv_len in [*powers, longest] if longest else []:
            try:
                self.runner.run(SweepPoint(1, kv_len))
            except Exception as error:
                # what memory or the model's code does not allow: the point will be told to be missing
                if kv_len == 1 or not (is_out_of_memory(error) or place(error)):
                    raise
                break
        self.runner.forget_masks()

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Raise UsageError in place of the errors of first passes whose reason is known."""
        try:
            yield
        except (RuntimeError, ImportError, OSError) as error:  # the last two: kernels that are fetched when they run
            if self.quantisation is not None:
                raise UsageError(
                    f"--model: its {method_of(self.quantisation)} weights do not run here: {one_line(error)}; {ADVICE}"
                ) from error
            if any(said in str(error) for said in NO_SDPA_BACKEND):
                raise UsageError(
                    f"--sdpa-backend {self.options.sdpa_backend}: it cannot run this model's attention in "
                    f"{str(self.dtype).removeprefix('torch.')}; use auto or torch"
                ) from error
            raise

    def _settle_routing(self) -> None:
        """Leave routing to the model if the experts of a block are not told a choice that could be replaced.

        To all of it: one condition says who chooses. Beside routed experts a block may have some that all tokens take.
        """
        self.runner.experts.settle(self.layout.block_kind)
        self.routing = self.runner.routing

    def _refuse_slow_path(self) -> None:
        if self.slow_path and not self.options.allow_slow_path:
            raise UsageError(
                f"--model: rows that would run slow Python in place of a kernel: {self._slow_rows()}; install what is "
                "missing, or measure them as they are with --allow-slow-path"
            )

    def _slow_rows(self) -> str:
        return ", ".join(f"{row} ({why})" for row, why in self.slow_path.items())

    @property
    def notices(self) -> list[str]:
        """What the user should know of the model, a line each."""
        said = [self.options.notice] if self.options.notice else []
        if self.unread_lists:
            said.append(
                f"its config.json has an entry a block in {', '.join(self.unread_lists)}, which the code of a "
                f"{self.options.config.get('model_type')} does not read: blocks are made alike whatever it says"
            )
        if self.decompressed:
            dtype = str(self.dtype).removeprefix("torch.")
            said.append(f"transformers decompresses the weights at their first use: products are those of {dtype}")
        if self.code is not None:
            said.append(f"code of the model's repository runs: {self.code}")
        if self.options.load is None and self.routing != self.options.routing:
            said.append(
                f"--routing {self.options.routing} cannot be applied: experts of this model are not told which of them "
                "were chosen; its router chooses, with random weights"
            )
        if self.slow_path:
            said.append(
                f"slow path: {self._slow_rows()}: measured as it runs, without the kernels that a serving engine has"
            )
        return said

    def conditions(self) -> dict[str, Any]:
        """What of the model must not differ between runs that share a table."""
        config: Any = self.model.config
        has_experts = bool(expert_modules(self.model))
        special: dict[str, Any] = {}
        if self.code is not None:
            special["remote_code"] = self.code
        if self.quantisation is not None:
            special["quantisation"] = parameters_of(self.quantisation) | {"decompressed": self.decompressed}
        if self.missing_packages:
            special["missing_kernels"] = ", ".join(self.missing_packages)
        return special | {
            "dtype": str(self.dtype).removeprefix("torch."),
            "attn_implementation": config._attn_implementation,
            "sdpa_backend": self.options.sdpa_backend,
            "experts_implementation": config._experts_implementation if has_experts else None,
            "routing": self.routing if has_experts else None,
            "cache": self.runner.cache.kind,
            "weights": self.options.weights,
            "num_layers": self.options.model.num_layers,
            "seed": self.options.model.seed,
        }

    def facts(self) -> dict[str, Any]:
        """What is recorded of the model as it was measured in a run, and never compared. The first call runs passes."""
        return {
            "slow_path": self.slow_path,
            "expert_load": self._expert_load,
            "logits_to_keep": self.runner.inputs.takes_logits_to_keep,
        }

    @cached_property
    def _expert_load(self) -> dict[str, Any]:
        return expert_load(self.runner, self.layout, self.max_input)

    def close(self) -> None:
        self._undo.close()
