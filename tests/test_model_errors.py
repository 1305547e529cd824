"""Models, or points of them, that cannot run.

An error of the model's code is refused in one line, an error of this project shows its traceback, and a point at which
the model fails is missing from the table, which has all others.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import run_profile
from llm_profile.errors import UsageError
from llm_profile.layers.ranges import LayerRanges
from llm_profile.models.building import ModelOptions
from llm_profile.models.model_errors import as_usage_error, line_of_model_code
from llm_profile.passes import runner as passes
from llm_profile.passes.cache import BOUND_POSITIONS
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable
from tests.test_architectures import OF_RELEASE, OUTSIDE, QUICK, TABLES, RowsOfOperators, write_model

Command = Callable[..., tuple[int, str, str, LatencyTable | None]]


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """A function that runs run_profile.py on a tiny model of a type, with some fields of its config.json replaced.

    It returns the exit code, stdout, stderr, and the table if one was written.
    """

    def run(model_type: str, /, *arguments: str, **fields: Any) -> tuple[int, str, str, LatencyTable | None]:
        folder = tmp_path / model_type
        whole = write_model(model_type, folder) | fields
        (folder / "config.json").write_text(json.dumps(whole))
        options = ["--model", str(folder), *QUICK, "--skip-scaling", "--output-dir", str(tmp_path / "tables")]
        code = run_profile.main([*options, *arguments])
        tables = list((tmp_path / "tables").rglob("*.csv"))
        return code, *capsys.readouterr(), read_table(tables[0]) if tables else None

    return run


def opened(model_type: str, folder: Path, max_input: int, max_total: int) -> Subject:
    fields = write_model(model_type, folder / model_type)
    return Subject(
        SubjectOptions(fields, ModelOptions(1, "cpu", "float32"), max_input, max_total, allow_slow_path=True)
    )


def refusal(told: str) -> str:
    (line,) = [line for line in told.splitlines() if line.startswith("run_profile.py:")]
    assert "Traceback" not in told
    return line


SMALL = ["--prefill-max", "4", "--decode-max", "4"]


@pytest.mark.parametrize(
    ("model_type", "fields", "told"),
    [
        ("llama", {"num_key_value_heads": 3}, r"llama does not run: RuntimeError: The size of tensor a (4) must"),
        pytest.param(
            *("llama", {"head_dim": 15}, "llama does not run: RuntimeError: The size of tensor a (15) must"),
            marks=pytest.mark.skipif(not OF_RELEASE, reason="later releases refuse the configuration"),
        ),
        ("llama", {"vocab_size": 0}, "its vocab_size is 0, and must be at least 1; correct its config.json"),
        ("llama", {"model_type": ["llama"]}, "its model_type is ['llama'], and must be a name"),
        ("mixtral", {"num_experts_per_tok": 8, "num_local_experts": 4}, "mixtral does not run: RuntimeError: "),
        ("mixtral", {"num_local_experts": 0}, "mixtral does not run: RuntimeError: "),
        ("gemma3_text", {"sliding_window": 0}, "its sliding_window is 0, and must be at least 1"),
        ("rwkv", {"num_hidden_layers": 1}, "rwkv does not run: ZeroDivisionError: division by zero (modeling_rwkv.py:"),
    ],
)
def test_a_configuration_that_does_not_run(
    model_type: str, fields: dict[str, Any], told: str, command: Command
) -> None:
    code, _, err, table = command(model_type, *SMALL, **fields)
    line = refusal(err)
    assert code == 2 and table is None and told in line
    assert "does not run" not in line or line.endswith("of transformers); check its config.json")


def test_an_error_of_ours_is_no_fault_of_the_model(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """The error is raised by torch during a pass, but the code that called torch is this project's cache."""
    monkeypatch.setattr("llm_profile.passes.cache_layers.BufferLayer.stored", lambda _layer: 1000)
    with pytest.raises(RuntimeError):
        command("llama", *SMALL)


