"""Files that survive a kill: written whole or not at all, one writer at a time, every complaint one line. No torch."""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError

ADVICE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EACCES: "make it accessible",
    errno.EPERM: "make it accessible",
    errno.EROFS: "mount it writable",
    errno.ENAMETOOLONG: "choose a shorter --hardware or --model-name",
}
"""What a user can do about an error of the file system."""

LONGEST_SHOWN = 300
"""Characters of a path that an error shows."""

TOKEN = re.compile(r"(hf|api_org)_[A-Za-z0-9]{20,}")
"""Access tokens of the Hugging Face hub: a prefix and 34 letters or digits."""


@contextmanager
def storage_errors(verb: str, path: Path) -> Iterator[None]:
    """Raise UsageError for every OSError inside. verb: `read` or `write`."""
    try:
        yield
    except OSError as error:
        advice, why = ADVICE.get(error.errno or 0, "mend that"), error.strerror or error
        raise UsageError(
            f"cannot {verb} {str(path)[:LONGEST_SHOWN]}: {why}; {advice}, or choose another folder with --output-dir"
        ) from error


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON for a file; no access token gets into one, whatever a command line or an error message held."""
    separators = (",", ":") if indent is None else None
    return without_tokens(json.dumps(without_infinity(value), indent=indent, separators=separators, allow_nan=False))


def without_infinity(value: Any) -> Any:
    """Numbers that JSON has not, such as a limit of infinity, as transformers writes them: {"__float__": "Infinity"}.

    Two such values are equal as dictionaries, which numbers that are none (NaN) never are.
    """
    if isinstance(value, dict):
        return {key: without_infinity(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinity(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": json.dumps(value)}
    return value


def without_tokens(text: str) -> str:
    """`text` with what looks like an access token left out."""
    return TOKEN.sub(r"\1_***", text)


def sha256_of(content: bytes) -> str:
    """Checksum of a file's content."""
    return hashlib.sha256(content).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for programs whole. Raises UsageError where the file system refuses."""
    write_whole(path, (to_json(value, indent=1) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file in one step: a reader, or a kill at any instant, sees the old content or the new, never a part.

    Raises UsageError where the file system refuses; the old content is then still there.
    """
    unfinished = path.with_name(path.name + ".tmp")
    with storage_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.unlink(missing_ok=True)  # of a run that was killed, or a link to elsewhere
            with open(unfinished, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def locked(path: Path, what: Path) -> Iterator[None]:
    """Hold the only right to write `what`, by a lock on the file `path`, which holds the writer's process id.

    The system drops the lock when its process ends, however it ends, so a file left by a kill locks nobody out.
    Raises UsageError with the process id when another writer holds it.
    """
    with storage_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _lock(path, what)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _lock(path: Path, what: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the file between our open and our lock: then we locked nothing.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
                    return handle
        except BlockingIOError:
            holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(handle)
            raise UsageError(
                f"{what} is being written by another process (id {holder}); let it finish or stop it, "
                "or choose another --output-dir or --model-name"
            ) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
