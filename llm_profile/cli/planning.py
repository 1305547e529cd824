"""What a run will be called, need and take, and what would stop it, before anything is loaded. Imports no torch."""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_profile.cards import short_device_name
from llm_profile.errors import UsageError
from llm_profile.json_text import parse_json
from llm_profile.kernels import check_compilers
from llm_profile.models.architectures import ARCHITECTURES
from llm_profile.models.config_names import POSITION_FIELDS, WorkedOut, field_of_decoder
from llm_profile.models.footprint import memory_bytes
from llm_profile.models.hub import ModelSource, find_model, folder_name
from llm_profile.points import SweepPoint
from llm_profile.request import DTYPE_BYTES, Request
from llm_profile.store.files import load_table, read_meta
from llm_profile.store.journal import read_journal
from llm_profile.store.paths import TablePaths, shard_name
from llm_profile.store.storage import storage_errors
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import SERIES, Plan, plan, series_of
from llm_profile.timing.backends.base import GRAPHS
from llm_profile.timing.grid import GRIDS
from llm_profile.validation.estimate import check_pairs
from llm_profile.validation.scaled_table import scaling_paths

if TYPE_CHECKING:
    from llm_profile.models.shard_memory import Parameters


def find_source(request: Request, *, weights: bool = True) -> ModelSource:
    """The model that a request names. weights: False where only its configuration matters. Raises UsageError."""
    makes_do = request.device == "fake" or (not weights and request.load_format == "auto")
    return find_model(
        request.model,
        load_format="dummy" if makes_do else request.load_format,
        revision=request.revision,
        token=request.hf_token,
        allow_pickle=request.allow_pickle,
        trust_remote_code=request.trust_remote_code,
    )


def within_positions(request: Request, source: ModelSource) -> Request:
    """The request with compositions (`--axes`) no longer than what the model was made for."""
    trained, sweep = longest_trained(source.config), request.sweep
    if not sweep.axes or trained is None or trained >= sweep.axes_longest:
        return request
    return replace(request, sweep=replace(sweep, axes_longest=trained))


def hardware_name(request: Request) -> str:
    """What the device's folder is called: `--hardware`, else its short name. Imports torch for a GPU.

    Raises UsageError where the GPU is not there.
    """
    if not request.device.startswith("cuda"):
        return request.device.upper() if request.hardware is None else request.hardware
    import torch

    from llm_profile.timing.cuda_device import check_cuda

    check_cuda(request.device)
    hardware = request.hardware
    return short_device_name(torch.cuda.get_device_name(request.device)) if hardware is None else hardware


def table_name(request: Request, source: ModelSource) -> str:
    """What the table is called: `--model-name`, else the model's id; a local folder goes by its last part.

    The name of a shard's table ends in its degree.
    """
    whole = folder_name(source.path) if source.path is not None else source.name
    return shard_name(whole if request.model_name is None else request.model_name, request.tp)


def table_paths(request: Request, source: ModelSource, hardware: str) -> TablePaths:
    """Where the table lies. Raises UsageError for names that cannot be those of files."""
    return TablePaths.of(request.output_dir, hardware, table_name(request, source))


def check_degree(request: Request, source: ModelSource) -> None:
    """Raises UsageError for a --tp that does not divide the model. Imports torch for one above 1."""
    if request.tp > 1:
        _parameters(request, source)


def _parameters(request: Request, source: ModelSource) -> "Parameters":
    from llm_profile.models.remote_code import code_of
    from llm_profile.models.shard_memory import shard_parameters

    with code_of(source, request.hf_token):
        return shard_parameters(source.config, request.num_layers, request.tp)


def check(request: Request, source: ModelSource, paths: TablePaths) -> set[SweepPoint]:
    """Refuse what would stop the run later, as far as a configuration tells. Returns the points that are known already.

    Raises UsageError: more blocks than the model has, pairs to validate that the table will not have, files that are
    not ours or cannot be written, no compiler for fused kernels.
    """
    if not isinstance(source.config.get("model_type"), str):
        from llm_profile.models.building import make_config  # which refuses it; imports torch

        make_config(source.config)
    check_compilers(request.kernels, request.device)
    blocks = _field(source.config, "num_hidden_layers")
    _check_depth("--num-layers", request.num_layers, blocks)
    check_degree(request, source)
    check_writable(paths.csv)
    table = _table_there(request, paths)
    known = table.measured_points() if table is not None else set()
    if request.scaling is not None:
        _check_depth("--scaling-num-layers", request.scaling.num_layers, blocks)
        for other in request.scaling.other_depths or ():
            _check_depth("--scaling-other-depths", other, blocks)
        check_writable(scaling_paths(paths.csv, request.scaling.output)[1].csv)
        check_validation(request, plan(request.sweep, learned_positions(source.config)), known)
    return known


