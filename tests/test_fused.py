"""`--kernels fused`: the same numbers from other kernels, in the same rows; what keeps the model's kernels is named."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

import run_profile
import validation
from llm_profile import kernels
from llm_profile.errors import UsageError
from llm_profile.layers.layout import Layout
from llm_profile.layers.probe import running_modules
from llm_profile.measurement import PointSample, StoppingRule
from llm_profile.models.building import ModelOptions
from llm_profile.passes.compiling import CannotFuseError, Compiled
from llm_profile.passes.fused import FusedKernels
from llm_profile.passes.grouped_attention import grouped_attention
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from llm_profile.store.conditions import differences
from llm_profile.store.files import read_table
from llm_profile.timing.backends.cpu_wall import CpuWallBackend
from tests.shrunken import tiny_config
from tests.table_samples import CONDITIONS, measure, sweep_points
from tests.test_hooks import footprint
from tests.test_layers import EXPECTED
from tests.tiny import CONFIGS

POINTS = [SweepPoint(1, 0), SweepPoint(6, 0), SweepPoint(17, 0), SweepPoint(1, 9), SweepPoint(1, 25)]
"""Lengths other than those at which kernels are compiled, 32 tokens and caches of 31."""

MODEL_NORMS = ["input_layernorm", "post_layernorm", "final_layernorm"]

FUSED_ROWS: dict[str, list[str]] = {
    # The norms of OPT and GPT-NeoX are LayerNorm with a bias, their activation is one kernel. Gemma's have 1 + weight.
    "llama": [*MODEL_NORMS, "rope", "act_fn"],
    "qwen3": [*MODEL_NORMS, "q_norm", "k_norm", "rope", "act_fn"],
    "opt": MODEL_NORMS,
    "phimoe": [*MODEL_NORMS, "rope", "experts"],
    "gpt_neox": [*MODEL_NORMS, "rope"],
    "gemma": [*MODEL_NORMS, "rope", "act_fn"],
}

HALF = {"gemma", "gpt_neox"}
"""Models that are tried in bfloat16, the others in float32."""


def opened(name: str, how: str, **options: Any) -> Subject:
    fields = CONFIGS[name] if name in CONFIGS else {**tiny_config(name).to_dict(), "dtype": "float32"}
    dtype = "bfloat16" if name in HALF else "float32"
    model = ModelOptions(1, "cpu", dtype, options.pop("attn_implementation", "auto"))
    return Subject(SubjectOptions(fields, model, 32, 32, kernels=how, **options))


@dataclass
class Both:
    """A model with its own kernels and with fused ones: logits at POINTS, operators that modules run by themselves."""

    fused: Subject
    layout: Layout
    logits: list[torch.Tensor]
    logits_fused: list[torch.Tensor]
    compiled_later: int


@cache
def both(name: str) -> Both:
    with closing(opened(name, "model")) as plain:
        wanted = [plain.runner.run(point).logits.clone() for point in POINTS]
    with closing(opened(name, "fused")) as fused:
        before = counters["stats"]["unique_graphs"]
        found = [fused.runner.run(point).logits.clone() for point in POINTS]
        compiled_later = counters["stats"]["unique_graphs"] - before
    return Both(fused, fused.layout, wanted, found, compiled_later)


@pytest.mark.parametrize("name", FUSED_ROWS)
def test_fused_kernels_compute_the_same(name: str) -> None:
    allowed = 0.03 if name in HALF else 1e-5
    for wanted, found in zip(both(name).logits, both(name).logits_fused, strict=True):
        assert torch.isfinite(found).all()
        assert (found - wanted).abs().max() <= allowed * wanted.abs().max()
    assert any(not torch.equal(*pair) for pair in zip(both(name).logits, both(name).logits_fused, strict=True))


@pytest.mark.parametrize("name", FUSED_ROWS)
def test_the_rows_of_fused_kernels_are_found(name: str) -> None:
    fused = both(name).fused.fused
    assert fused is not None
    assert sorted(fused.fused) == sorted(FUSED_ROWS[name]) and fused.not_fused == {}
    assert both(name).fused.notices == []
    assert both(name).fused.conditions()["kernels"] == "fused"


@pytest.mark.parametrize("name", FUSED_ROWS)
def test_other_lengths_compile_nothing(name: str) -> None:
    """A capture cannot compile."""
    assert both(name).compiled_later == 0


@pytest.fixture
def llama() -> Iterator[Subject]:
    with closing(opened("llama", "fused")) as subject:
        yield subject


class OwnOperators(TorchDispatchMode):
    """Counts the operators of each row's module that are no views."""

    def __init__(self, subject: Subject, stack: list[Any]) -> None:
        super().__init__()
        self.rows: Counter[str] = Counter()
        self._subject, self._stack = subject, stack

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._stack and not func.is_view:
            self.rows[self._subject.layout.row_of(self._stack[-1])] += 1
        return func(*args, **(kwargs or {}))


