"""Where a table's files lie, and which names may name them. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llm_profile.errors import UsageError, one_line

LONGEST_PART = 200
"""Bytes of a file or folder name before its ending: file systems allow 255 with it."""


def shard_name(model: str, tp: int) -> str:
    """The name of the table of a model's shard; the whole model's is its own."""
    return model if tp == 1 else f"{model}-tp{tp}"


def whole_name(table_model: str, tp: int) -> str:
    """The name of the whole model's table, from that of its shard."""
    return table_model if tp == 1 else table_model.removesuffix(f"-tp{tp}")


@dataclass(frozen=True)
class TablePaths:
    """The files of one table: `<model>.csv`, `.rows.parquet` and `.meta.json`, which are there for good,
    `.journal.jsonl` and `.lock`, which are there while it is measured, and `.host.csv`, which validation writes."""

    csv: Path
    journal: Path
    rows: Path
    meta: Path
    lock: Path
    host: Path

    @classmethod
    def of(cls, output_dir: Path, hardware: str, model: str) -> "TablePaths":
        """`<output_dir>/<hardware>/<model>.csv`, with `/` in a model id as folders.

        Raises UsageError for names that could leave `output_dir`, by a link too, or that a file system may not take.
        """
        _check_name("--hardware", hardware, (hardware,))
        _check_name("--model-name", model, model.split("/"))
        paths = cls.beside(output_dir / hardware / f"{model}.csv")
        for path in vars(paths).values():
            _check_inside(output_dir, path)
        return paths

    @classmethod
    def beside(cls, csv: Path) -> "TablePaths":
        """The files that belong to a CSV. Raises UsageError when its name does not end in `.csv`."""
        if csv.suffix != ".csv":
            raise UsageError(f"{csv}: not the name of a latency table; it must end in .csv")
        stem = csv.name.removesuffix(".csv")
        endings = (".journal.jsonl", ".rows.parquet", ".meta.json", ".lock", ".host.csv")
        return cls(csv, *(csv.with_name(stem + ending) for ending in endings))


def _check_inside(output_dir: Path, path: Path) -> None:
    """Raises UsageError for a path that links lead out of a folder, or to nowhere."""
    try:
        path.exists()  # raises for a name that is too long, which resolve does not
        target = path.resolve()
        inside = target.is_relative_to(output_dir.resolve())
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, up to Python 3.12
        why = getattr(error, "strerror", None) or one_line(error)
        raise UsageError(
            f"cannot use {str(path)[:200]}: {why}; choose another --output-dir, --hardware or --model-name"
        ) from error
    if not inside:
        raise UsageError(
            f"--output-dir {output_dir}: {path} is a link out of it, to {target}; remove the link, or choose another "
            "--output-dir, --hardware or --model-name"
        )


def _check_name(option: str, name: str, parts: Iterable[str]) -> None:
    for part in parts:
        if (
            part in ("", ".", "..")
            or part != part.strip()
            or part.startswith("~")
            or not part.isprintable()  # control characters, NUL, invalid Unicode
            or any(separator in part for separator in "/\\")
            or len(part.encode()) > LONGEST_PART
        ):
            raise UsageError(
                f"{option} {name[:80]!r}: cannot name an output file; letters, digits and . - _ are safe, at most "
                f"{LONGEST_PART} bytes, and only a model may have folders (org/name)"
            )
