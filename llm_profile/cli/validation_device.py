"""The device that the real model runs on in a validation. Imports no torch."""

from llm_profile.errors import UsageError
from llm_profile.request import CLOCKS, DEVICE


def validation_device(asked: str | None, clock: str, runtime: str) -> str:
    """The device of the real model: `asked`, or else one of the kind that the table was measured on.

    clock: that of the table. Raises UsageError for a table that cannot be compared with a model on this device.
    """
    kinds = {clock: kind for kind, clock in CLOCKS.items() if kind != "fake"}
    if asked is not None and (asked == "fake" or not DEVICE.fullmatch(asked)):
        raise UsageError(f"--device {asked}: use cuda, cuda:N or cpu")
    if clock not in kinds:
        raise UsageError(
            f"--csv: its clock is {clock}, so there is no real model to compare it with; use a table that was measured "
            f"with --device cuda or cpu ({' or '.join(kinds)})"
        )
    device = asked or kinds[clock]
    kind = device.partition(":")[0]
    if CLOCKS[kind] != clock:
        raise UsageError(
            f"--device {device}: the table was measured under other conditions: clock is {clock} there and "
            f"{CLOCKS[kind]} now; use --device {kinds[clock]}, or measure a table on {device}"
        )
    if runtime == "cuda-graph" and kind == "cpu":
        raise UsageError("--scaling-runtime cuda-graph: a CPU has no CUDA graphs; use --scaling-runtime eager")
    return device
