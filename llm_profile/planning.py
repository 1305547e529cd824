"""What a run will be called, need and take, before anything heavy is loaded. Imports no torch."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llm_profile.estimate import check_pairs
from llm_profile.footprint import memory_bytes
from llm_profile.hub import ModelSource, find_model
from llm_profile.paths import TablePaths
from llm_profile.provenance import short_device_name
from llm_profile.request import Request
from llm_profile.sweep import Plan, plan
from llm_profile.table import LatencyTable

DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


def hardware_name(device: str) -> str:
    """The device's short name, as `--hardware` defaults to it. Imports torch."""
    if not device.startswith("cuda"):
        return device.upper()
    import torch

    from llm_profile.backends.torch_profiler import check_cuda

    check_cuda(device)
    return short_device_name(torch.cuda.get_device_name(device))


def table_name(source: ModelSource) -> str:
    """What a model's table is called: its id; a local folder goes by its last part."""
    return source.path.resolve().name if source.path is not None else source.name


def run_record(request: Request) -> dict[str, Any]:
    """What is recorded of a run beside its conditions. The token is not among it."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "warmup": request.warmup,
        "repeat": request.repeat,
        "precision": request.precision,
        "sweep": asdict(request.sweep),
    }


def model_record(source: ModelSource) -> dict[str, Any]:
    """What metadata keeps of the model, so that it can be built again for validation."""
    kept = {"name": source.name, "origin": source.origin, "revision": source.revision}
    return {"source": kept, "config": dict(source.config)}


def longest_trained(config: Mapping[str, Any]) -> int | None:
    """Positions that a model was made for, None where its configuration does not say."""
    text_config = config.get("text_config", config)
    value = text_config.get("max_position_embeddings")
    return value if isinstance(value, int) else None


def beyond_training(config: Mapping[str, Any], laid_out: Plan) -> str | None:
    """A warning where runnable points are longer than the model was made for: latency is right, output would not be."""
    trained = longest_trained(config)
    beyond = [p for p in laid_out.points if trained and p.total_len > trained and p not in laid_out.unrunnable]
    if not beyond:
        return None
    return (
        f"{len(beyond)} points are longer than the {trained} positions that the model was made for; they are timed too"
    )


def plan_lines(request: Request) -> list[str]:
    """What the request would do: points, files, memory, time, pairs to validate. Raises UsageError as the run would."""
    source = find_model(
        request.model,
        load_format="dummy" if request.load_format == "auto" else request.load_format,
        revision=request.revision,
        token=request.hf_token,
        allow_pickle=request.allow_pickle,
    )
    laid_out = plan(request.sweep)
    hardware = request.hardware or _visible_hardware(request.device)
    lines = [f"model: {source.name} (configuration from {source.origin}), {request.num_layers} decoder block(s)"]
    known = 0
    if hardware is None:
        lines.append("table: <hardware>/<model>.csv, the folder named after the device when it is there")
    else:
        paths = TablePaths.of(request.output_dir, hardware, request.model_name or table_name(source))
        lines.append(f"table: {paths.csv}")
        if paths.meta.exists() and not request.overwrite:
            known = len(set(LatencyTable.read(paths.csv).records) & set(laid_out.points))
    phases = [p.phase for p in laid_out.points]
    lines.append(f"points: {phases.count('prefill')} prefill, {phases.count('decode')} decode, {known} of them known")
    trained = longest_trained(source.config)
    beyond = sum(p.total_len > trained for p in laid_out.points) if trained else 0
    if beyond:
        lines.append(f"  {beyond} are longer than the model's {trained} positions: left out where these are learned")
    lines.append(f"memory: {_memory(request, source, laid_out)}")
    rate = _seconds_per_point(request.output_dir / hardware) if hardware else None
    left = len(laid_out.points) - known
    lines.append(f"time: about {rate * left:.0f} s" if rate else "time: unknown until the first batch")
    if request.scaling is not None:
        check_pairs(request.scaling.pairs, laid_out.points, {})
        lines.append(
            f"validation: {len(request.scaling.pairs)} (input, output) pairs against the real model ({request.scaling.runtime})"
        )
    return lines


def _visible_hardware(device: str) -> str | None:
    """The device's short name by NVML alone; None where that cannot tell."""
    if not device.startswith("cuda"):
        return device.upper()
    try:
        import pynvml

        pynvml.nvmlInit()
        index = int(device.partition(":")[2] or 0)
        return short_device_name(str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index))))
    except Exception:  # no NVML, no driver, no such GPU: a plan is made without them
        return None


def _memory(request: Request, source: ModelSource, laid_out: Plan) -> str:
    dtype = request.dtype
    if dtype == "auto":
        dtype = str(source.config.get("dtype") or source.config.get("torch_dtype") or "bfloat16")
    longest = max(p.total_len for p in laid_out.points)
    needed = memory_bytes(source.config, request.num_layers, DTYPE_BYTES.get(dtype, 2), longest)
    return "unknown" if needed is None else f"about {needed / 2**30:.1f} GiB on the device ({dtype})"


def _seconds_per_point(folder: Path) -> float | None:
    """Rate of the latest complete run on this hardware, whatever the model."""
    runs = sorted(_runs(folder), key=lambda run: str(run.get("started")))
    return float(runs[-1]["seconds"]) / int(runs[-1]["points"]) if runs else None


def _runs(folder: Path) -> Iterator[Mapping[str, Any]]:
    for path in folder.rglob("*.meta.json"):
        try:
            runs = json.loads(path.read_text(encoding="utf-8")).get("runs", [])
        except (OSError, ValueError):
            continue
        yield from (run for run in runs if run.get("seconds") and run.get("points"))