def test_memory_that_ran_out_is_no_fault_of_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    subject = opened("llama", tmp_path, 4, 5)
    monkeypatch.setattr(torch.nn.functional, "silu", Mock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(torch.OutOfMemoryError) as raised:
        subject.runner.run(SweepPoint(4, 0))
    subject.close()
    assert line_of_model_code(raised.value) is None


# ---- where positions end

ENDS = {
    # type -> positions that a tiny model has whose config.json declares 64
    **dict.fromkeys(("codegen", "ctrl", "gptj", "mpt", "musicgen", "musicgen_melody", "whisper", "gpt2", "git"), 64),
    "prophetnet": 62,
    "reformer": 64,
}


PROMPTS_GO_ON = ("musicgen", "musicgen_melody")
"""Types that make a longer table of positions for a longer prompt, so that a prompt does not fail beyond the limit.

Decode steps fail there in transformers 5.17, and no longer in later releases. The profiler applies one limit to both.
"""

STOP_EARLIER = ("reformer",)
"""Types that cannot decode at the last position: a step behind a whole chunk needs what only a longer prompt stores."""


@pytest.mark.parametrize("model_type", ENDS)
def test_positions_end_where_the_model_says(model_type: str, tmp_path: Path) -> None:
    end = ENDS[model_type]
    subject = opened(model_type, tmp_path, 70, 71)
    assert subject.layout.learned_positions == subject.max_input == subject.max_total == end
    beyond = (IndexError, RuntimeError, ValueError, TypeError)
    if model_type not in STOP_EARLIER:
        subject.runner.run(SweepPoint(1, end - 1))
    if OF_RELEASE or model_type not in PROMPTS_GO_ON:
        with pytest.raises(beyond):
            subject.runner.run(SweepPoint(1, end))
    subject.runner.run(SweepPoint(end, 0))
    if model_type not in PROMPTS_GO_ON:
        with pytest.raises(beyond):
            subject.runner.run(SweepPoint(end + 1, 0))
    subject.close()


@pytest.mark.parametrize(
    "model_type", ["llama", "falcon", "qwen2", "gpt_neox", "phi", "gemma3_text", "bloom", "xglm", "falcon_h1"]
)
def test_other_positions_do_not_end(model_type: str, tmp_path: Path) -> None:
    subject = opened(model_type, tmp_path, 70, 71)
    assert subject.layout.learned_positions is None
    subject.runner.run(SweepPoint(70, 0))
    subject.runner.run(SweepPoint(1, 70))
    subject.close()


@pytest.mark.parametrize("model_type", ["ctrl", "bert"])
def test_points_beyond_a_table_of_positions_are_missing(model_type: str, command: Command) -> None:
    sweep = ["--prefill-max", "70", "--prefill-step", "35", "--decode-max", "64", "--decode-step", "63"]
    code, out, _, table = command(model_type, *sweep)
    assert code == 3 and table is not None
    assert set(table.missing) == {SweepPoint(70, 0), SweepPoint(1, 64)}
    assert {SweepPoint(35, 0), SweepPoint(1, 63)} < set(table.records)
    assert "missing: 2 of 5 points: beyond the model's 64 learned positions" in out


def test_a_point_that_the_model_fails_at_is_missing(command: Command) -> None:
    """Reformer cannot decode behind a prompt of a whole chunk, and its configuration does not say so."""
    code, out, err, table = command("reformer", "--mode", "decode", "--decode-max", "63", "--decode-step", "62")
    assert code == 3 and table is not None
    where = "the model fails with TypeError (modeling_reformer.py:"
    assert set(table.records) == {SweepPoint(1, 0), SweepPoint(1, 62)} and set(table.missing) == {SweepPoint(1, 63)}
    assert f"missing: 1 of 3 points: {where}" in out
    assert err.count(where) == 1 and "'NoneType' object is not iterable" in err


def test_an_error_of_ours_at_a_point_stays_one(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    run = passes.PassRunner.run

    def broken(runner: passes.PassRunner, point: SweepPoint, *rest: Any) -> Any:
        if point == SweepPoint(3, 0):
            raise IndexError("ours")
        return run(runner, point, *rest)

    monkeypatch.setattr(passes.PassRunner, "run", broken)
    with pytest.raises(IndexError, match="ours"):
        command("llama", *SMALL)


# ---- what decodes, and what attends


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_encoders_are_refused(model_type: str, command: Command) -> None:
    code, _, err, table = command(model_type, *SMALL, is_decoder=False)
    assert code == 2 and table is None
    assert f"--model: this {model_type} returns no cache" in refusal(err) and '"is_decoder": true' in refusal(err)


@pytest.mark.parametrize("name", ["flex_attention", "paged|sdpa"])
def test_attention_that_cannot_be_profiled_is_refused(name: str, command: Command) -> None:
    code, _, err, _ = command("llama", *SMALL, "--attn-implementation", name)
    assert code == 2 and f"--attn-implementation {name}: " in refusal(err)
    assert refusal(err).endswith("use auto, sdpa or eager")


# ---- caches longer than a token


def test_layers_that_run_behind_longer_caches_have_rows(tmp_path: Path) -> None:
    """DeepSeek V4 compresses its keys once every four tokens, so some of its layers run at some cache lengths only."""
    subject = opened("deepseek_v4", tmp_path, 1, 41)
    recorder = RowsOfOperators()
    for kv_len in range(9):
        subject.runner.run(SweepPoint(1, kv_len))
        with LayerRanges(subject.model, subject.layout, recorder), recorder, recorder.scans_of(subject.model):
            subject.runner.run(SweepPoint(1, kv_len))
    subject.close()
    assert not {(row, name) for row, name in recorder.kernels if row.endswith("_other") or row == OUTSIDE} - TABLES


def test_what_is_bound_to_the_cache_does_not_grow_from_pass_to_pass(tmp_path: Path) -> None:
    subject = opened("qwen4_exp", tmp_path, 1, 41)
    cache: Any = subject.runner.cache
    for kv_len in (40, 7, 0, 40, 40):
        subject.runner.run(SweepPoint(1, kv_len))
        bound = [vars(holder).get(name) for holder in (cache, *cache.layers) for name in BOUND_POSITIONS]
        (positions,) = {tuple(tensor[0, 0].tolist()) for tensor in bound if tensor is not None}
        assert positions == tuple(range(kv_len + 1))
    subject.close()


def test_the_past_counts_once(tmp_path: Path) -> None:
    subject = opened("git", tmp_path, 4, 64)
    seen: list[list[int]] = []
    positions = next(m for path, m in subject.model.named_modules() if path.endswith("position_embeddings"))
    positions.register_forward_pre_hook(lambda _module, args: seen.append(args[0].flatten().tolist()))
    for point in (SweepPoint(4, 0), SweepPoint(1, 40)):
        subject.runner.run(point)
    assert seen[-2:] == [[0, 1, 2, 3], [40]]
    subject.close()


def test_a_refusal_is_told_as_it_is() -> None:
    with pytest.raises(UsageError, match="^--model: refused$"), as_usage_error("llama", "check it"):
        raise UsageError("--model: refused")
