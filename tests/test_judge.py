"""bench/as_a_user.py, which judges scaled tables with code of its own, and bench/eager_causes.py."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from bench import as_a_user
from bench.as_a_user import Rows, balanced_experts, buffers, judge, without_masks
from llm_profile.store.files import read_table
from llm_profile.store.paths import TablePaths
from llm_profile.sweep import Sweep, SweepPoint
from llm_profile.validation.estimate import Estimate
from llm_profile.validation.scripting import apply_scaling_to_latency_csv
from llm_profile.validation.validate import fit_and_judge
from tests import tiny
from tests.fake_reality import FakeReality, hand_table, make_table, write_table

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 300
"""Of a command. It takes ten seconds on a machine that does nothing else."""


def command(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script in a process of its own."""
    done = subprocess.run(
        [sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode in (0, 4), done.stderr  # 4: the machine is busy
    return done


def test_the_judge_imports_nothing_of_ours() -> None:
    tree = ast.parse((ROOT / "bench" / "as_a_user.py").read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    ours = {"llm_profile", "bench", "tests", "run_profile", "validation", ""}
    assert "torch" in modules and not [name for name in modules if name.partition(".")[0] in ours]


# ---- sums of rows


def rows_of(csv: Path) -> Rows:
    return Rows(csv, json.loads(TablePaths.beside(csv).meta.read_bytes()))


def assert_sums_agree(csv: Path, lens: list[int], values_of: Path | None = None) -> None:
    """The sums of the judge are those of validation, but that each is of whole nanoseconds.

    values_of: the table whose latency(ns) the judge should use, where it is another column of its own.
    """
    rows, estimate = rows_of(csv), Estimate.of(read_table(values_of or csv))
    for length in lens:
        prompt, step = float(estimate.prefill_ns(length)), float(estimate.decode_ns(length))
        assert rows.step_ns(length, 0) == pytest.approx(prompt, rel=1e-9, abs=1e-3), length
        assert rows.step_ns(1, length) == pytest.approx(step, rel=1e-9, abs=1e-3), length
    pair = estimate.pair((lens[0], 5))
    assert rows.request_ns((lens[0], 5)) == pytest.approx({"ttft": pair.ttft_ns, "tpot": pair.tpot_ns})


LENS = [1, 2, 7, 8, 9, 63, 64, 100, 255, 256]
PAIRS = [(i, o) for i in (32, 64, 96, 128) for o in (16, 32)]


@pytest.mark.parametrize("step", [1, 7], ids=["every length", "a sparse table"])
@pytest.mark.parametrize("new_column", [False, True])
def test_sums_of_a_scaled_table_are_those_of_validation(tmp_path: Path, step: int, new_column: bool) -> None:
    table = make_table(Sweep(prefill_max=256, decode_max=320, prefill_step=step, decode_step=step))
    csv = write_table(tmp_path, table)
    scaling = fit_and_judge(table, FakeReality(lambda point, _depth: 5e5 + 900 * point.total_len), PAIRS).scaling
    plain = apply_scaling_to_latency_csv(csv, scaling, tmp_path / "plain.csv")
    assert_sums_agree(csv, LENS)
    assert_sums_agree(plain, LENS)
    if new_column:
        both = apply_scaling_to_latency_csv(csv, scaling, tmp_path / "both.csv", add_new_column=True)
        assert_sums_agree(both, LENS, values_of=plain)


def test_a_prompt_pays_the_head_for_all_of_its_tokens_where_the_model_does(tmp_path: Path) -> None:
    sums = []
    for keeps in (True, False):
        table = make_table(Sweep(prefill_max=8, decode_max=8))
        table.meta["runs"][0]["logits_to_keep"] = keeps
        csv = write_table(tmp_path / str(keeps), table)
        assert_sums_agree(csv, [1, 3, 8])
        sums.append(rows_of(csv).step_ns(8, 0))
    assert sums[1] - sums[0] == 7 * 60, "the head of a token more takes 60 ns"


BY_HAND = [SweepPoint(1, 0), SweepPoint(4, 0), SweepPoint(1, 1), SweepPoint(1, 5)]


def test_a_request_by_hand(tmp_path: Path) -> None:
    rows = rows_of(write_table(tmp_path, hand_table(BY_HAND)))
    assert rows.step_ns(4, 0) == 400 + 2 * 40 + 7, "the head sees one token"
    assert rows.step_ns(2, 0) == pytest.approx(120 + (480 - 120) / 3 + 7)
    assert rows.step_ns(1, 2) == 100 + 2 * 12 + 7
    steps = [100 + 2 * (10 + k) + 7 for k in (2, 3, 4)]
    assert rows.request_ns((2, 4)) == {"ttft": rows.step_ns(2, 0), "tpot": sum(steps) / 3}


def test_a_judgement_by_hand(tmp_path: Path) -> None:
    """The table says 487 for a prompt of 4, 131 and 133 for steps after 2; processes are held by their medians."""
    rows, meta = rows_of(write_table(tmp_path, hand_table(BY_HAND))), {"model": "m", "hardware": "h"}
    of_processes = [
        [{"ttft": [500, 900, 400], "tpot": [100, 100, 190]}],
        [{"ttft": [450, 450, 460], "tpot": [132, 132, 132]}],
        [{"ttft": [550, 700, 550], "tpot": [110, 200, 130]}],
    ]
    result = judge(meta, rows, [(4, 2)], of_processes)
    prompt, step = result["pairs"]
    assert (prompt["real_ns"], prompt["table_ns"]) == (500, 487)
    assert prompt["error"] == pytest.approx(487 / 500 - 1)
    assert prompt["spread_between_processes"] == pytest.approx((550 - 450) / 500)
    assert (step["real_ns"], step["table_ns"]) == (130, 135)
    assert step["spread_between_processes"] == pytest.approx((132 - 100) / 130)
    assert result["summary"]["ttft"]["worst_error"] == pytest.approx(13 / 500)
    twice = judge(meta, rows, [(4, 2), (1, 2)], [[of, of] for (of,) in of_processes])["summary"]["ttft"]
    assert twice["mean_error"] == pytest.approx((13 / 500 + (500 - 127) / 500) / 2)
    assert twice["worst_error"] == pytest.approx(373 / 500)


@pytest.mark.parametrize("pair", ["0x4", "4x1", "4", "x", "4x4x4", "-1x3"])
def test_pairs_that_are_none(pair: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        as_a_user.main(["--csv", str(tmp_path / "x.csv"), f"--pairs={pair}"])
    assert "invalid pair_of value" in capsys.readouterr().err


# ---- what it runs in CUDA graphs, here without them


def tiny_model(name: str, **fields: Any) -> nn.Module:
    """All blocks of a tiny model as transformers makes it, with weights that differ."""
    config = {**tiny.CONFIGS[name], **fields}
    torch.manual_seed(0)
    made: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    return made.eval()


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral", "phimoe"])
@torch.no_grad()
def test_buffers_and_no_masks_change_no_logits(name: str) -> None:
    """A prompt, a step behind it, and the same again over what the buffers hold."""
    model = tiny_model(name)
    ids, positions = torch.randint(256, (1, 12)), torch.arange(12)[None]
    whole = model(input_ids=ids).logits
    cache = buffers(model, 12)
    with without_masks(model):
        for start, end in ((0, 8), (8, 9), (9, 12), (0, 8), (8, 9)):
            if end - start in (1, end):  # what graphs are captured of: a prompt, or one token
                cache.length = start
                given = {"input_ids": ids[:, start:end], "position_ids": positions[:, start:end]}
                logits = model(**given, past_key_values=cache, logits_to_keep=1).logits
                torch.testing.assert_close(logits[:, -1], whole[:, end - 1], atol=1e-5, rtol=1e-5)
            assert cache.get_seq_length() == cache.length
    torch.testing.assert_close(model(input_ids=ids).logits, whole)


def test_masks_are_made_again_afterwards() -> None:
    model = tiny_model("llama")
    module = sys.modules[type(model).__module__]
    before = {name: function for name, function in vars(module).items() if name.startswith("create_")}
    assert before
    with without_masks(model):
        assert all(getattr(module, name)() is None for name in before)
    assert {name: getattr(module, name) for name in before} == before


@pytest.mark.parametrize("name", ["mixtral", "phimoe"])
@pytest.mark.parametrize("tokens", [1, 5, 16])
@torch.no_grad()
def test_experts_get_equally_many_tokens(name: str, tokens: int) -> None:
    model = tiny_model(name)
    experts = [module for module in model.modules() if any(p.ndim == 3 for p in module.parameters(recurse=False))]
    assert len(experts) == 4
    chosen: list[torch.Tensor] = []

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        chosen.extend(value for value in given if isinstance(value, torch.Tensor) and not value.is_floating_point())

    def counts() -> list[list[int]]:
        chosen.clear()
        handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in experts]
        model(input_ids=torch.randint(256, (1, tokens)))
        for handle in handles:
            handle.remove()
        return [torch.bincount(indices.flatten(), minlength=4).tolist() for indices in chosen]

    routed = counts()
    with balanced_experts(model, {"conditions": {"routing": "balanced"}}):
        balanced = counts()
    assert len(balanced) == 4
    assert all(sum(of) == sum(routed[0]) and max(of) - min(of) <= 1 for of in balanced), balanced
    with balanced_experts(model, {"conditions": {"routing": "model"}}):
        assert not any(module._forward_pre_hooks for module in experts), "the router chooses"


@pytest.mark.parametrize(("named", "allowed"), [("math", (False, True)), ("flash", (True, False)), ("torch", None)])
def test_kernels_are_those_of_the_table(named: str, allowed: tuple[bool, bool] | None) -> None:
    def now() -> tuple[bool, bool]:
        return torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()

    before = now()
    with as_a_user.kernels_of({"conditions": {"sdpa_backend": named}}):
        assert now() == (allowed or before)
    assert now() == before


# ---- fitted and judged in different processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse table of tiny-llama, measured by one process and held against the real model in others."""
    folder = tmp_path_factory.mktemp("judged")
    model = ["--model", "tiny-llama", "--load-format", "dummy", "--device", "cpu", "--output-dir", str(folder)]
    sweep = ["--prefill-max", "64", "--prefill-step", "8", "--decode-max", "96", "--decode-step", "8", "--repeat", "5"]
    grid = ["--scaling-input-min", "16", "--scaling-input-max", "64", "--scaling-input-step", "16"]
    grid += ["--scaling-output-min", "8", "--scaling-output-max", "24", "--scaling-output-step", "8"]
    scaling = ["--scaling-repeat", "3", "--scaling-processes", "2", "--scaling-tolerance", "60"]
    command("run_profile.py", *model, *sweep, *grid, *scaling)
    return folder / "CPU"


LOADED = 3.0
"""How much slower a process with two others beside it may be than one alone, on a machine of two cores."""


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_the_judge_agrees_with_a_table_that_other_processes_made(folder: Path) -> None:
    csv, found = folder / "tiny-llama-scaled.csv", folder / "judged.json"
    pairs = ["--pairs", "11x5", "29x9", "53x17"]
    few = ["--processes", "2", "--repeat", "3", "--device", "cpu", "--json", str(found)]
    done = command("bench/as_a_user.py", "--csv", str(csv), *pairs, *few)
    result = json.loads(found.read_bytes())
    assert len(result["runs"]) == 2 and [len(run) for run in result["runs"]] == [3, 3]
    assert all(len(of[quantity]) == 3 for run in result["runs"] for of in run for quantity in ("ttft", "tpot"))
    assert [(of["pair"], of["quantity"]) for of in result["pairs"]] == [
        (pair, quantity) for pair in ([11, 5], [29, 9], [53, 17]) for quantity in ("ttft", "tpot")
    ]
    told = json.loads((folder / "tiny-llama.validation.json").read_bytes())
    noise = {name: told["spread"][name] + told["spread_between_processes"][name] for name in ("ttft", "tpot")}
    for of in result["pairs"]:
        assert 1e5 < of["real_ns"] < 1e10, "nanoseconds"
        # the machine may get other work between the sweep and the judge; the sums themselves are checked below
        factor = max(LOADED, 1 + noise[of["quantity"]] + of["spread_between_processes"])
        assert 1 / factor < of["table_ns"] / of["real_ns"] < factor, (of, noise)
    assert "ttft: error" in done.stdout and "tpot: error" in done.stdout
    assert_sums_agree(csv, [1, 11, 16, 29, 53, 64])


@pytest.mark.timeout(TIMEOUT_S)
def test_causes_are_timed_by_turns(tmp_path: Path) -> None:
    found = tmp_path / "causes.json"
    few = ["--rounds", "2", "--model", "tiny-llama", "--layers", "2", "--device", "cpu", "--json", str(found)]
    done = command("bench/eager_causes.py", *few, "--causes", "objects", "frozen", "in place")
    result = json.loads(found.read_bytes())
    names = ["fresh", "fresh again", "objects", "frozen", "in place"]
    assert list(result["causes"]) == names and [list(of) for of in result["rounds"]] == [names, names]
    quantities = {"prompt_ms", "step_ms", "launch_us"}
    for name, of in result["causes"].items():
        assert {*of} == quantities
        for what, quartiles in of.items():
            ratios = [
                found[name][what] / ((found["fresh"][what] + found["fresh again"][what]) / 2)
                for found in result["rounds"]
            ]
            assert quartiles["median"] == pytest.approx(sum(ratios) / 2)
    assert all(result["fresh"][what] > 0 for what in quantities - {"step_ms"})
    assert [line.partition(":")[0].strip() for line in done.stdout.splitlines()] == [*names, "fresh"]
