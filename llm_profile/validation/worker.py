"""What a process of the real model does: it opens the model, and times steps when it is told to.

It imports what a script of the user's would, and holds nothing of the sweep. torch is imported when it starts to work.
"""

import os
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

from llm_profile import versions
from llm_profile.errors import UsageError
from llm_profile.points import SweepPoint
from llm_profile.store.conditions import differing_conditions
from llm_profile.validation.profiled import Profiled


class Worker:
    """One real model. Its methods are called by name from the process that validates."""

    def __init__(self) -> None:
        self._steps: Any = None

    def start(self) -> None:
        """Import what the work needs. The device is not touched yet."""
        import torch  # noqa: F401
        import transformers  # noqa: F401

        from llm_profile.validation import reality  # noqa: F401

    def check(self, conditions: Mapping[str, Any], device_name: str, parent_pid: int) -> list[str]:
        """Raise UsageError where the machine, or what is installed on it, is another than a table's conditions say.

        Returns what makes times on this device doubtful, a line each.
        """
        import torch

        from llm_profile.timing.cuda_device import check_cuda, pci_bus_id
        from llm_profile.timing.provenance import device_conditions
        from llm_profile.timing.telemetry import Telemetry, sharing_notice

        device = torch.device(device_name)
        notices = []
        if device.type == "cuda":
            check_cuda(device_name)
        found = device_conditions(device)
        if device.type == "cuda":
            telemetry = Telemetry(pci_bus_id(device))
            found["driver"] = telemetry.driver
            notices = sharing_notice(telemetry, {parent_pid})
            telemetry.close()
        if differing := differing_conditions(dict(conditions), found):
            raise UsageError(
                f"--csv: the table was measured under other conditions: {'; '.join(differing)}; validate it under the "
                "same, or measure it anew with run_profile.py"
            )
        return notices

    def open(
        self, runtime: str, profiled: Profiled, depth: int, device: str, token: str | None, trust_remote_code: bool
    ) -> None:
        """Load the model."""
        from llm_profile.validation.reality import REALITIES

        self._steps = REALITIES[runtime](profiled, depth, device, token, trust_remote_code)

    def prepare(self, input_lens: Sequence[int], windows: Sequence[Sequence[int]]) -> None:
        """As `Steps.prepare`."""
        self._steps.prepare(input_lens, windows)

    def round(self) -> list[tuple[SweepPoint, int]]:
        """As `Steps.round`."""
        return list(self._steps.round())

    def batched(self, points: Sequence[SweepPoint], repeat: int) -> list[tuple[SweepPoint, tuple[int, ...]]]:
        """As `Steps.batched`."""
        return list(self._steps.batched(points, repeat))


def result_of(worker: Worker, method: str, arguments: Sequence[Any]) -> tuple[bool, Any]:
    """(True, what a method of the worker returned), or (False, error): a UsageError as it is, others as the text of
    their traceback."""
    try:
        return True, getattr(worker, method)(*arguments)
    except UsageError as error:
        if text := versions.possible_cause(error):  # the traceback that it is told by stays here
            error.add_note(text)
        return False, error
    except Exception:
        return False, RuntimeError(traceback.format_exc())


def serve(handle: int) -> None:
    """Do what is asked through the socket of this number, (method, arguments) each, until its other end is closed."""
    connection, asked = Connection(handle), SimpleQueue[tuple[str, Sequence[Any]]]()
    Thread(target=_listen, args=(connection, asked), daemon=True).start()
    worker = Worker()
    while True:
        result = result_of(worker, *asked.get())
        with suppress(ConnectionError):  # the other end is closed: `_listen` ends this process
            connection.send(result)


def _listen(connection: Connection, asked: SimpleQueue[tuple[str, Sequence[Any]]]) -> None:
    """Queue what is asked. Once the other end is closed, by a process that was killed too, this one ends at once."""
    with suppress(EOFError, ConnectionError):
        while True:
            asked.put(connection.recv())
    os._exit(0)
