"""What the tests of reports share: the numbers of a page read back, and tables that have everything."""

import json
import re
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_profile.block_kinds import BlockKind
from llm_profile.points import SweepPoint
from llm_profile.store.files import read_table
from llm_profile.store.paths import TablePaths
from llm_profile.store.table import LatencyTable
from tests.table_samples import NOT_FLAT, paths_in, sample, sweep_points, write, writer

ROOT = Path(__file__).parent.parent
LLAMA = ROOT / "H200" / "meta-llama" / "Llama-3.1-8B.csv"
OPT = ROOT / "H200" / "facebook" / "opt-6.7b.csv"
"""A table that was validated for both runtimes."""

BLOCK_ROWS = {"q_proj": "block", "attn": "block", "o_proj": "block"}

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&$\u2028"
"""A name that would break a page which takes it as it is."""


def unpack(text: str) -> list[int]:
    """Whole numbers from the text of packing.py, written anew from its description."""
    numbers: list[int] = []
    value, shift = 0, 0
    for byte in b64decode(text):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            difference = value // 2 if value % 2 == 0 else -(value + 1) // 2
            numbers.append(difference + (numbers[-1] if numbers else 0))
            value, shift = 0, 0
    return numbers


def data_of(page: str) -> dict[str, Any]:
    """The numbers that a page draws."""
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    data: dict[str, Any] = json.loads(text)
    return data


def finished(folder: Path, points: list[SweepPoint] | None = None, **changes: Any) -> TablePaths:
    """A whole table of made-up times, by default with points of all kinds."""
    chosen = [*sweep_points(12, 9), *NOT_FLAT] if points is None else points
    with writer(folder, chosen, **changes) as table:
        for point in chosen:
            table.add(sample(point))
        table.table.meta["block_rows"] = BLOCK_ROWS
        table.finish()
    return paths_in(folder)


def changed(paths: TablePaths, **meta: Any) -> LatencyTable:
    """The table with other fields in its metadata, written."""
    table = read_table(paths.csv)
    table.meta |= meta
    write(table, paths)
    return table


def hostile(folder: Path) -> TablePaths:
    """A table whose names, notes, kernels and reasons all are HOSTILE."""
    paths = finished(
        folder,
        sweep_points(4, 9),
        kinds=(BlockKind(HOSTILE, 32, tuple(range(32)), (0,)),),
        conditions={"dtype": HOSTILE, HOSTILE: HOSTILE, "gpu": HOSTILE},
        config={"model_type": HOSTILE, HOSTILE: [HOSTILE]},
        run={"repeat": 100, "host": HOSTILE, "throttle_reasons": [HOSTILE], "slow_path": {HOSTILE: HOSTILE}},
    )
    table = read_table(paths.csv)
    table.hardware = table.model = HOSTILE
    for point, record in table.records.items():
        rows = {f"{HOSTILE}{name}": replace(row, kernels=(HOSTILE, f"{HOSTILE}2")) for name, row in record.rows.items()}
        table.records[point] = replace(record, rows=rows, notes=(HOSTILE,))
    table.missing[SweepPoint(99, 0)] = HOSTILE
    table.meta["block_rows"] = {f"{HOSTILE}{name}": HOSTILE for name in BLOCK_ROWS}
    write(table, paths)
    beside = paths.csv.with_name(f"{paths.csv.stem}.validation.json")
    told = validation_json(table, paths.csv, runtime=HOSTILE, warnings=[HOSTILE])
    beside.write_text(json.dumps(told | {"over_tolerance": [HOSTILE], "noisy": {HOSTILE: 0.5}}))
    return paths


def validation_json(table: LatencyTable, csv: Path, **changes: Any) -> dict[str, Any]:
    """What validation.py writes, of made-up errors: 10 % too slow in prefill, right in decode."""
    latencies = {"measured_ns": (1e6, 1e5), "kernels_ns": (9e5, 9e4), "scaled_ns": (1.1e6, 1e5)}

    def pair(input_len: int, output_len: int, held_out: bool) -> dict[str, Any]:
        times = {
            field: {"ttft": ttft, "tpot": tpot, "total": ttft + (output_len - 1) * tpot}
            for field, (ttft, tpot) in latencies.items()
        }
        return {"input": input_len, "output": output_len, "held_out": held_out, **times}

    def errors(value: float) -> dict[str, Any]:
        return {q: {"mean": value, "p90": value, "worst": 2 * value, "n": 4} for q in ("ttft", "tpot", "total")}

    told = {
        "schema": 1,
        "hardware": table.hardware,
        "model": table.model,
        "runtime": "cuda-graph",
        "num_layers": 32,
        "model_num_layers": 32,
        "repeat": 3,
        "processes": 2,
        "applied": {"mode": "curve"},
        "tolerance": 0.05,
        "over_tolerance": ["ttft"],
        "noisy": {},
        "spread": {"ttft": 0.01, "tpot": 0.02, "total": None},
        "spread_between_processes": {"ttft": 0.03, "tpot": None, "total": None},
        "scalings": {"global": {"factor": 1.1, "held_out_errors": errors(0.07)}},
        "batched": [
            {"sequences": 4, "kv_len": 8, "measured_ns": 2e6, "composed_ns": 3e6, "request_ns": 1e6, "error": 0.5}
        ],
        "recombination": {"own_point": errors(0.03)["ttft"], "recombined": None},
        "depth_extrapolation": {"ttft": errors(0.04)["ttft"]},
        "not_fitted": {"phase": "there is no decode step"},
        "warnings": [],
        "pairs": [pair(i, o, held) for i, held in ((2, False), (3, True)) for o in (2, 4)],
        "provenance": {"table": csv.name, "runs": table.meta["runs"], "validated": "2026-11-27T10:00:00+00:00"},
    }
    curve = {
        "shared_excess_ns": 1e3,
        "prefill_knots": [{"input": 2, "excess_ns": 1e3}, {"input": 4, "excess_ns": 2e3}],
        "decode_knots": [{"kv_cache": 1, "excess_ns": 1e3}],
        "held_out_errors": errors(0.1),
    }
    told["scalings"]["curve"] = curve
    return told | changes


def validated(folder: Path) -> TablePaths:
    """A whole table with a validation beside it."""
    paths = finished(folder)
    told = validation_json(read_table(paths.csv), paths.csv)
    paths.csv.with_name(f"{paths.csv.stem}-cuda-graph.validation.json").write_text(json.dumps(told))
    return paths
