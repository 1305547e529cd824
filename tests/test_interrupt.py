"""Ctrl-C while a command starts: no traceback, whenever it comes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SWEEP = ["--model", "tiny-llama", "--device", "fake", "--skip-scaling", "--hardware", "fake"]
COMMANDS = {"run_profile.py": SWEEP, "validation.py": ["--csv", "none.csv"]}
TIMEOUT_S = 60
TRIES = 3
"""A busy machine may look too late."""


def wait_for(process: subprocess.Popen[str], caught: bool) -> None:
    """Until a handler of the process is there for SIGINT, or none is; or until it ends."""
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
        if bool(int(mask, 16) >> (signal.SIGINT - 1) & 1) == caught:
            return


def interrupted(command: str, after_s: float, folder: Path) -> tuple[int, str] | None:
    """Exit status and stderr of a command that is sent SIGINT so long after it set its handler aside; None if it had
    ended before."""
    arguments = [sys.executable, str(ROOT / command), *COMMANDS[command]]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        wait_for(process, caught=True)  # what Python does before is its own
        wait_for(process, caught=False)
        time.sleep(after_s)
        ended = process.poll() is not None
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=TIMEOUT_S)[1]
    return None if ended else (process.returncode, err)


@pytest.mark.parametrize("after_s", [0, 0.01, 0.03, 0.06, 0.1, 0.2])
def test_an_early_interrupt_shows_no_traceback(after_s: float, tmp_path: Path) -> None:
    tries = (interrupted("run_profile.py", after_s, tmp_path) for _ in range(TRIES))
    status, err = next(seen for seen in tries if seen)
    assert status in (-signal.SIGINT, 130) and "Traceback" not in err


@pytest.mark.parametrize("after_s", [0, 0.01, 0.03])
def test_validation_likewise(after_s: float, tmp_path: Path) -> None:
    """It has less to do, and may have said what it has to say."""
    tries = (interrupted("validation.py", after_s, tmp_path) for _ in range(TRIES))
    status, err = next(seen for seen in tries if seen)
    assert status in (-signal.SIGINT, 130, 2) and "Traceback" not in err


def test_a_command_that_ignores_interrupts_goes_on_doing_so() -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from llm_profile import interrupt as i;"
    code += "i.end_quietly(); i.raise_again(); print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "True\n"


def test_importing_a_command_changes_no_handler() -> None:
    code = "import signal, run_profile, validation;"
    code += "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True, env=os.environ) == "True\n"
