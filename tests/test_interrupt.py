"""Ctrl-C while a command is starting shows no traceback."""

import ast
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
"""Attempts to send SIGINT in time: on a busy machine the command may end before it is sent."""


def wait_for(process: subprocess.Popen[str], caught: bool) -> None:
    """Wait until the process catches SIGINT with a handler (`caught`) or no longer does, or until it ends."""
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
        if bool(int(mask, 16) >> (signal.SIGINT - 1) & 1) == caught:
            return


def interrupted(command: str, after_s: float, folder: Path) -> tuple[int, str] | None:
    """Send SIGINT to a command `after_s` seconds after it called `end_quietly`. Returns its exit status and stderr.

    None if it ended before.
    """
    arguments = [sys.executable, str(ROOT / command), *COMMANDS[command]]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        wait_for(process, caught=True)  # Python has started and installed its own handler
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
    """The same for validation.py. It ends sooner, so it may have printed its error and exited with 2."""
    tries = (interrupted("validation.py", after_s, tmp_path) for _ in range(TRIES))
    status, err = next(seen for seen in tries if seen)
    assert status in (-signal.SIGINT, 130, 2) and "Traceback" not in err


def test_a_command_that_ignores_interrupts_goes_on_doing_so() -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from llm_profile import interrupt as i;"
    code += "i.end_quietly(); i.raise_keyboard_interrupt(); print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "True\n"


def test_importing_a_command_changes_no_handler() -> None:
    code = "import signal, run_profile, validation;"
    code += "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True, env=os.environ) == "True\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_that_takes_time_is_imported_before(command: str) -> None:
    """Above `end_quietly` a command imports nothing of the package but what has it, and what looks for packages."""
    body = ast.parse((ROOT / command).read_text(encoding="utf-8")).body
    quiet_from = next(at for at, node in enumerate(body) if "interrupt.end_quietly()" in ast.unparse(node))
    imports = [ast.unparse(node) for node in body[:quiet_from] if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports == ["from llm_profile import installed, interrupt"]
