"""What a check of the machine found, and the run that it is for. Imports no torch."""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from llm_profile.cli import planning
from llm_profile.doctor.gpu_handle import Gpu, open_gpu
from llm_profile.errors import UsageError
from llm_profile.models.hub import ModelSource
from llm_profile.request import Request


class Level(StrEnum):
    """ERROR: the run would fail. WARNING: its numbers, or a part of it, would be doubtful."""

    OK = "OK"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """text: what was found, and for warnings and errors what to do, in one line."""

    level: Level
    text: str


def fine(text: str) -> Finding:
    """Nothing to do."""
    return Finding(Level.OK, text)


def doubt(text: str) -> Finding:
    """Something that makes the numbers, or a part of the run, doubtful."""
    return Finding(Level.WARNING, text)


def failure(text: str) -> Finding:
    """Something that the run would end with."""
    return Finding(Level.ERROR, text)


@dataclass(frozen=True)
class Intended:
    """The run that is about to be started. request: its options; the model is `` where none was given.

    gpu, source: what is found at the first look, or the error; every check sees the same.
    """

    request: Request

    @property
    def has_model(self) -> bool:
        return bool(self.request.model)

    @property
    def is_on_gpu(self) -> bool:
        return self.request.device.startswith("cuda")

    @cached_property
    def gpu(self) -> Gpu | UsageError | None:
        """The GPU of the run; None where the run needs none."""
        if not self.is_on_gpu:
            return None
        try:
            return open_gpu(self.request.device)
        except UsageError as error:
            return error

    @cached_property
    def source(self) -> ModelSource | UsageError | None:
        """The model of the run; None where none was given."""
        if not self.has_model:
            return None
        try:
            return planning.find_source(self.request)
        except UsageError as error:
            return error
