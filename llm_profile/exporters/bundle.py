"""What an exporter is asked for and what it makes: the files of one simulator. No torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llm_profile.points import SweepPoint
from llm_profile.store.table import LatencyTable


@dataclass(frozen=True)
class ExportRequest:
    """How far a bundle reaches: tokens of a step, sequences of a step, tokens in a KV cache.

    version: of the simulator, where one format serves several.
    """

    max_tokens: int = 2048
    max_sequences: int = 256
    max_kv: int = 16384
    version: str | None = None


@dataclass(frozen=True)
class Target:
    """What a simulator is told to simulate. version: as in ExportRequest."""

    hardware: str
    model: str
    tp: int = 1
    version: str | None = None


@dataclass(frozen=True)
class Bundle:
    """The files of a simulator, by their path in the simulator's own folder (posix), and what has to be known of them.

    notes: what is approximated, filled or cannot be given, a line each. targets: what can be simulated with them.
    hidden_by: paths of files that the simulator would read instead of these. about: path of the metadata, which the
    simulator does not read.
    """

    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    hidden_by: tuple[str, ...] = ()
    about: str = "llm-profile.json"


@dataclass(frozen=True)
class LayerTime:
    """A layer of one step: how often the simulator adds it, and the sum in ns."""

    layer: str
    times: int
    total_ns: int


Read = Callable[[str], bytes]
"""From a path in the simulator's folder to the content of that file. Raises FileNotFoundError."""


@dataclass(frozen=True)
class BundleFormat:
    """A format of `export`.

    export: makes a bundle; raises UsageError that names the keys which tables lack. step: the time that the simulator
    gives to one step, by the layers that it looks up and by its own rules, written apart from `export`; histories of
    the point do not count the tokens that the step feeds; raises UsageError for what the simulator would not find.
    marker: a file by which the simulator's folder is known. defaults: what is asked for if nothing is said. versions:
    of the simulator, where its look-ups differ between them.
    """

    export: Callable[[Sequence[LatencyTable], ExportRequest], Bundle]
    step: Callable[[Read, SweepPoint, Target], list[LayerTime]]
    marker: str
    defaults: ExportRequest = ExportRequest()
    versions: tuple[str, ...] = ()
