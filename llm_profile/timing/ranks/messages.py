"""What ranks tell each other, as JSON in torch.distributed's store. Imports no torch."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm_profile.measurement import PointFailure, PointSample, RowSample
from llm_profile.points import key_of, point_of_key

if TYPE_CHECKING:
    from torch.distributed import Store

COMMANDS = "commands"
"""Box of what rank 0 tells all ranks."""

ENDED = "ended"
"""Key that is set when the run has ended."""


def answers(rank: int) -> str:
    """Box of what a rank tells rank 0."""
    return f"answers/{rank}"


def dropped(rank: int) -> str:
    """Key that is set when a rank is no longer waited for: it is to end."""
    return f"dropped/{rank}"


def left(rank: int) -> str:
    """Key with the reason why a rank has ended before the run did."""
    return f"left/{rank}"


def claims(number: int) -> str:
    """Counter of the points of a round that ranks have taken."""
    return f"claims/{number}"


def is_over(store: "Store", rank: int) -> bool:
    """Whether this rank is to end."""
    return store.check([ENDED]) or store.check([dropped(rank)])


class Box:
    """Numbered messages of one sender. Each reader has a Box of its own and reads all of them, in order.

    kept: whether messages stay in the store, for other readers.
    """

    def __init__(self, store: "Store", name: str, *, kept: bool = False) -> None:
        self._store = store
        self._name = name
        self._kept = kept
        self._next = 0

    def send(self, message: Mapping[str, Any]) -> None:
        self._store.set(self._key(), json.dumps(message))
        self._next += 1

    def take(self) -> dict[str, Any] | None:
        """The next message; None if it is not there yet."""
        key = self._key()
        if not self._store.check([key]):
            return None
        message: dict[str, Any] = json.loads(self._store.get(key))
        if not self._kept:
            self._store.delete_key(key)
        self._next += 1
        return message

    def _key(self) -> str:
        return f"{self._name}/{self._next}"


def result_message(result: PointSample | PointFailure) -> dict[str, Any]:
    """A result as JSON, with every pass of every row."""
    at = {"at": key_of(result.point)}
    if isinstance(result, PointFailure):
        return at | {"reason": result.reason}
    return at | {
        "rows": {
            name: [[int(ns) for ns in row.pass_ns], row.blocks, row.launches, list(row.kernels)]
            for name, row in result.rows.items()
        },
        "pass_ns": [int(ns) for ns in result.pass_ns],
        "timed_by": result.timed_by,
        "sm_clock_mhz": result.sm_clock_mhz,
        "overlap": float(result.overlap),
        "notes": list(result.notes),
    }


def received_result(message: Mapping[str, Any]) -> PointSample | PointFailure:
    """The result that `result_message` made a message of."""
    point = point_of_key(message["at"])
    if "reason" in message:
        return PointFailure(point, message["reason"])
    rows = {
        name: RowSample(tuple(pass_ns), blocks, launches, tuple(kernels))
        for name, (pass_ns, blocks, launches, kernels) in message["rows"].items()
    }
    return PointSample(
        point,
        rows,
        tuple(message["pass_ns"]),
        message["timed_by"],
        message["sm_clock_mhz"],
        message["overlap"],
        tuple(message["notes"]),
    )
