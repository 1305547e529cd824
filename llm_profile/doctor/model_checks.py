"""Checks of the model: can it be found, does it fit, does the run fit to the table that is there. Imports no torch."""

from collections.abc import Iterator

from llm_profile.cli import planning
from llm_profile.doctor.finding import Finding, Intended, doubt, failure, fine
from llm_profile.doctor.gpu_handle import Gpu
from llm_profile.errors import UsageError
from llm_profile.models.hub import ModelSource
from llm_profile.models.memory import available_bytes, gib
from llm_profile.sweep import plan

PLACES = {"hub": "the Hub", "cache": "the Hub's cache", "table": "the built-in table", "folder": "its folder"}
"""Where a configuration is from, by ModelSource.origin."""


ASK_FOR_MODEL = "give --model to compare it with what a run needs"


def can_be_found(intended: Intended) -> Finding | None:
    """The model's configuration and weights; of a Hub id, whether the Hub answers and takes the token."""
    source, token = intended.source, "with a token" if intended.request.hf_token else "no HF_TOKEN"
    if source is None:
        return None
    if isinstance(source, UsageError):
        return failure(str(source))
    is_elsewhere = source.origin != "table" or "/" in source.name  # names without an owner are in the table only
    if source.notice and is_elsewhere and source.weights == "dummy" and intended.request.load_format == "auto":
        return doubt(f"{source.notice} ({token}); --load-format dummy says that you want them")
    weights = "real" if source.weights == "hf" else "random"
    return fine(f"{source.name}: configuration from {PLACES[source.origin]} ({token}), {weights} weights")


def table_there(intended: Intended) -> Finding | None:
    """What the run itself checks before it loads anything: depths, pairs to validate, a table that is there already."""
    source, request = intended.source, intended.request
    if not isinstance(source, ModelSource) or isinstance(intended.gpu, UsageError):
        return None
    try:
        paths = planning.table_paths(request, source, planning.hardware_name(request))
        known = planning.check(request, source, paths)
    except UsageError as error:
        return failure(str(error))
    return fine(f"{paths.csv}" + (f" has {len(known)} points already" if known else " is to be written"))


def memory(intended: Intended) -> Finding | None:
    """Free memory of the device against what sweep and validation need."""
    if isinstance(intended.gpu, UsageError) or intended.request.device == "fake":
        return None
    free, where = _free(intended)
    source = intended.source
    if not isinstance(source, ModelSource):
        without = "needed: not known without the model's configuration" if intended.has_model else ASK_FOR_MODEL
        return fine(f"{where}; {without}")
    needs = list(_needs(intended, source))
    wanted = ", ".join(f"{gib(size)} by {what}" for what, size, _advice in needs)
    text = f"{where}; needed: {wanted or 'not known of this model'}"
    short = [f"{what} needs more: {advice}" for what, size, advice in needs if size > free]
    return failure(f"{text}; {'; '.join(short)}") if short else fine(text)


def _free(intended: Intended) -> tuple[int, str]:
    if isinstance(intended.gpu, Gpu):
        free, total = intended.gpu.free_and_total()
        return free, f"{gib(free)} of {gib(total)} free on the GPU"
    return available_bytes(), f"{gib(available_bytes())} free on the host"


def _needs(intended: Intended, source: ModelSource) -> Iterator[tuple[str, int, str]]:
    """What needs memory, how many bytes about, and what to do where they are not there; unknown ones are left out."""
    request = intended.request
    laid_out = plan(request.sweep, planning.learned_positions(source.config))
    sweep = planning.needed_bytes(request, source, laid_out)
    if sweep is not None:
        yield "the sweep", sweep, "end other work on the device, or lower --num-layers, --prefill-max or --decode-max"
    validation = planning.needed_bytes_of_validation(request, source)
    if validation is not None:
        yield "the validation", validation, "lower --scaling-num-layers, or leave it out with --skip-scaling"
