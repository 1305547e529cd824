"""From a user's request to a loaded model: its weights are fetched and checked, or random ones are used."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from llm_profile.errors import CheckpointError, UsageError
from llm_profile.models.blocks import Kept
from llm_profile.models.building import (
    ModelOptions,
    choose_blocks,
    implementation_arguments,
    make_config,
    meta_model,
    resolve_dtype,
)
from llm_profile.models.checkpoint import checkpoint_view, load_weights, stored_shapes
from llm_profile.models.download import HubError
from llm_profile.models.hub import ModelSource, dummy_notice
from llm_profile.models.model_errors import as_usage_error
from llm_profile.models.quantisation_config import method_of, quantisation_fields, without_quantisation
from llm_profile.models.remote_code import code_of
from llm_profile.models.stored_shapes import are_plain, check_shapes
from llm_profile.models.transformers_quantizer import full_model_of
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.subject import Subject
from llm_profile.request import Request

DUMMY = "dummy"


def requested_subject(request: Request, source: ModelSource) -> Subject:
    """The model of a request, with few blocks, ready to run at every point of its sweep.

    With `--load-format auto`, random weights are used if the real ones cannot be loaded. Raises UsageError for a model
    that cannot be measured; for weights CheckpointError, or HubError if they cannot be fetched.
    """
    points = request.sweep.flat_points()
    options = subject_options(
        source,
        _model_options(request),
        token=request.hf_token,
        max_input=max(p.input_len for p in points),
        max_total=max(p.total_len for p in points),
        sdpa_backend=request.sdpa_backend,
        routing=request.routing,
        allow_slow_path=request.allow_slow_path,
        kernels=request.kernels,
        packed=request.sweep.compositions(),
    )
    with code_of(source, request.hf_token):
        try:
            return Subject(options)
        except (HubError, CheckpointError) as error:
            if request.load_format != "auto" or options.load is None or quantisation_fields(source.config):
                raise
            return Subject(replace(options, weights=DUMMY, load=None, notice=dummy_notice(error)))


def _model_options(request: Request) -> ModelOptions:
    return ModelOptions(
        request.num_layers,
        request.device,
        request.dtype,
        request.attn_implementation,
        request.experts_implementation,
        request.seed,
        tp=request.tp,
    )


def fetch_weights(request: Request, source: ModelSource) -> ModelSource:
    """Fetch the weights that the kept blocks of a request need, and check their shapes against those of the model.

    With `--load-format auto`, a source of random weights is returned if the real ones cannot be fetched or used; its
    `notice` says why. Raises UsageError for a configuration that cannot be used here; for weights CheckpointError, or
    HubError if they cannot be fetched.
    """
    if source.weights_file is None:
        return source
    try:
        with (
            code_of(source, request.hf_token),
            as_usage_error(source.config.get("model_type"), "check its config.json"),
        ):
            return _fetched(request, source)
    except (HubError, CheckpointError) as error:
        if request.load_format != "auto":
            raise
        return replace(source, weights_file=None, notice=dummy_notice(error))


def _fetched(request: Request, source: ModelSource) -> ModelSource:
    """`source` as `fetch_weights` returns it, if its weights can be used; otherwise errors are raised as they come."""
    options = _model_options(request)
    source = _as_plain(source, options)  # first, since a quantizer that cannot run here would raise an error
    full_model = full_model_of(make_config(source.config), options)
    kept = choose_blocks(full_model, options)
    checkpoint_view(source, kept=kept, token=request.hf_token)
    if (plain := _as_plain(source, options)) is not source:  # only now are the stored shapes there to tell
        return _fetched(request, plain)
    quantised = quantisation_fields(source.config) is not None
    check_shapes(source.name, stored_shapes(source), full_model, kept, quantised)
    return source


def _as_plain(source: ModelSource, options: ModelOptions) -> ModelSource:
    """`source` without its quantization_config, and with a notice, if the weights that were fetched are plain.

    Merged and converted models often keep the field by mistake. The field stays if its method quantises plain weights
    while they are loaded (`quantization_mode` is `online`).
    """
    fields = quantisation_fields(source.config)
    if fields is None or fields.get("quantization_mode") == "online":
        return source
    config = without_quantisation(source.config)
    full_model = meta_model(make_config(config))
    if not are_plain(stored_shapes(source), full_model, choose_blocks(full_model, options)):
        return source
    notice = (
        f"the weights of {source.name} are plain, although its config.json has a quantization_config: they are "
        "measured as plain weights; remove the field to end this notice"
    )
    return replace(source, config=config, notice=f"{source.notice}; {notice}" if source.notice else notice)


def subject_options(
    source: ModelSource, model: ModelOptions, *, token: str | None = None, **options: Any
) -> SubjectOptions:
    """The options of a `Subject` that loads `source`. options: further fields of SubjectOptions.

    Raises UsageError if random weights would take the place of quantised ones, since they would not be quantised.
    """
    quantisation = quantisation_fields(source.config)
    if source.weights_file is None and quantisation is not None:
        raise UsageError(
            f"--model {source.name}: its weights are quantised ({method_of(quantisation)}), and random ones would not "
            "be; use --load-format hf, or a config.json without quantization_config"
        )
    if model.tp > 1 and quantisation is not None:
        raise UsageError(
            f"--tp {model.tp}: the weights of {source.name} are quantised ({method_of(quantisation)}), and only plain "
            "ones are divided; use --tp 1"
        )
    if source.weights_file is None:
        return SubjectOptions(source.config, model, weights=DUMMY, **options)

    def load(config: Any, model: ModelOptions, kept: Kept) -> nn.Module:
        view = checkpoint_view(source, kept=kept, token=token)
        dtype = resolve_dtype(config, model.dtype)
        return load_weights(view, config, dtype, model.device, model.tp, **implementation_arguments(model))

    return SubjectOptions(source.config, model, weights=weights_id(source), load=load, **options)


def weights_id(source: ModelSource) -> str:
    """Identifies a set of weights: the resolved revision, or the name of a folder; `dummy` for random weights."""
    if source.weights_file is None:
        return DUMMY
    return source.revision or f"folder {Path(os.path.abspath(source.path)).name if source.path else source.name}"
