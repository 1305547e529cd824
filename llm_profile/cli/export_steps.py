"""Steps of `export --check`: read from the command line, and printed by layer. Imports no torch."""

import re
from collections.abc import Iterator, Sequence

from llm_profile.errors import UsageError
from llm_profile.exporters.bundle import LayerTime, Target
from llm_profile.points import SweepPoint

SEQUENCE = re.compile(r"(?:([1-9]\d*)x)?(?:P:([1-9]\d*)(?:@(\d+))?|D:([1-9]\d*))")
"""`P:128`, a prompt; `P:64@512`, 64 tokens of a prompt on a history; `D:300`, a decode step; `64xD:300`, 64 of them."""


def parse_step(text: str) -> SweepPoint:
    """A step of the command line. Raises UsageError."""
    sequences: list[tuple[int, int]] = []
    for word in text.split():
        found = SEQUENCE.fullmatch(word)
        if found is None or any(len(number or "") > 9 for number in found.groups()):
            raise UsageError(
                f"--check {word}: not a sequence; P:128 is a prompt, P:64@512 a part of one on 512 tokens before it, "
                "D:300 a decode step on 300 tokens, 64xD:300 is 64 of them"
            )
        count, prompt, history, cache = found.groups()
        lengths = (int(prompt), int(history or 0)) if prompt else (1, int(cache))
        sequences += [lengths] * int(count or 1)
    if not sequences:
        raise UsageError("--check: the step has no sequence; try --check P:128")
    return SweepPoint.of(sequences)


def step_lines(point: SweepPoint, target: Target, layers: Sequence[LayerTime]) -> Iterator[str]:
    """A step's time, then that of each layer."""
    total_ns = sum(layer.total_ns for layer in layers)
    yield f"{target.model} on {target.hardware}, tp {target.tp}: {point}: {total_ns / 1e6:.3f} ms without communication"
    width = max(len(layer.layer) for layer in layers)
    for layer in layers:
        share = layer.total_ns / total_ns if total_ns else 0
        yield f"  {layer.layer:<{width}}  {layer.times:>6} x  {layer.total_ns / 1e3:>12,.1f} us  {share:>6.1%}"
