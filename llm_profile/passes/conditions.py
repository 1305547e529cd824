"""The conditions of the model: what must be the same in all runs that add to one table."""

from collections.abc import Iterable
from typing import Any

from llm_profile.layers.layout import expert_modules
from llm_profile.models.quantisation_config import parameters_of
from llm_profile.passes.loaded import LoadedModel
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.runner import PassRunner


def model_conditions(
    loaded: LoadedModel,
    options: SubjectOptions,
    runner: PassRunner,
    missing_packages: Iterable[str],
    decompressed: bool,
) -> dict[str, Any]:
    """The conditions of a model, as JSON values by name.

    missing_packages: packages that are not installed, so that transformers runs slow Python in place of their kernels.
    decompressed: whether the first passes turned quantised weights into plain ones. `remote_code`, `quantisation` and
    `missing_kernels` are left out of the result where they do not apply.
    """
    config: Any = loaded.model.config
    has_experts = bool(expert_modules(loaded.model))
    special: dict[str, Any] = {}
    if loaded.code is not None:
        special["remote_code"] = loaded.code
    if loaded.quantisation is not None:
        special["quantisation"] = parameters_of(loaded.quantisation) | {"decompressed": decompressed}
    if missing := ", ".join(missing_packages):
        special["missing_kernels"] = missing
    return special | {
        "dtype": loaded.dtype_name,
        "attn_implementation": config._attn_implementation,
        "sdpa_backend": options.sdpa_backend,
        "kernels": options.kernels,
        "experts_implementation": config._experts_implementation if has_experts else None,
        "routing": runner.routing if has_experts else None,
        "cache": runner.cache.kind,
        "weights": options.weights,
        "num_layers": options.model.num_layers,
        "seed": options.model.seed,
        "tp": options.model.tp,
    }
