"""run_profile.py doctor: every check on machines that are made up, and the command on this one."""

import json
import os
import shutil
import sys
import sysconfig
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

import run_profile
from llm_profile import versions
from llm_profile.cli import planning
from llm_profile.doctor import command, finding, gpu_checks, host_checks, model_checks, profiler_checks
from llm_profile.doctor.checks import CHECKS, Check, findings
from llm_profile.doctor.finding import Finding, Intended, Level, fine
from llm_profile.doctor.gpu_handle import Gpu
from llm_profile.errors import EXIT_COMPLETE, EXIT_USAGE, UsageError
from llm_profile.models import hub
from llm_profile.models.download import HubError, HubUnreachable
from llm_profile.request import Request, ScalingRequest
from tests.table_samples import measure, sweep_points

GIB = 2**30
SM, GRAPHICS = 1, 0
"""Numbers of clocks in NVML's API."""


class FakeNvml:
    """A `pynvml` with one H100 that is idle, cool and as it was delivered. answers: by function, and its argument."""

    class NVMLError(Exception):
        pass

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {
            "nvmlSystemGetDriverVersion": "580.1",
            "nvmlSystemGetCudaDriverVersion": 13000,
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=os.getpid())],
            "nvmlDeviceGetClockInfo": {SM: 1980},
            "nvmlDeviceGetMaxClockInfo": {SM: 1980},
            "nvmlDeviceGetApplicationsClock": {GRAPHICS: 1980},
            "nvmlDeviceGetDefaultApplicationsClock": {GRAPHICS: 1980},
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x1,
            "nvmlDeviceGetPowerManagementLimit": 700_000,
            "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
            "nvmlDeviceGetTemperature": {0: 40},
            "nvmlDeviceGetTemperatureThreshold": {1: 89},
        } | answers

    def nvmlInit(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            answer = self.answers.get(name)
            if answer is None:
                raise self.NVMLError(name)
            return answer[arguments[-1]] if isinstance(answer, dict) else answer

        return call


def intended(gpu: Gpu | UsageError | None = None, source: Any = None, **options: Any) -> Intended:
    """A run on that GPU with that model, which nobody looks for."""
    run = Intended(Request(**({"model": "", "device": "cuda" if gpu is not None else "cpu"} | options)))
    vars(run).update(gpu=gpu, source=source)
    return run


def gpu(free: int = 79 * GIB, **answers: Any) -> Gpu:
    return Gpu("NVIDIA H100 80GB HBM3", lambda: (free, 80 * GIB), FakeNvml(**answers), "handle")


def found(check: Check, run: Intended) -> Finding:
    said = check(run)
    assert said is not None
    if said.level is not Level.OK:
        assert any(mark in said.text for mark in (":", ";")), "what was found, and what to do"
    assert len(said.text.splitlines()) == 1
    return said


# ---- the GPU


OF_A_GPU = (
    gpu_checks.other_processes,
    gpu_checks.clocks,
    gpu_checks.power_cap,
    gpu_checks.temperature,
)


@pytest.mark.parametrize("check", [gpu_checks.is_there, *OF_A_GPU])
def test_a_gpu_as_it_was_delivered_is_fine(check: Check) -> None:
    assert found(check, intended(gpu())).level is Level.OK


def test_the_gpu_is_named() -> None:
    assert gpu_checks.is_there(intended(gpu())) == fine("NVIDIA H100 80GB HBM3, 80.0 GiB; its tables lie in H100/")


def test_without_a_gpu_there_is_one_error() -> None:
    """The other checks of it do not apply."""
    run = intended(UsageError("--device cuda: torch finds no usable GPU; install a driver"))
    assert found(gpu_checks.is_there, run).level is Level.ERROR
    assert [check(run) for check in (*OF_A_GPU, profiler_checks.records_kernels, model_checks.memory)] == [None] * 6


def test_a_cpu_needs_no_gpu() -> None:
    run = intended(device="cpu")
    assert found(gpu_checks.is_there, run).level is Level.OK
    checks_of_gpu = (*OF_A_GPU, gpu_checks.driver_fits, profiler_checks.others, profiler_checks.records_kernels)
    assert [check(run) for check in checks_of_gpu] == [None] * 7


OTHERS = [SimpleNamespace(pid=pid) for pid in (11, 12)]
OURS = SimpleNamespace(pid=os.getpid())


@pytest.mark.parametrize(
    ("check", "answers", "words"),
    [
        (gpu_checks.other_processes, {"nvmlDeviceGetComputeRunningProcesses": [OURS, *OTHERS]}, "2 other process(es)"),
        # in a container with process ids of its own, ours is among them by another number
        (gpu_checks.other_processes, {"nvmlDeviceGetComputeRunningProcesses": OTHERS}, "1 other process(es)"),
        (gpu_checks.clocks, {"nvmlDeviceGetApplicationsClock": {GRAPHICS: 1200}}, "below its default of 1980 MHz"),
        (gpu_checks.clocks, {"nvmlDeviceGetCurrentClocksThrottleReasons": 0x4 | 0x40}, "hw_thermal_slowdown, sw_power"),
        (
            gpu_checks.power_cap,
            {"nvmlDeviceGetPowerManagementLimit": 400_000},
            "at 400 W, 700 W are the default",
        ),
        (gpu_checks.temperature, {"nvmlDeviceGetTemperature": {0: 84}}, "84 C, and it slows down at 89 C"),
        (gpu_checks.other_processes, {"nvmlDeviceGetComputeRunningProcesses": None}, "NVML cannot be asked"),
        (gpu_checks.clocks, {"nvmlDeviceGetClockInfo": None}, "NVML cannot be asked"),
    ],
)
def test_what_spoils_times_is_a_warning(check: Check, answers: dict[str, Any], words: str) -> None:
    said = found(check, intended(gpu(**answers)))
    assert said.level is Level.WARNING and words in said.text


@pytest.mark.parametrize(
    ("check", "function"),
    [
        (gpu_checks.clocks, "nvmlDeviceGetApplicationsClock"),
        (gpu_checks.power_cap, "nvmlDeviceGetPowerManagementDefaultLimit"),
        (gpu_checks.temperature, "nvmlDeviceGetTemperature"),
        (gpu_checks.temperature, "nvmlDeviceGetTemperatureThreshold"),
    ],
)
def test_what_a_card_does_not_tell_is_no_trouble(check: Check, function: str) -> None:
    assert found(check, intended(gpu(**{function: None}))).level is Level.OK


ERROR_OF_TORCH = UsageError("--device cuda: torch finds no usable GPU")


@pytest.mark.parametrize(
    ("of_driver", "of_torch", "device", "level"),
    [
        (13000, "13.0", gpu(), Level.OK),
        (13010, "12.8", gpu(), Level.OK),
        (12040, "12.8", gpu(), Level.OK),  # of the same major version
        (12080, "13.0", ERROR_OF_TORCH, Level.ERROR),
        (12080, "13.0", gpu(), Level.WARNING),  # runs all the same, so there is a compatibility package
        (None, "13.0", gpu(), Level.WARNING),
    ],
)
def test_the_driver_against_the_cuda_of_torch(
    monkeypatch: pytest.MonkeyPatch, of_driver: int | None, of_torch: str, device: Any, level: Level
) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", of_torch)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(nvmlSystemGetCudaDriverVersion=of_driver))
    said = found(gpu_checks.driver_fits, intended(device))
    assert said.level is level
    if of_driver == 13010:
        assert "has CUDA 13.1" in said.text and "is of CUDA 12.8" in said.text


# ---- profilers


@pytest.mark.parametrize(
    ("variables", "programs", "words"),
    [
        ({}, ["bash", "python3"], None),
        ({"CUDA_INJECTION64_PATH": "/x.so"}, [], "set in the environment: CUDA_INJECTION64_PATH; unset"),
        ({}, ["nv-nsight-cu-cl", "nsys", "bash"], "running: nsys, nv-nsight-cu-cl"),
        (
            {"NSYS_PROFILING_SESSION_ID": "1"},
            ["dcgm-exporter"],
            "SESSION_ID; unset them, and running: dcgm",
        ),
    ],
)
def test_other_profilers(
    variables: dict[str, str], programs: list[str], words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in profiler_checks.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for number, program in enumerate(programs, start=1):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "comm").write_text(f"{program}\n")
    monkeypatch.setattr(profiler_checks, "PROC", tmp_path)
    said = found(profiler_checks.others, intended(gpu()))
    assert said.level is (Level.OK if words is None else Level.WARNING)
    assert words is None or words in said.text


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_arguments: Any, **_options: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("trial", "level", "words"),
    [
        (lambda device: 3, Level.OK, "records kernels (3 of 3)"),
        (lambda device: 0, Level.ERROR, "records no kernel: end other profilers"),
        (raising(RuntimeError("CUPTI\nis held")), Level.ERROR, "fails (RuntimeError: CUPTI is held)"),
    ],
)
def test_a_kernel_is_tried(
    trial: Callable[[str], int], level: Level, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler_checks, "recorded_kernels", trial)
    said = found(profiler_checks.records_kernels, intended(gpu()))
    assert said.level is level and words in said.text