def operators(subject: Subject, point: SweepPoint) -> Counter[str]:
    """Operators of a pass by row. Those of compiled functions are not seen, so a row without any has one kernel."""
    subject.runner.run(point)
    with running_modules(subject.model) as stack, OwnOperators(subject, stack) as counting:
        subject.runner.run(point)
    return counting.rows


def test_each_part_is_one_kernel_and_the_product_is_in_the_row_of_the_activation() -> None:
    before, after = Counter[str](), Counter[str]()
    for how, rows in (("model", before), ("fused", after)):
        with closing(opened("llama", how)) as subject:
            rows.update(operators(subject, SweepPoint(5, 0)))
    assert before["input_layernorm"] >= 5 and before["mlp_other"] == 1 and before["act_fn"] == 1
    assert {row for row in before if row not in after} == {*MODEL_NORMS, "mlp_other", "act_fn"}
    assert before["attn_other"] > after["attn_other"]  # the rotary function is called there
    assert after["q_proj"] == before["q_proj"] and after["block_other"] == before["block_other"]


@pytest.mark.parametrize("point", [SweepPoint(5, 0), SweepPoint(1, 7)])
def test_rows_have_their_canonical_names(llama: Subject, point: SweepPoint) -> None:
    (result,) = CpuWallBackend(llama).sample([point], StoppingRule(repeat=2, precision=0), warmup=0)
    assert isinstance(result, PointSample)
    assert sorted(result.rows) == sorted(EXPECTED["llama"])
    assert result.rows["act_fn"].launches == result.rows["rope"].launches == 1


def test_another_batch_size_runs_under_a_dispatch_mode(llama: Subject) -> None:
    """As when a pass with copies from the host is captured."""

    class Passing(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    norm = llama.model.model.norm
    values = torch.randn(3, 1, 64)
    with torch.no_grad():
        wanted = type(norm).forward(norm, values)
        with Passing():
            found = norm(values)
    torch.testing.assert_close(found, wanted)


def test_closing_leaves_model_transformers_and_torch_as_they_were() -> None:
    import transformers.models.llama.modeling_llama as modeling

    with closing(opened("llama", "model")) as plain:
        for point in POINTS:
            plain.runner.run(point)
        before, forward, threads = footprint(plain.model), modeling.LlamaRMSNorm.forward, inductor.compile_threads
        logits = plain.runner.run(POINTS[1]).logits.clone()
        with FusedKernels(plain.model, plain.layout, plain.runner, 32, 32):
            assert footprint(plain.model) != before
            assert modeling.LlamaRMSNorm.forward is forward and inductor.compile_threads == threads
        assert footprint(plain.model) == before
        assert torch.equal(plain.runner.run(POINTS[1]).logits, logits)
        assert torch._C._len_torch_dispatch_stack() == 0


# ---- what keeps the model's kernels


def test_what_does_not_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check = Compiled.check

    def no_rope(compiled: Compiled, function: Any, *rest: Any) -> None:
        if getattr(function, "__name__", "") == "apply_rotary_pos_emb":
            raise CannotFuseError("not compiled: Unsupported: for a test")
        check(compiled, function, *rest)

    monkeypatch.setattr(Compiled, "check", no_rope)
    with closing(opened("llama", "fused")) as subject:
        (notice,) = subject.notices
        assert notice == (
            "--kernels fused: these rows keep the model's kernels: rope (not compiled: Unsupported: for a test)"
        )
        facts = subject.facts()
        assert facts["not_fused"] == {"rope": "not compiled: Unsupported: for a test"} and "rope" not in facts["fused"]
        wanted = both("llama").logits[1]
        torch.testing.assert_close(subject.runner.run(POINTS[1]).logits, wanted, rtol=1e-4, atol=1e-5)


def test_compiled_code_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "__call__", lambda self, *args, **kwargs: args[-1] * 0)
    with pytest.raises(UsageError, match="no part of this model can be compiled .*computes something else") as told:
        opened("opt", "fused")
    assert "--kernels model" in str(told.value)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("opt", {"attn_implementation": "eager"}, "eager attention"),
        ("falcon", {}, "the model's code computes it by itself"),
    ],
)
def test_attention_that_keeps_its_kernels_is_named(name: str, options: dict[str, Any], why: str) -> None:
    with closing(opened(name, "fused", **options)) as subject:
        assert subject.fused is not None and subject.fused.not_fused["attn"].startswith(why)
        assert any(f"attn ({why}" in notice for notice in subject.notices)


