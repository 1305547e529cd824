"""Memory of the host: what is left of it, and refusing what would need more. Imports no torch.

An operating system promises more memory than it has and kills the process later, so that waiting for an error will not
do. A GPU says at once that its memory is gone.
"""

import os
from contextlib import suppress
from pathlib import Path

from llm_profile.errors import UsageError

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container finds how much memory it may have, in bytes, or `max`."""


def available_bytes() -> int:
    """Memory that a program may still take, as far as the system says."""
    known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    for limit in LIMITS:
        with suppress(OSError, ValueError):
            known.append(int(Path(limit).read_text(encoding="ascii")))
    return min(known)


def check_fits(device_type: str, needed: int, what: str, advice: str) -> None:
    """Raise UsageError for what would need more memory than a CPU's host has left. what: a plural, `the weights`."""
    if device_type == "cpu" and needed > (left := available_bytes()):
        raise UsageError(f"--model: {what} need {gib(needed)}, where {gib(left)} of memory are left; {advice}")


def gib(size: int) -> str:
    """A size in GiB, for people."""
    return f"{size / 2**30:,.1f} GiB" if size < 2**60 else f"over {2**30:,} GiB"
