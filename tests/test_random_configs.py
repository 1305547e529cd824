"""Configurations of any type with one wrong field, given to `--plan` and to a run of two points on a CPU.

Whatever the field is, the command has to exit within a minute, with 0, 2 or 3, and with one line of error for 2. The
environment variable RANDOM_CONFIGS sets how many configurations are tried. `python -m tests.test_random_configs 500
SEED` tries 500 others and lists those where the command does not end so.
"""

import contextlib
import copy
import io
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

import run_profile
from tests.shrunken import WRITTEN, tiny_config
from tests.test_architectures import SUPPORTED

EXAMPLES = int(os.environ.get("RANDOM_CONFIGS", "60"))
MOST_S = 60
MOST_BYTES = 8 * 2**30
"""Address space that a run may add to that of the tests: enough for a tiny model, but not for one with huge sizes."""

TWO_POINTS = ["--load-format", "dummy", "--skip-scaling", "--allow-slow-path", "--device", "cpu", "--repeat", "1"]
TWO_POINTS += ["--precision", "0", "--warmup", "0", "--prefill-max", "1", "--decode-max", "1"]


NEVER_READ = ("id2label", "label2id", "_name_or_path", "transformers_version")
"""Fields that have no effect on a model, so that wrong values test nothing."""

DROPPED = object()
"""Stands for a value: the field is removed."""

SPOILT: dict[str, Callable[[Any], Any]] = {
    # name of a change -> function from a field's value to a wrong one
    "dropped": lambda value: DROPPED,
    "null": lambda value: None,
    "retyped": lambda value: str(value) if not isinstance(value, str) else 7,
    "huge": lambda value: 10**9,
    "astronomic": lambda value: 10**30,
    "huge float": lambda value: 1e300,
    "negative": lambda value: -(value if isinstance(value, int) and value else 1),
    "zero": lambda value: 0,
    "odd": lambda value: value + 1 if isinstance(value, int) else 3,
    "half": lambda value: 0.5,
    "nan": lambda value: float("nan"),
    "infinite": lambda value: float("inf"),
    "flag": lambda value: not value,
    "list": lambda value: [value],
    "empty list": lambda value: [],
    "long list": lambda value: [value] * 10_000,
    "string": lambda value: "x",
    "long string": lambda value: "x" * 100_000,
    "object": lambda value: {"x": value},
    "empty object": lambda value: {},
    "nested": lambda value: [[[value]]],
}


class Hangs(BaseException):
    """The command took longer than MOST_S. It is no Exception, so handlers of errors of a model's code let it pass."""


@cache
def tiny_fields(model_type: str) -> Mapping[str, Any]:
    """The fields of the config.json of a tiny model of a type."""
    if model_type in WRITTEN:
        return WRITTEN[model_type]
    config = tiny_config(model_type)
    config.dtype = "float32"
    return dict(json.loads(config.to_json_string(use_diff=False)))


def places(fields: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The place of every field: the names of the objects that hold it, from outside, then its own name."""
    for name, value in fields.items():
        if name in NEVER_READ:
            continue
        yield (*above, name)
        if isinstance(value, dict):
            yield from places(value, (*above, name))


@st.composite
def spoilt_configs(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """What was changed, in words, and the fields of a configuration with one wrong field."""
    model_type = draw(st.sampled_from(SUPPORTED))
    fields: dict[str, Any] = copy.deepcopy(dict(tiny_fields(model_type)))
    place = draw(st.sampled_from(sorted(places(fields))))
    how = draw(st.sampled_from(sorted(SPOILT)))
    holder = fields
    for name in place[:-1]:
        holder = holder[name]
    value = SPOILT[how](holder[place[-1]])
    if value is DROPPED:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return f"{model_type}: {'.'.join(place)} {how}", fields


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """While open, Hangs is raised after MOST_S, and allocations fail beyond MOST_BYTES more than are used now."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise Hangs(f"still running after {MOST_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, hard))
    signal.alarm(MOST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def wrong_ending(fields: Mapping[str, Any], *options: str) -> str | None:
    """Run the command. How it ended, if that is not as the first lines of this file say; else None."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        model.mkdir()
        (model / "config.json").write_text(json.dumps(fields))
        command = ["--model", str(model), "--output-dir", f"{folder}/out", *TWO_POINTS, *options]
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                with guarded():
                    code = run_profile.main(command)
            except (Exception, Hangs):
                return traceback.format_exc()
    lines = [line for line in said.getvalue().splitlines() if line.startswith("run_profile.py: ")]
    if code not in (0, 2, 3) or (code == 2) != (len(lines) == 1):
        return f"exit code {code}, and said:\n{said.getvalue()}"
    return None


def wrong_endings(fields: Mapping[str, Any]) -> Iterator[str]:
    for options in (["--plan"], []):
        if (wrong := wrong_ending(fields, *options)) is not None:
            yield f"{' '.join(options)}\n{wrong}"


@given(spoilt_configs())
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_a_wrong_field_ends_in_a_line(spoilt: tuple[str, dict[str, Any]]) -> None:
    what, fields = spoilt
    for wrong in wrong_endings(fields):
        pytest.fail(f"{what} {wrong}")


def list_wrong(examples: int, number: int) -> int:
    """Try configurations other than those of the test. Prints the wrong endings and returns how many there are."""
    found: list[str] = []

    @seeded(number)
    @given(spoilt_configs())
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def collect(spoilt: tuple[str, dict[str, Any]]) -> None:
        what, fields = spoilt
        for wrong in wrong_endings(fields):
            found.append(what)
            print(f"== {what} {wrong}", flush=True)

    collect()
    print(f"{len(found)} of {examples} configurations (seed {number}) end otherwise than promised")
    return len(found)


if __name__ == "__main__":
    sys.exit(min(1, list_wrong(int(sys.argv[1]), int(sys.argv[2]))))
