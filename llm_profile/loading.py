"""From what a user named to what is measured: weights fetched, options settled."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from llm_profile.blocks import Kept
from llm_profile.checkpoint import checkpoint_view, load_weights
from llm_profile.download import HubError
from llm_profile.errors import UsageError
from llm_profile.hub import ModelSource, find_model
from llm_profile.model import (
    ModelOptions,
    choose_blocks,
    implementation_arguments,
    make_config,
    meta_model,
    resolve_dtype,
)
from llm_profile.request import Request
from llm_profile.subject import Subject, SubjectOptions
from llm_profile.table import LatencyTable, slow_path

DUMMY = "dummy"


def requested_subject(request: Request, source: ModelSource) -> Subject:
    """The model that a request is about, with few blocks, ready to run at every point of its sweep."""
    model = ModelOptions(
        request.num_layers,
        request.device,
        request.dtype,
        request.attn_implementation,
        request.experts_implementation,
        request.seed,
    )
    points = request.sweep.points()
    options = subject_options(
        source,
        model,
        token=request.hf_token,
        max_input=max(p.input_len for p in points),
        max_total=max(p.total_len for p in points),
        sdpa_backend=request.sdpa_backend,
        routing=request.routing,
        allow_slow_path=request.allow_slow_path,
    )
    return Subject(options)


def profiled_subject(table: LatencyTable, depth: int, device: str, token: str | None) -> Subject:
    """The model that a table was measured on, with `depth` blocks, under the table's conditions.

    Prompts may be as long as the longest cache of the table. Raises UsageError where its real weights are gone.
    """
    conditions = table.meta["conditions"]
    model = ModelOptions(
        depth,
        device,
        conditions["dtype"],
        conditions["attn_implementation"],
        conditions["experts_implementation"] or "auto",
        conditions["seed"],
        each_kind=False,
    )
    longest = max(p.total_len for p in table.records)
    options = subject_options(
        as_profiled(table.meta, token),
        model,
        token=token,
        max_input=longest,
        max_total=longest,
        sdpa_backend=conditions["sdpa_backend"],
        routing=conditions["routing"] or "balanced",
        allow_slow_path=bool(slow_path(table)),
    )
    return Subject(options)


def settle_weights(source: ModelSource, num_layers: int, token: str | None, insist: bool) -> ModelSource:
    """Fetch what `num_layers` blocks of each kind need.

    insist: real weights or none (`--load-format hf`). If not, random ones take their place where the hub fails, and
    `notice` says why. Raises UsageError for a broken checkpoint, HubError for one that cannot be fetched.
    """
    if source.weights_file is None or source.path is not None:
        return source
    try:
        kept = choose_blocks(meta_model(make_config(source.config)), ModelOptions(num_layers, "meta"))
        checkpoint_view(source, kept=kept, token=token)
    except HubError as error:
        if insist:
            raise
        return replace(source, weights_file=None, notice=f"random weights: {error}")
    return source


def subject_options(
    source: ModelSource, model: ModelOptions, *, token: str | None = None, **options: Any
) -> SubjectOptions:
    """What `Subject` needs to load `source`. options: further fields of SubjectOptions.

    Raises UsageError for random weights in place of quantised ones: they would not be quantised.
    """
    quantisation = source.config.get("quantization_config")
    if source.weights_file is None and quantisation:
        method = quantisation.get("quant_method", "quantised")
        raise UsageError(
            f"--model {source.name}: its weights are {method}, and random ones would not be; use --load-format hf, or "
            "a config.json without quantization_config"
        )
    if source.weights_file is None:
        return SubjectOptions(source.config, model, weights=DUMMY, **options)

    def load(config: Any, model: ModelOptions, kept: Kept) -> nn.Module:
        view = checkpoint_view(source, kept=kept, token=token)
        dtype = resolve_dtype(config, model.dtype)
        return load_weights(view, config, dtype, model.device, **implementation_arguments(model))

    return SubjectOptions(source.config, model, weights=weights_id(source), load=load, **options)


def weights_id(source: ModelSource) -> str:
    """What tells one set of weights from another: resolved revision, or a folder's name; `dummy` for random ones."""
    if source.weights_file is None:
        return DUMMY
    return source.revision or f"folder {source.path.name if source.path else source.name}"


def as_profiled(meta: Mapping[str, Any], token: str | None) -> ModelSource:
    """The model that a table was measured on. Raises UsageError where its real weights are gone."""
    kept = meta["source"]
    if meta["conditions"]["weights"] == DUMMY:
        return ModelSource(kept["name"], meta["config"], "table")
    return find_model(kept["name"], load_format="hf", revision=kept["revision"], token=token)
