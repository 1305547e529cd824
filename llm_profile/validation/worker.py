"""What a process of the real model does: it opens the model, and times steps when it is told to.

It imports what a script of the user's would, and holds nothing of the sweep. torch is imported when it starts to work.
"""

import signal
import traceback
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from llm_profile.errors import UsageError
from llm_profile.store.table import differing_conditions
from llm_profile.sweep import SweepPoint
from llm_profile.validation.profiled import Profiled


class Worker:
    """One real model. Its methods are called by name from the process that validates."""

    def __init__(self) -> None:
        self._steps: Any = None

    def check(self, conditions: Mapping[str, Any], device_name: str, ours: Collection[int]) -> list[str]:
        """Raise UsageError where the machine, or what is installed on it, is another than a table's conditions say.

        ours: process ids of this validation. Returns what makes times on this device doubtful, a line each.
        """
        import torch

        from llm_profile.timing.backends.torch_profiler import check_cuda, pci_bus_id
        from llm_profile.timing.provenance import device_conditions
        from llm_profile.timing.telemetry import Telemetry, sharing_notice
        from llm_profile.validation import reality  # noqa: F401 (imported while nothing is timed)

        device = torch.device(device_name)
        found, notices = device_conditions(device), []
        if device.type == "cuda":
            check_cuda(device_name)
            telemetry = Telemetry(pci_bus_id(device))
            found["driver"] = telemetry.driver
            notices = sharing_notice(telemetry, ours)
            telemetry.close()
        if differing := differing_conditions(dict(conditions), found):
            raise UsageError(
                f"--csv: the table was measured under other conditions: {'; '.join(differing)}; validate it under the "
                "same, or measure it anew with run_profile.py"
            )
        return notices

    def open(
        self, runtime: str, profiled: Profiled, depth: int, device: str, token: str | None, trust_remote_code: bool
    ) -> tuple[int, int]:
        """Load the model. Returns the memory that it takes and what is left for others, in bytes."""
        import torch

        from llm_profile.models.memory import available_bytes
        from llm_profile.validation.reality import REALITIES

        before = available_bytes()
        self._steps = REALITIES[runtime](profiled, depth, device, token, trust_remote_code)
        if device.startswith("cuda"):
            free, _ = torch.cuda.mem_get_info()
            return torch.cuda.memory_reserved(), free
        return before - available_bytes(), available_bytes()

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
