"""Bundles on disk: all files of one, or none; what is there already stays unless told. No torch."""

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from llm_profile.errors import UsageError
from llm_profile.exporters.bundle import Read
from llm_profile.store.storage import storage_errors, write_whole

MOST_NAMED = 5
"""Files in the way that an error names."""


def reader_of(folder: Path) -> Read:
    """Reads files of a simulator's folder, or of one like it. It raises UsageError for those that are not there."""

    def read(path: str) -> bytes:
        if not (folder / path).is_file():
            raise UsageError(f"{folder}: has no {path}, which the simulator reads")
        with storage_errors("read", folder / path):
            return (folder / path).read_bytes()

    return read


def write_bundle(files: Mapping[str, bytes], folder: Path, overwrite: bool, hidden_by: Collection[str] = ()) -> None:
    """Put files into a folder, by their paths in it. A kill leaves none of them in a folder that is new.

    Files with the same content stay, and so do JSON files that say the same of all that both say: a simulator's own
    configuration of the model. overwrite: whether others are replaced, and those of hidden_by removed; without it they
    raise UsageError, as the file system does, and nothing is written.
    """
    if strange := [path for path in files if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts]:
        raise UsageError(f"{strange[0]}: leads out of the folder; measure the table under another name")
    with storage_errors("write", folder):
        left = {path: content for path, content in files.items() if not _says_the_same(folder / path, content)}
        hiding = [path for path in hidden_by if (folder / path).exists()]
        in_the_way = [path for path in left if (folder / path).exists()] + hiding
        if in_the_way and not overwrite:
            more = f" and {len(in_the_way) - MOST_NAMED} more" if len(in_the_way) > MOST_NAMED else ""
            raise UsageError(
                f"{folder}: has {', '.join(in_the_way[:MOST_NAMED])}{more} already; --overwrite replaces what it has"
            )
        staging = (folder if folder.exists() else folder.parent) / f".llm-profile-{os.getpid()}.tmp"
        try:
            for path, content in left.items():
                write_whole(staging / path, content)
            for path in hiding:
                (folder / path).unlink()
            if not folder.exists():
                staging.rename(folder)
                return
            for path in left:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staging / path, folder / path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _says_the_same(path: Path, content: bytes) -> bool:
    """Whether a file is there whose content need not be replaced."""
    if not path.is_file():
        return False
    there = path.read_bytes()
    if there == content or path.suffix != ".json":
        return there == content
    try:
        known, wanted = json.loads(there), json.loads(content)
    except ValueError:
        return False
    return isinstance(known, dict) and all(known[name] == wanted[name] for name in known.keys() & wanted.keys())
