"""Free memory of the host, and a check that data fits into it. Imports no torch.

The check has to come first: an operating system grants more memory than it has and later kills the process, without an
error. On a GPU no check is needed, since an allocation that does not fit raises an error.
"""

import os
from contextlib import suppress
from pathlib import Path

from llm_profile.errors import UsageError

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files with the memory limit of a container, in bytes or `max` (cgroup version 2, version 1)."""


def available_bytes() -> int:
    """Bytes of memory that this process can still take, at most: the smallest of what the system reports."""
    known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    for limit in LIMITS:
        with suppress(OSError, ValueError):
            known.append(int(Path(limit).read_text(encoding="ascii")))
    return min(known)


def check_fits(device_type: str, needed: int, what: str, advice: str) -> None:
    """Raise UsageError if something needs more bytes than the host has free; only for device_type `cpu`.

    what: what needs the memory, for the message, in the plural (`the weights`). advice: what the user can do.
    """
    if device_type == "cpu" and needed > (left := available_bytes()):
        raise UsageError(f"--model: {what} need {gib(needed)}, where {gib(left)} of memory are left; {advice}")


def gib(size: int) -> str:
    """A number of bytes as text in GiB."""
    return f"{size / 2**30:,.1f} GiB" if size < 2**60 else f"over {2**30:,} GiB"
