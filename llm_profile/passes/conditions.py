"""What of the model must not differ between the runs of one table."""

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
    """The conditions as JSON.

    missing_packages: of kernels that reference implementations stand in for. decompressed: whether quantised weights
    are plain ones since the first passes. Those that most models do not have are left out where they do not apply.
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
        "experts_implementation": config._experts_implementation if has_experts else None,
        "routing": runner.routing if has_experts else None,
        "cache": runner.cache.kind,
        "weights": options.weights,
        "num_layers": options.model.num_layers,
        "seed": options.model.seed,
    }