# ---- the host


@pytest.mark.parametrize(
    ("there", "level", "words"),
    [
        ({"torch": "2.14.0", "transformers": "5.24.0"}, Level.OK, "tested"),
        ({"torch": "2.99.0", "transformers": "5.24.0"}, Level.WARNING, "newer than tested: torch 2.99.0"),
        ({"torch": "2.1.0", "transformers": "5.24.0"}, Level.ERROR, "torch 2.1.0 is older"),
        ({"torch": "2.14.0"}, Level.ERROR, "transformers not installed; install the tested set"),
    ],
)
def test_versions(there: dict[str, str], level: Level, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda: there)
    said = found(host_checks.tested_versions, intended())
    assert said.level is level and words in said.text


@pytest.mark.parametrize(
    ("governors", "level"),
    [([], Level.OK), (["performance"] * 2, Level.OK), (["performance", "powersave"], Level.WARNING)],
)
def test_the_governor(governors: list[str], level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(governors):
        file = tmp_path / f"cpu{number}" / "cpufreq" / "scaling_governor"
        file.parent.mkdir(parents=True)
        file.write_text(f"{name}\n")
    monkeypatch.setattr(host_checks, "CPUS", tmp_path)
    assert found(host_checks.governor, intended()).level is level


@pytest.mark.parametrize(("load", "level"), [(0.5, Level.OK), (3.0, Level.WARNING)])
def test_the_load_is_that_of_a_processor(load: float, level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert found(host_checks.load, intended()).level is level


def test_an_output_folder_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = intended(output_dir=tmp_path / "not" / "there")
    assert host_checks.output_folder(run) == fine(f"{tmp_path} can be written to")
    assert not [*tmp_path.iterdir()], "nothing is left"
    monkeypatch.setattr(host_checks.tempfile, "TemporaryFile", raising(OSError(30, "Read-only file system")))
    said = found(host_checks.output_folder, run)
    assert said.level is Level.ERROR and "Read-only file system); choose another --output-dir" in said.text


@pytest.mark.parametrize(("free", "level"), [(100 * GIB, Level.OK), (GIB // 2, Level.WARNING), (2**20, Level.ERROR)])
def test_disk_space(free: int, level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(200 * GIB, 0, free))
    assert found(host_checks.disk_space, intended(output_dir=tmp_path)).level is level


@pytest.mark.parametrize(
    ("compiler", "headers", "words"),
    [(True, True, None), (False, True, "no C compiler"), (True, False, "python3-dev")],
)
def test_the_compiler_is_a_warning_at_most(
    compiler: bool, headers: bool, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/gcc" if compiler and name == "gcc" else None)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    if headers:
        (tmp_path / "Python.h").touch()
    said = found(host_checks.compiler, intended())
    assert said.level is (Level.OK if words is None else Level.WARNING)
    assert words is None or words in said.text


@pytest.mark.parametrize("there", [True, False])
def test_fused_kernels_need_a_compiler(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if there and name == "g++" else None)
    said = found(host_checks.compiler, intended(device="cpu", kernels="fused", scaling=None))
    assert said.level is (Level.OK if there else Level.ERROR)
    assert there or "Inductor needs a C++ compiler" in said.text


# ---- the model


LLAMA_8B = hub.find_model("meta-llama/Llama-3.1-8B", load_format="dummy")


@pytest.mark.parametrize(
    "error",
    [
        HubUnreachable("--model org/x: https://hub cannot be reached (3 tries)"),
        HubError("--hf-token: the hub refused this token (HTTP 401); make a new one"),
        UsageError("--model x: is no folder; give a folder"),
    ],
)
def test_a_model_that_cannot_be_found_ends_the_run(error: UsageError, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(model: str, **_options: Any) -> Any:
        asked.append(model)
        raise error

    monkeypatch.setattr(planning, "find_model", find)
    run = Intended(Request(model="org/x", device="cpu"))
    said = found(model_checks.can_be_found, run)
    assert said == Finding(Level.ERROR, str(error))
    memory = model_checks.memory(run)
    assert memory is not None and "give --model" not in memory.text and model_checks.table_there(run) is None
    assert asked == ["org/x"], "the Hub is asked once, with its waits"


def test_random_weights_for_want_of_real_ones_are_a_warning() -> None:
    notice = hub.dummy_notice("--model meta-llama/Llama-3.1-8B: gated")
    run = intended(source=hub.ModelSource(LLAMA_8B.name, LLAMA_8B.config, "table", notice=notice), hf_token="hf_secret")
    said = found(model_checks.can_be_found, run)
    assert said.level is Level.WARNING and "gated (with a token)" in said.text and "secret" not in said.text


@pytest.mark.parametrize(
    ("free", "scaling", "level", "words"),
    [
        (70 * GIB, None, Level.OK, "by the sweep"),
        (2 * GIB, None, Level.ERROR, "the sweep needs more: end other work"),
        (10 * GIB, ScalingRequest(((128, 128),)), Level.ERROR, "the validation needs more: lower --scaling-num-layers"),
        (70 * GIB, ScalingRequest(((128, 128),)), Level.OK, "15.1 GiB by the validation"),  # 15.0 of weights
        (10 * GIB, ScalingRequest(((128, 128),), num_layers=4), Level.OK, "by the validation"),
    ],
)
def test_memory_against_what_the_run_needs(free: int, scaling: ScalingRequest | None, level: Level, words: str) -> None:
    run = intended(gpu(free), LLAMA_8B, model=LLAMA_8B.name, scaling=scaling)
    said = found(model_checks.memory, run)
    assert said.level is level and words in said.text


def test_a_table_that_refuses_the_run_is_told(tmp_path: Path) -> None:
    named = {"model": LLAMA_8B.name, "hardware": "H200", "model_name": "org/model-1.5"}
    run = intended(source=LLAMA_8B, output_dir=tmp_path, **named)
    assert found(model_checks.table_there, run).text.endswith("model-1.5.csv is to be written")
    paths = measure(tmp_path, sweep_points(4, 4))
    assert found(model_checks.table_there, run).level is Level.OK, "it tells no ranges"
    paths.rows.write_bytes(b"")
    said = found(model_checks.table_there, run)
    assert said.level is Level.ERROR and "is missing or damaged" in said.text


# ---- the command


def test_a_check_that_fails_itself_is_a_warning() -> None:
    some = {"odd": raising(KeyError("a\nb")), "none": lambda run: None, "good": host_checks.load}
    told = dict(findings(intended(), some))
    assert [*told] == ["odd", "good"]
    assert told["odd"].level is Level.WARNING
    assert told["odd"].text.startswith("not known: the check itself failed (KeyError: ")


OPTIONS = ["--model", "tiny-llama", "--device", "cpu", "--prefill-max", "64", "--decode-max", "64"]


def test_the_command_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*OPTIONS, "--skip-scaling", "--output-dir", str(tmp_path)]
    assert run_profile.main(["doctor", *options]) == EXIT_COMPLETE
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("0 error(s), ") and lines[-1].endswith(" warning(s)")
    names = [line[8:].partition(":")[0] for line in lines[:-1]]
    assert {line.split()[0] for line in lines[:-1]} <= {"OK", "warning"}
    assert names == [name for name in CHECKS if name in names] and {"versions", "model", "memory", "table"} <= {*names}
    assert not [*tmp_path.iterdir()], "it only looks"


def test_without_options_it_looks_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    monkeypatch.setattr(finding, "open_gpu", raising(UsageError("--device cuda: no GPU; use --device cpu")))
    assert run_profile.main(["doctor"]) == EXIT_USAGE
    said = capsys.readouterr().out
    assert "error   GPU: --device cuda: no GPU; use --device cpu\n" in said and said.endswith("warning(s)\n")


def test_the_document(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = Finding(Level.ERROR, "full")
    only = {"load": host_checks.load, "odd": raising(ValueError("x")), "table": lambda run: full}
    monkeypatch.setattr(command, "CHECKS", only)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert run_profile.main(["doctor", *OPTIONS, "--json"]) == EXIT_USAGE
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told["exit_code"] == EXIT_USAGE
    levels = {check["name"]: check["level"] for check in told["checks"]}
    assert levels == {"load": "OK", "odd": "warning", "table": "error"}
    assert (told["errors"], told["warnings"]) == (1, 1)


def test_it_ends_where_the_run_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    options = ["--model", "nonono/xx", "--device", "cpu"]
    assert run_profile.main(options) == run_profile.main(["doctor", *options]) == EXIT_USAGE
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert f"error   model: {line.removeprefix('run_profile.py: ')}\n" in said.out


def test_options_are_checked_as_by_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_profile.main(["doctor", "--device", "tpu"]) == EXIT_USAGE
    assert "--device tpu: use cuda" in capsys.readouterr().err
