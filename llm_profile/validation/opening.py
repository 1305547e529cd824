"""The model that a table was measured on, opened under the table's conditions at any depth."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from llm_profile.errors import UsageError
from llm_profile.models.building import ModelOptions
from llm_profile.models.hub import ModelSource, find_model
from llm_profile.models.model_errors import as_usage_error
from llm_profile.models.remote_code import code_of
from llm_profile.passes.loaded import load_model
from llm_profile.passes.loading import DUMMY, subject_options
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from llm_profile.validation.profiled import Profiled


def profiled_subject(
    profiled: Profiled,
    depth: int,
    device: str,
    token: str | None,
    trust_remote_code: bool = False,
    packed: Sequence[SweepPoint] = (),
) -> Subject:
    """The model with the profile's cache, routing and kernels. Prompts may be as long as the table's longest pass.

    packed: points that run as packed passes.

    Raises UsageError where its real weights are gone, and where the code of its repository may not run or is another
    now.
    """
    with _options(profiled, depth, device, token, trust_remote_code) as (options, name):
        subject = Subject(replace(options, packed=packed))
    try:
        _check_code(profiled, name, subject.code)
    except UsageError:
        subject.close()
        raise
    return subject


def profiled_model(
    profiled: Profiled, depth: int, device: str, token: str | None, trust_remote_code: bool = False
) -> nn.Module:
    """The model alone, as a script has it: nothing is patched or watched. Raises as `profiled_subject`."""
    with (
        _options(profiled, depth, device, token, trust_remote_code) as (options, name),
        as_usage_error(options.config.get("model_type"), "check its config.json"),
    ):
        loaded, _full_model, _kept = load_model(options)
    _check_code(profiled, name, loaded.code)
    return loaded.model


@contextmanager
def _options(
    profiled: Profiled, depth: int, device: str, token: str | None, trust_remote_code: bool
) -> Iterator[tuple[SubjectOptions, str]]:
    """The options of the model under the table's conditions, and its name; its repository's code may run within."""
    conditions = profiled.conditions
    model = ModelOptions(
        depth,
        device,
        conditions["dtype"],
        conditions["attn_implementation"],
        conditions["experts_implementation"] or "auto",
        conditions["seed"],
        each_kind=False,
    )
    source = _source(profiled, token, trust_remote_code)
    with code_of(source, token):
        yield (
            subject_options(
                source,
                model,
                token=token,
                max_input=profiled.longest,
                max_total=profiled.longest,
                sdpa_backend=conditions["sdpa_backend"],
                routing=conditions["routing"] or "balanced",
                allow_slow_path=profiled.allow_slow_path,
                kernels=conditions["kernels"],
            ),
            source.name,
        )


def _check_code(profiled: Profiled, name: str, code: str | None) -> None:
    code_then = profiled.conditions.get("remote_code")
    if code != code_then:
        raise UsageError(f"--csv: measured with the code {code_then}, which is {code} now; measure {name} anew")


def _source(profiled: Profiled, token: str | None, trust_remote_code: bool = False) -> ModelSource:
    """Where the model came from.

    Raises UsageError where its real weights are gone, and where code of its repository ran and may not run now.
    """
    kept, conditions = profiled.meta["source"], profiled.conditions
    with_code = conditions.get("remote_code") is not None
    if with_code and not trust_remote_code:
        raise UsageError(
            f"--csv: {kept['name']} was measured with code of its repository, which would have to run again: "
            "--trust-remote-code runs it"
        )
    random = conditions["weights"] == DUMMY
    if random and not with_code:
        return ModelSource(kept["name"], profiled.meta["config"], "table")
    found = find_model(
        kept["name"],
        load_format=DUMMY if random else "hf",
        revision=kept["revision"],
        token=token,
        trust_remote_code=with_code,
    )
    return replace(found, config=profiled.meta["config"])
