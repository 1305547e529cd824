"""Which rank of a torchrun this process is, and the store through which its ranks speak. Imports no torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from llm_profile.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed import Store

CONNECT_S = 300
"""Seconds that a rank waits for the store: torchrun may start hosts minutes apart."""


@dataclass(frozen=True)
class Rank:
    """A process that torchrun started, by the environment variables that it sets.

    number: of `count` ranks, from 0. local: its number on its host. attempt: how often torchrun has restarted the
    ranks. address, port: of the store. hosted: whether torchrun itself has the store; if not, rank 0 has.
    """

    number: int
    count: int
    local: int
    attempt: int
    address: str
    port: int
    hosted: bool

    @classmethod
    def of_environment(cls, variables: Mapping[str, str] = os.environ) -> "Rank | None":
        """The rank of this process; None if torchrun did not start it, or started it alone."""
        if "TORCHELASTIC_RUN_ID" not in variables or int(variables["WORLD_SIZE"]) < 2:
            return None
        return cls(
            number=int(variables["RANK"]),
            count=int(variables["WORLD_SIZE"]),
            local=int(variables["LOCAL_RANK"]),
            attempt=int(variables.get("TORCHELASTIC_RESTART_COUNT", "0")),
            address=variables["MASTER_ADDR"],
            port=int(variables["MASTER_PORT"]),
            hosted=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )

    def device(self, asked: str) -> str:
        """The device of this rank where `asked` is that of `--device`: `cuda:LOCAL_RANK` for `cuda`.

        Raises UsageError for a GPU that is named by its number.
        """
        if asked.startswith("cuda:"):
            raise UsageError(f"--device {asked}: torchrun gives each rank a GPU of its own; use --device cuda")
        return f"cuda:{self.local}" if asked == "cuda" else asked

    def connect(self, *, hosting: bool = False) -> "Store":
        """A connection to the store of this attempt. hosting: have the store here, unless torchrun has it."""
        from torch.distributed import PrefixStore, TCPStore

        store = TCPStore(
            self.address,
            self.port,
            is_master=hosting and not self.hosted,
            wait_for_workers=False,
            timeout=timedelta(seconds=CONNECT_S),
        )
        return PrefixStore(f"llm-profile/{self.attempt}", store)