def test_the_models_own_kernels_have_no_facts_of_fused_ones() -> None:
    with closing(opened("llama", "model")) as subject:
        assert subject.fused is None and subject.conditions()["kernels"] == "model"
        assert not {"fused", "not_fused"} & subject.facts().keys()


def test_prompts_past_a_sliding_window_copy_no_keys_either() -> None:
    """Their masks make transformers copy."""
    copied: dict[bool, int] = {}

    class Copies(TorchDispatchMode):
        """Counts copies of keys or values for all heads."""

        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            self.count += func.name() == "aten::clone" and made.ndim == 5 and made.shape[1:3] == (2, 2)
            return made

    with closing(opened("gemma3", "model")) as subject:
        prompt, logits = SweepPoint(20, 0), []
        for grouped in (False, True):
            with grouped_attention() if grouped else nullcontext(), Copies() as copies:
                logits.append(subject.runner.run(prompt).logits.clone())
            copied[grouped] = copies.count
    torch.testing.assert_close(*logits)
    assert copied[False] >= 2 and copied[True] == 0


# ---- refusals, and tables

RUN = ["--model", "tiny-llama", "--device", "cpu", "--load-format", "dummy", "--prefill-max", "3", "--decode-max", "2"]
RUN += ["--repeat", "1", "--no-report"]


def test_the_command_measures_with_fused_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*RUN, "--skip-scaling", "--output-dir", str(tmp_path)]
    assert run_profile.main([*arguments, "--kernels", "fused"]) == 0
    table = read_table(tmp_path / "CPU" / "tiny-llama.csv")
    assert table.conditions["kernels"] == "fused"
    assert table.meta["runs"][0]["not_fused"] == {} and "rope" in table.meta["runs"][0]["fused"]
    capsys.readouterr()
    assert run_profile.main([*arguments, "--append"]) == 2
    assert 'kernels is "fused" there and "model" now' in capsys.readouterr().err


def test_tables_without_the_condition_were_measured_with_the_models_kernels() -> None:
    old: dict[str, Any] = {"conditions": {"gpu": "H200"}}
    assert differences(old, {"conditions": {"gpu": "H200", "kernels": "model"}}) == []
    (told,) = differences(old, {"conditions": {"gpu": "H200", "kernels": "fused"}})
    assert told == 'kernels is "model" there and "fused" now'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cpu"], "--scaling-runtime eager: .*without the kernels of --kernels fused; use --skip-scaling$"),
        (["--device", "cuda"], "use --scaling-runtime cuda-graph or --skip-scaling$"),
        (["--device", "fake", "--skip-scaling"], "--kernels fused: .*leave it out with --device fake$"),
    ],
)
def test_what_cannot_be_fused_at_all_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_profile.main(["--model", "tiny-llama", "--kernels", "fused", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line


def test_a_fused_table_is_not_validated_by_eager(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = measure(tmp_path, sweep_points(4, 4), conditions={**CONDITIONS, "kernels": "fused"})
    pairs = ["--scaling-input-min", "1", "--scaling-input-max", "2", "--scaling-input-step", "1"]
    assert validation.main(["--csv", str(table.csv), *pairs]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "without the kernels of --kernels fused; use --scaling-runtime cuda-graph" in line


def test_without_a_compiler_nothing_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(run_profile, "open_backend", lambda *_: pytest.fail("a model was loaded"))
    arguments = [*RUN, "--skip-scaling", "--kernels", "fused", "--output-dir", str(tmp_path / "out")]
    assert run_profile.main(arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--kernels fused: Inductor needs a C++ compiler (g++) on this machine; install" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("triton", "compiler", "missing"),
    [
        (False, True, "the package triton"),
        (True, False, r"a C compiler \(gcc\)"),
        (False, False, r"the package triton and a C compiler \(gcc\)"),
        (True, True, None),
    ],
)
def test_what_a_gpu_needs(triton: bool, compiler: bool, missing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(kernels, "find_spec", lambda name: object() if triton and name == "triton" else None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if compiler and name == "clang" else None)
    monkeypatch.setattr(kernels, "python_headers", lambda: Path(__file__))
    kernels.check_compilers("model", "cuda")
    if missing is None:
        kernels.check_compilers("fused", "cuda:1")
    else:
        with pytest.raises(UsageError, match=f"needs {missing} on this machine"):
            kernels.check_compilers("fused", "cuda")


def test_the_model_of_a_fused_table_runs_fused_kernels(tmp_path: Path) -> None:
    from llm_profile.validation.opening import profiled_subject
    from llm_profile.validation.profiled import Profiled
    from tests.test_reality import profiled_table

    known = profiled_table(tmp_path, "opt", kernels="fused")
    with closing(profiled_subject(Profiled.of(known), 1, "cpu", None)) as subject:
        assert subject.fused is not None and subject.fused.fused
        assert isinstance(subject.model, nn.Module)
