"""What the user should know of the model that is measured."""

from collections.abc import Iterator, Mapping

from llm_profile.passes.loaded import LoadedModel
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.refusals import slow_rows_text


def model_notices(
    loaded: LoadedModel, options: SubjectOptions, routing: str, decompressed: bool, slow_path: Mapping[str, str]
) -> Iterator[str]:
    """The notices, a line each.

    routing: who chooses experts, which may be another than was asked for. decompressed: whether quantised weights are
    plain ones since the first passes. slow_path: row -> why it is slow.
    """
    if options.notice:
        yield options.notice
    if loaded.unread_lists:
        yield (
            f"its config.json has an entry a block in {', '.join(loaded.unread_lists)}, which the code of a "
            f"{options.config.get('model_type')} does not read: blocks are made alike whatever it says"
        )
    if decompressed:
        yield f"transformers decompresses the weights at their first use: products are those of {loaded.dtype_name}"
    if loaded.code is not None:
        yield f"code of the model's repository runs: {loaded.code}"
    if options.load is None and routing != options.routing:
        yield (
            f"--routing {options.routing} cannot be applied: experts of this model are not told which of them "
            "were chosen; its router chooses, with random weights"
        )
    if slow_path:
        yield (
            f"slow path: {slow_rows_text(slow_path)}: measured as it runs, without the kernels that a serving engine "
            "has"
        )
