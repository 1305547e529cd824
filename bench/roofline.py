#!/usr/bin/env python3
"""Check that no matrix product of a table is faster than the hardware allows.

In a pass, each weight is read once and multiplied with each token, so a row takes at least
max(weight bytes / peak bandwidth, FLOPs / peak dense rate). A row below that was measured wrongly, or its weights
stayed in a cache from one pass to the next, which they do not in the full model.

    python3 bench/roofline.py H200/meta-llama/Llama-3.1-8B.csv --bandwidth 4.8e12 --flops 989e12

4.8e12 and 989e12 are the H200's, dense bf16 (NVIDIA H200 datasheet).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, wherever this is run from

from llm_profile.errors import EXIT_COMPLETE, EXIT_USAGE, UsageError
from llm_profile.points import SweepPoint
from llm_profile.request import DTYPE_BYTES
from llm_profile.store.files import read_table
from llm_profile.store.storage import write_json
from llm_profile.store.table import LatencyTable

GEMM_ROWS = (
    *("q_proj", "k_proj", "v_proj", "o_proj"),
    *("gate_proj", "up_proj", "down_proj", "fc1", "fc2", "gate"),
    "lm_head",
)
"""Rows that multiply every token with one whole weight. With several kinds of blocks, tables have `<kind>.q_proj`."""

SHOWN = 20
"""Most violations that are printed; the JSON has all of them."""

EXIT_VIOLATIONS = 1


@dataclass(frozen=True)
class Bound:
    """The latency of a row at a point, and the least that the hardware allows (bound_ns)."""

    row: str
    point: SweepPoint
    latency_ns: int
    bound_ns: float

    @property
    def ratio(self) -> float:
        """latency / bound; below 1 is impossible."""
        return self.latency_ns / self.bound_ns


def gemm_weights(config: Mapping[str, Any], kinds: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Row -> shape [out, in] of its weight, for the GEMM_ROWS of a model, read from the model built without weights.

    config: fields of config.json. kinds: the kinds of blocks of a table; shapes are those of the first block of a kind.
    """
    from torch import nn

    from llm_profile.layers.layout import ALIASES
    from llm_profile.models.building import make_config, meta_model

    canonical = {attribute: row for (_level, attribute), row in ALIASES.items()}
    kind_of = {kind["layers"][0]: kind["name"] for kind in kinds}
    weights: dict[str, tuple[int, int]] = {}
    for path, module in meta_model(make_config(config)).named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Embedding) or weight is None or weight.ndim != 2:
            continue
        parts = path.split(".")
        row = canonical.get(parts[-1], parts[-1])
        block = next((int(part) for part in parts if part.isdigit()), None)
        if row not in GEMM_ROWS or (block is not None and block not in kind_of):
            continue
        name = row if block is None or len(kinds) == 1 else f"{kind_of[block]}.{row}"
        weights[name] = (weight.shape[0], weight.shape[1])
    return weights


def bound_ns(shape: tuple[int, int], tokens: int, dtype_bytes: int, bandwidth: float, flops: float) -> float:
    """Least time in nanoseconds of the product of [tokens, in] with a weight of this shape.

    bandwidth: bytes/s. flops: 1/s.
    """
    elements = shape[0] * shape[1]
    return 1e9 * max(elements * dtype_bytes / bandwidth, 2 * tokens * elements / flops)


def bounds(table: LatencyTable, bandwidth: float, flops: float) -> list[Bound]:
    """Every GEMM row at every measured point. bandwidth: bytes/s. flops: 1/s.

    Raises UsageError for a table without its model's configuration or dtype.
    """
    conditions = table.meta["conditions"]
    if "config" not in table.meta or conditions.get("dtype") not in DTYPE_BYTES:
        raise UsageError(f"the table of {table.model} does not say which dimensions or dtype it was measured with")
    weights = gemm_weights(table.meta["config"], table.meta["kinds"])
    size = DTYPE_BYTES[conditions["dtype"]]
    return [
        Bound(
            row,
            point,
            table.latency_ns(row, point),
            bound_ns(shape, point.tokens, size, bandwidth, flops),
        )
        for row, shape in weights.items()
        if row in table.row_names()
        for point in table.points()
        if table.records[point].is_measured
    ]


def table_lines(found: Sequence[Bound], all_rows: Sequence[str]) -> list[str]:
    """The lines that are printed: the point of each row that is closest to its bound, then the impossible ones."""
    rows = list(dict.fromkeys(bound.row for bound in found))
    lines = [f"{'row':20} {'points':>7} {'least latency / bound':>22}  at"]
    for row in rows:
        of_row = [bound for bound in found if bound.row == row]
        tightest = min(of_row, key=lambda bound: bound.ratio)
        lines.append(f"{row:20} {len(of_row):7} {tightest.ratio:22.3f}  {tightest.point}")
    lines.append(f"not checked: {', '.join(row for row in all_rows if row not in rows)}")
    violations = [bound for bound in found if bound.ratio < 1]
    lines.append(f"{len(violations)} of {len(found)} are faster than the hardware allows")
    for bound in sorted(violations, key=lambda bound: bound.ratio)[:SHOWN]:
        lines.append(f"  {bound.row} at {bound.point}: {bound.latency_ns} ns, bound {bound.bound_ns:.0f} ns")
    return lines


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Exit codes: 0 all rows are possible; 1 some are not; 2 usage.",
    )
    parser.add_argument("csv", type=Path, help="a table of LLM-Profile")
    parser.add_argument("--bandwidth", type=float, required=True, metavar="BYTES/S", help="peak bandwidth of memory")
    parser.add_argument(
        "--flops", type=float, required=True, metavar="1/S", help="peak dense rate of the table's dtype"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        for option in ("bandwidth", "flops"):
            if not getattr(arguments, option) > 0:
                raise UsageError(f"--{option} {getattr(arguments, option)}: must be above 0")
        table = read_table(arguments.csv)
        found = bounds(table, arguments.bandwidth, arguments.flops)
        if not found:
            raise UsageError(f"{arguments.csv}: has none of the rows {', '.join(GEMM_ROWS)}")
        print("\n".join(table_lines(found, table.row_names())))
        violations = [bound for bound in found if bound.ratio < 1]
        if arguments.json:
            content = {
                "bandwidth_bytes_per_sec": arguments.bandwidth,
                "flops_per_sec": arguments.flops,
                "checked": len(found),
                "least_ratio": min(bound.ratio for bound in found),
                "violations": [asdict(bound) for bound in violations],
            }
            write_json(arguments.json, content)
    except UsageError as error:
        print(f"roofline.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_VIOLATIONS if violations else EXIT_COMPLETE


if __name__ == "__main__":
    sys.exit(main())