def check_validation(request: Request, laid_out: Plan, known: Collection[SweepPoint]) -> None:
    """Refuse (input, output) pairs that neither the plan nor the points known already cover. Raises UsageError."""
    if request.scaling is not None:
        check_pairs(request.scaling.pairs, {*laid_out.points, *known}, laid_out.unrunnable)


def run_record(request: Request, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is recorded of a run beside its conditions. The token is not among it."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "warmup": request.warmup,
        "repeat": request.repeat,
        "precision": request.precision,
        "allow_slow_path": request.allow_slow_path,
        "sweep": request.sweep.record(),
        **facts,
    }


def model_record(source: ModelSource) -> dict[str, Any]:
    """What metadata keeps of the model, so that it can be built again for validation."""
    kept = {"name": source.name, "origin": source.origin, "revision": source.revision}
    return {"source": kept, "config": dict(source.config)}


def longest_trained(config: Mapping[str, Any]) -> int | None:
    """Positions that a model was made for, None where its configuration does not say."""
    values = (_field(config, name) for name in POSITION_FIELDS)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def learned_positions(config: Mapping[str, Any]) -> int | None:
    """Length of a learned position table, where the model's type is known to have one."""
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    return longest_trained(config) if architecture and architecture.extra_positions is not None else None


def beyond_training(config: Mapping[str, Any], laid_out: Plan) -> str | None:
    """A warning where runnable points are longer than the model was made for: latency is right, output would not be."""
    trained = longest_trained(config)
    beyond = [p for p in laid_out.points if trained and p.total_len > trained and p not in laid_out.unrunnable]
    if not beyond:
        return None
    return (
        f"{len(beyond)} of {len(laid_out.points)} points go beyond the model's {trained} positions; they are timed too"
    )


def plan_lines(request: Request) -> list[str]:
    """What the request would do: points, files, memory, time, pairs to validate. Raises UsageError as the run would."""
    source = find_source(request, weights=False)
    request = within_positions(request, source)
    laid_out = plan(request.sweep, learned_positions(source.config))
    hardware = _visible_hardware(request.device) if request.hardware is None else request.hardware
    paths = table_paths(request, source, "hardware" if hardware is None else hardware)
    known = check(request, source, paths) & set(laid_out.points)
    runnable = laid_out.left(())
    most = GRIDS[request.sweep.grid].most(runnable)
    left = max(0, most - len(known))
    counts = Counter(map(series_of, laid_out.points))
    points = ", ".join(f"{counts[name]} {name}" for name in SERIES)
    if request.sweep.axes:
        points += f", {counts[None]} compositions ({', '.join(request.sweep.axes)})"
    rate = _seconds_per_point(request.output_dir / hardware) if hardware else None
    blocks = f"{request.num_layers} decoder block(s) of each kind"
    shard = [f"shard: one of {request.tp} tensor parallel ranks (--tp)"] if request.tp > 1 else []
    lines = [
        f"model: {source.name} (configuration from {source.origin}), {blocks}",
        *shard,
        f"table: {paths.csv}" if hardware else "table: <hardware>/<model>.csv, the folder named after the device",
        f"points: {points}, {len(known)} of them known",
        *([] if most == len(runnable) else [f"  {most} of them are measured at most, the others interpolated"]),
        *(f"  {text}" for text in _unusual_points(source, laid_out)),
        f"memory: {_memory(request, source, laid_out)}",
        f"time: about {rate * left:.0f} s for the sweep" if rate else "time: unknown until the first batch",
    ]
    if request.scaling is not None:
        pairs, runtime = len(request.scaling.pairs), request.scaling.runtime
        lines.append(f"validation: {pairs} (input, output) pairs against the real model ({runtime})")
    return lines


def _unusual_points(source: ModelSource, laid_out: Plan) -> Iterator[str]:
    if laid_out.unrunnable:
        count, reason = len(laid_out.unrunnable), next(iter(laid_out.unrunnable.values()))
        yield f"{count} of {len(laid_out.points)} points will be missing: {reason}"
    if text := beyond_training(source.config, laid_out):
        known_type = source.config.get("model_type") in ARCHITECTURES
        yield text if known_type else f"{text}, or left out where positions are learned"


def _field(config: Mapping[str, Any], name: str) -> Any:
    """A field of a configuration as transformers reads it; None if unknown. Raises UsageError as the run would."""
    try:
        return field_of_decoder(config, name)
    except WorkedOut:
        from llm_profile.models.building import make_config  # imports torch, which takes seconds

        return getattr(make_config(config).get_text_config(decoder=True), name, None)


