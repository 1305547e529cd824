"""What a process of the real model does: it opens the model, and times steps when it is told to.

It imports what a script of the user's would, and holds nothing of the sweep. torch is imported when it starts to work.
"""

import signal
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

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


def serve(connection: Connection) -> None:
    """Do what is asked through `connection`, (method, arguments) each, until it is closed.

    Answers (True, result), or (False, error): a UsageError as it is, others as the text of their traceback.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that validates, which then ends this one
    worker = Worker()
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = (True, getattr(worker, method)(*arguments))
        except UsageError as error:
            answer = (False, error)
        except Exception:
            answer = (False, RuntimeError(traceback.format_exc()))
        connection.send(answer)
