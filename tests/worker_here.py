"""The process of the real model, in the process of the tests: for what a real one would only make slow."""

import pickle
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from llm_profile.cli import table_validation
from llm_profile.validation.processes import ProcessReality
from llm_profile.validation.worker import Worker, result_of


class WorkerHere:
    """What a `Process` is to those who use it. What is asked and answered is pickled, as it is on its way to one."""

    def __init__(self) -> None:
        self.worker = Worker()
        self._answers: deque[bytes] = deque()

    def ask(self, method: str, *arguments: Any) -> None:
        result = result_of(self.worker, method, pickle.loads(pickle.dumps(arguments)))
        self._answers.append(pickle.dumps(result))

    def answer(self) -> Any:
        done, result = pickle.loads(self._answers.popleft())
        if done:
            return result
        raise result

    def close(self) -> None:
        """A process that ends takes its patches with it."""
        if self.worker._steps is not None:
            self.worker._steps.close()
            self.worker._steps = None


@pytest.fixture
def worker_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[WorkerHere]]:
    """Makes commands run the real model in this process. The workers that were started."""
    started: list[WorkerHere] = []

    def start() -> WorkerHere:
        started.append(WorkerHere())
        return started[-1]

    monkeypatch.setattr(table_validation, "ProcessReality", partial(ProcessReality, start=start))
    yield started
    assert all(one.worker._steps is None for one in started), "each was closed"