def _check_depth(option: str, asked: int | None, blocks: Any) -> None:
    if asked is not None and isinstance(blocks, int) and asked > blocks:
        raise UsageError(f"{option} {asked}: the model has {blocks} blocks; use 1 to {blocks}")


def nearest_folder(path: Path) -> Path:
    """The nearest folder above a path that is there."""
    return next(parent for parent in path.absolute().parents if parent.exists())


def check_writable(csv: Path) -> None:
    """Raises UsageError where the nearest folder that is there takes no files; root may write where nobody can."""
    folder = nearest_folder(csv)
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise UsageError(f"cannot write {csv}: {folder} is no folder that you may write to; choose another")


def _table_there(request: Request, paths: TablePaths) -> LatencyTable | None:
    """What a run would add to. Raises UsageError for files that are not ours or damaged, and for other ranges."""
    if request.overwrite:
        return None
    with storage_errors("read", paths.csv):
        journal = read_journal(paths.journal)  # first: it goes when the other files have all that is in it
        meta = read_meta(paths)
        if meta is not None and meta["origin"] != "measured":  # gives way to a measurement
            return None
        table = load_table(paths, meta, journal)
    if table is None or request.append or table.covers(request.sweep.points(), request.sweep.grid):
        return table
    if ranges := [sweep for run in table.meta["runs"] if isinstance(sweep := run.get("sweep"), dict)]:
        options = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in ranges[-1].items())
        raise UsageError(
            f"{paths.csv}: measured for other ranges ({options}); add to it with --append, or start anew with "
            "--overwrite"
        )
    return table


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


def dtype_of(request: Request, config: Mapping[str, Any]) -> str:
    """The data type of the weights: `--dtype`, else that of the model's configuration."""
    if request.dtype != "auto":
        return request.dtype
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")


def needed_bytes(request: Request, source: ModelSource, laid_out: Plan) -> int | None:
    """Memory that the sweep needs on the device; None if unknown. For a shard, cache and activations of a pass count
    as those of the whole model, which is more than it needs."""
    longest = max(p.cache_len if p.is_flat else p.tokens for p in laid_out.points)
    cached = max((p.cache_len for p in laid_out.points if not p.is_flat), default=0)
    copies = 1 + GRAPHS if request.device.startswith("cuda") else 1
    dtype_bytes = DTYPE_BYTES.get(dtype_of(request, source.config), 2)
    whole = memory_bytes(source.config, request.num_layers, dtype_bytes, longest, copies, cached)
    if whole is None or request.tp == 1:
        return whole
    parameters = _parameters(request, source)
    return whole - dtype_bytes * (parameters.whole - parameters.shard)


def needed_bytes_of_validation(request: Request, source: ModelSource) -> int | None:
    """Memory that the real model needs, each time that it runs; None if unknown, or if it is not to run."""
    if request.scaling is None:
        return None
    depth = request.scaling.num_layers or _field(source.config, "num_hidden_layers")
    if not isinstance(depth, int):
        return None
    longest = max(input_len + output_len for input_len, output_len in request.scaling.pairs)
    return memory_bytes(source.config, depth, DTYPE_BYTES.get(dtype_of(request, source.config), 2), longest)


def _memory(request: Request, source: ModelSource, laid_out: Plan) -> str:
    needed, dtype = needed_bytes(request, source, laid_out), dtype_of(request, source.config)
    of_shard = ""
    if request.tp > 1:
        weights = _parameters(request, source).shard * DTYPE_BYTES.get(dtype, 2)
        of_shard = f"weights of a shard {weights / 2**30:.2f} GiB, "
    known = "unknown" if needed is None else f"about {needed / 2**30:.1f} GiB on the device ({dtype})"
    return f"{of_shard}{'in all ' if of_shard else ''}{known}"


def _seconds_per_point(folder: Path) -> float | None:
    """Rate of the latest run on this hardware that came to its end, whatever the model."""
    rates = sorted(_rates(folder))
    return rates[-1][1] if rates else None


def _rates(folder: Path) -> Iterator[tuple[str, float]]:
    """When each recorded run started, and its seconds per point."""
    for path in folder.rglob("*.meta.json"):
        runs: Any = ()
        with suppress(OSError, ValueError, KeyError, TypeError):  # not every file of that name is ours
            runs = list(parse_json(path.read_text(encoding="utf-8"))["runs"])
        for run in runs:
            with suppress(KeyError, TypeError, ZeroDivisionError):  # a run that was killed has no seconds
                yield str(run["started"]), run["seconds"] / run["points"]
