"""A run whose points the ranks of a torchrun share: rank 0 runs the command, all ranks measure. Imports no torch."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_profile import versions
from llm_profile.cli import planning
from llm_profile.cli.messages import Verbosity, notice
from llm_profile.errors import EXIT_COMPLETE, UsageError
from llm_profile.request import Request
from llm_profile.timing.backends.base import Backend
from llm_profile.timing.ranks.processes import GRACE_S, ends_within, fork, supervise
from llm_profile.timing.ranks.serving import POLL_S, Server
from llm_profile.timing.ranks.team import Team
from llm_profile.timing.ranks.torchrun import Rank

if TYPE_CHECKING:
    from torch.distributed import Store

OpenModel = Callable[[Request], Backend]
"""Opens the backend of a request, with the model loaded."""


@contextmanager
def team_of(rank: Rank, requests: Sequence[Request], open_model: OpenModel) -> Iterator[Team]:
    """All ranks, as rank 0 has them while the context is open; then they end.

    Raises UsageError for a device that ranks cannot share, and if no rank can start.
    """
    serve = _server(rank, requests, open_model)
    own = fork(lambda: supervise(rank, serve))
    team = Team(rank, rank.connect(hosting=True), requests, notice)
    try:
        Verbosity.of(requests[0]).inform(team.meet())
        yield team
    finally:
        with suppress(RuntimeError):  # the store is gone, and the ranks with it
            team.end()
        ends_within(own, 2 * GRACE_S, POLL_S)  # then its GPU is free


def help_rank_0(rank: Rank, parse: Callable[[], Sequence[Request]], open_model: OpenModel) -> int:
    """Measure what rank 0 says, until the run ends; returns 0.

    What is wrong with the command line is said by rank 0 alone, and what goes wrong here is told to it.
    """
    try:
        requests = parse()
        return supervise(rank, _server(rank, requests, open_model)) if requests else EXIT_COMPLETE
    except UsageError:
        return EXIT_COMPLETE


def _server(rank: Rank, requests: Sequence[Request], open_model: OpenModel) -> Callable[["Store"], None]:
    """What the measuring process of a rank does."""
    own = [replace(request, device=rank.device(request.device)) for request in requests]

    def serve(store: "Store") -> None:
        versions.refuse_older()
        server = Server(rank, store, lambda model: open_model(own[model]))
        server.run(
            {
                "hardware": planning.hardware_name(own[0]),
                "host": socket.gethostname(),
                "device": own[0].device,
                "pid": os.getpid(),
            }
        )

    return serve
