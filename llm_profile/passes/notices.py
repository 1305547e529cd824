"""Notices to the user about the model that is measured."""

from collections.abc import Iterator, Mapping

from llm_profile.models.tp_plan import whole_layers
from llm_profile.passes.loaded import LoadedModel
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.refusals import rows_with_reasons

PADDED = (
    "--axes: here no kernel attends to sequences of different lengths as they are: attention of such compositions "
    "copies them and fills them up to the longest, which takes longer than in a serving engine"
)


def model_notices(
    loaded: LoadedModel,
    options: SubjectOptions,
    routing: str,
    decompressed: bool,
    slow_path: Mapping[str, str],
    not_fused: Mapping[str, str],
) -> Iterator[str]:
    """The notices, a line each.

    routing: how experts are chosen, which may differ from `options.routing`. decompressed: whether the first passes
    turned quantised weights into plain ones. slow_path: row -> why it runs slow Python. not_fused: row -> why it keeps
    the model's kernels with `--kernels fused`.
    """
    if options.notice:
        yield options.notice
    if loaded.unread_lists:
        yield (
            f"its config.json has an entry for each block in {', '.join(loaded.unread_lists)}, which the code of "
            f"{options.config.get('model_type')} does not read: all blocks are made alike, whatever it says"
        )
    if decompressed:
        yield (
            f"transformers decompresses the weights at their first use: matrix products are those of plain "
            f"{loaded.dtype_name} weights"
        )
    if loaded.code is not None:
        yield f"code of the model's repository runs: {loaded.code}"
    if options.load is None and routing != options.routing:
        yield (
            f"--routing {options.routing} cannot be applied: the experts of this model do not get the numbers of the "
            "chosen ones as an argument; its router chooses, with random weights"
        )
    degree = options.model.tp
    if degree > 1 and (whole := whole_layers(loaded.model, degree)):
        yield (
            f"--tp {degree}: the plan that transformers has for {loaded.model.config.model_type} leaves "  # type: ignore[union-attr]
            f"{', '.join(whole)} whole on each rank, and so they are measured"
        )
    if slow_path:
        yield (
            f"slow path: {rows_with_reasons(slow_path)}: measured as it runs here, in slow Python; a serving engine "
            "has kernels for it"
        )
    if not_fused:
        yield f"--kernels fused: these rows keep the model's kernels: {rows_with_reasons(not_fused)}"
