"""The real model on the CPU: `generate` token by token, as a plain script calls it."""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import run_profile
from llm_profile.errors import UsageError
from llm_profile.measurement import StoppingRule
from llm_profile.models.building import ModelOptions, dummy_model, first_blocks, make_config, meta_model
from llm_profile.passes.cache import InPlaceCache
from llm_profile.points import SweepPoint
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Sweep
from llm_profile.timing.provenance import device_conditions
from llm_profile.validation import reality
from llm_profile.validation.estimate import model_depth
from llm_profile.validation.processes import ProcessReality
from llm_profile.validation.profiled import Profiled
from llm_profile.validation.reality import BATCHED_STEPS, REALITIES, EagerSteps
from llm_profile.validation.steps import MeasuredSteps, StepTimes
from llm_profile.validation.worker import Worker
from tests import tiny
from tests.test_architectures import write_model
from tests.worker_here import WorkerHere, worker_here

__all__ = ["worker_here"]  # a fixture

CACHES = ("cache", "past_key_values", "cache_params")
"""Arguments by which models take the caches of transformers."""


def plain_model(fields: Mapping[str, Any], depth: int) -> nn.Module:
    """The first blocks of a model with random weights, not patched."""
    config = make_config(dict(fields))
    options = ModelOptions(depth, "cpu", "float32", each_kind=False)
    return dummy_model(config, options, first_blocks(meta_model(config), depth))


@pytest.fixture
def eager() -> Iterator[Callable[[str], EagerSteps]]:
    """Opens tiny models, and closes them at the end."""
    opened: list[EagerSteps] = []

    def open_tiny(name: str) -> EagerSteps:
        opened.append(EagerSteps(plain_model(tiny.CONFIGS[name], 4)))
        return opened[-1]

    yield open_tiny
    for one in opened:
        one.close()


class Passes:
    """Notes every call of a model: its cache; and where attention fills it, tokens of the pass and in the cache."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: list[tuple[int, int]] = []
        self.caches: list[Any] = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _model: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
        self.caches.append(cache)
        with suppress(AttributeError, ValueError):  # states have no length
            self.seen.append((kwargs["input_ids"].shape[1], cache.get_seq_length()))  # type: ignore[union-attr]


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_every_family_runs_exactly_the_steps_asked_for(eager: Any, name: str) -> None:
    """Cache lengths are those of the real passes, seen where the model is called."""
    steps = eager(name)
    passes = Passes(steps.model)
    steps.prepare([3, 7], [[4, 5, 6], [9]])
    warmed, passes.seen[:] = sorted(passes.seen), []
    rounds = [list(steps.round()) for _ in range(2)]
    expected = sorted([(3, 0), (7, 0), (4, 0), (1, 4), (1, 5), (1, 6), (9, 0), (1, 9)])
    assert warmed == expected, "each length runs once before it is timed"
    assert sorted(passes.seen) == sorted(2 * expected)
    points = [SweepPoint(3, 0), SweepPoint(7, 0), *(SweepPoint(1, kv_len) for kv_len in (4, 5, 6, 9))]
    for one in rounds:
        assert sorted(point for point, _wall_ns in one) == sorted(points)
        assert all(wall_ns > 0 for _point, wall_ns in one)


def test_generate_is_called_as_a_script_calls_it(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedily, with an attention mask and no cache: it makes its own. Only a clock is handed in besides."""
    steps = eager("llama")
    asked: list[tuple[torch.Tensor, dict[str, Any]]] = []
    generate = steps.model.generate

    def noting(ids: torch.Tensor, **kwargs: Any) -> Any:
        asked.append((ids, kwargs))
        return generate(ids, **kwargs)

    monkeypatch.setattr(steps.model, "generate", noting)
    passes = Passes(steps.model)
    steps.prepare([5], [[4, 5]])
    for ids, kwargs in asked:
        assert {*kwargs} == {"attention_mask", "max_new_tokens", "do_sample", "pad_token_id", "stopping_criteria"}
        assert torch.equal(kwargs["attention_mask"], torch.ones_like(ids)) and kwargs["do_sample"] is False
        assert ids.unique().numel() > 1, "random tokens"
    assert sorted((ids.shape[1], kwargs["max_new_tokens"]) for ids, kwargs in asked) == [(4, 3), (5, 1)]
    assert {type(cache) for cache in passes.caches} == {transformers.DynamicCache}
    assert len({id(cache) for cache in passes.caches}) == 2, "one of its own for each call"


def test_tokens_are_those_of_a_plain_script(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, loaded by transformers alone, say the same: nothing of the profile is in the model."""
    steps = eager("gemma3")
    ours: list[torch.Tensor] = []
    generate = steps.model.generate

    def noting(ids: torch.Tensor, **kwargs: Any) -> Any:
        ours.append(generate(ids, **kwargs))
        return ours[-1]

    monkeypatch.setattr(steps.model, "generate", noting)
    steps.prepare([], [range(6, 14)])
    fields = dict(tiny.CONFIGS["gemma3"])
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).eval()
    theirs.load_state_dict(steps.model.state_dict())
    theirs.generation_config.eos_token_id = None
    ids = ours[0][:, :6]
    assert torch.equal(ours[0], theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9))
    patched = [(type(module), name) for module in steps.model.modules() for name in vars(module) if name == "forward"]
    assert not patched and not any(module._forward_pre_hooks for module in steps.model.modules())


def test_what_torch_chooses_is_as_in_a_script_unless_the_user_named_it() -> None:
    names = ("flash_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled", "cudnn_sdp_enabled")

    def allowed() -> list[bool]:
        return [getattr(torch.backends.cuda, name)() for name in names]

    model, before = plain_model(tiny.CONFIGS["llama"], 1), allowed()
    for named, expected in (("auto", before), ("torch", before), ("math", [False, False, True, False])):
        steps = EagerSteps(model, named)
        assert allowed() == expected, named
        steps.close()
        assert allowed() == before


def test_a_token_that_means_the_end_does_not_end_it(eager: Any) -> None:
    """The head is made to say token 2 always, which configurations like this one's call the end."""
    steps = eager("llama")
    assert steps.model.config.eos_token_id == 2
    bias = torch.nn.functional.one_hot(torch.tensor(2), 256) * 1e4
    steps.model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits + bias)
    steps.prepare([], [range(4, 20)])
    assert len(list(steps.round())) == 16


def test_a_run_that_is_cut_short_is_a_bug(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = eager("llama")
    generate = steps.model.generate

    def stops_early(ids: torch.Tensor, max_new_tokens: int, **kwargs: Any) -> Any:
        return generate(ids, max_new_tokens=max_new_tokens - 1, **kwargs)

    monkeypatch.setattr(steps.model, "generate", stops_early)
    with pytest.raises(RuntimeError, match="2 tokens where 3 were asked for"):
        steps.prepare([], [[4, 5]])


class Clock:
    """Stands in for `_generate`: says so many nanoseconds as were called for before."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self._ticks = itertools.count()

    def __call__(self, input_len: int, tokens: int, batch: int) -> list[int]:
        self.asked.append((input_len, tokens, batch))
        return [1000 + next(self._ticks)] * tokens


def process_times(steps: EagerSteps, input_lens: Sequence[int], windows: Sequence[Any], repeat: int) -> list[StepTimes]:
    """Through the Reality that validation has."""

    class Opened(WorkerHere):
        def __init__(self) -> None:
            super().__init__()
            self.worker.open = self.worker.check = lambda *_: []  # type: ignore[method-assign, assignment]
            self.worker._steps = steps

    timed = ProcessReality("eager", Profiled({}, {}, 0, False), 1, "cpu", start=Opened)
    return list(timed.steps(input_lens, windows, repeat))


def test_repeats_are_rounds_over_all_lengths(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the spread is that of runs apart in time; each length is warmed before, and their order is mixed."""
    steps, clock = eager("llama"), Clock()
    monkeypatch.setattr(steps, "_generate", clock)
    lens = list(range(1, 21))
    times = {step.point.input_len: step.wall_ns for step in process_times(steps, lens, [], 3)}
    order = [input_len for input_len, _tokens, _batch in clock.asked]
    assert order[:20] == order[20:40] == order[40:60] == order[60:] and len(order) == 80
    assert sorted(order[:20]) == lens and order[:20] != lens
    place = order.index
    assert times == {n: tuple(1000 + place(n) + 20 * run for run in (1, 2, 3)) for n in lens}, "the first is not timed"
    measured = MeasuredSteps.of({SweepPoint(n, 0): walls for n, walls in times.items()})
    assert measured.spread((3, 1))["ttft"] == pytest.approx(40 / times[3][1])


def test_prompts_and_decode_steps_are_mixed(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is quicker with a prompt behind another prompt than behind decode steps."""
    steps, clock = eager("llama"), Clock()
    monkeypatch.setattr(steps, "_generate", clock)
    steps.prepare(range(1, 21), [(n, n + 1) for n in range(30, 70, 2)])
    are_prompts = [tokens == 1 for _input_len, tokens, _batch in clock.asked]
    assert 10 < sum(before != after for before, after in itertools.pairwise(are_prompts)) < 30


def scarce(steps: EagerSteps, monkeypatch: pytest.MonkeyPatch, most: int, batches: int = 9) -> None:
    """Memory is made to end at so many tokens, or sequences."""
    generate = steps._generate

    def short(input_len: int, tokens: int, batch: int) -> list[int]:
        if input_len + tokens > most or batch > batches:
            raise torch.OutOfMemoryError("made up")
        return generate(input_len, tokens, batch)

    monkeypatch.setattr(steps, "_generate", short)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def test_lengths_without_memory_are_left_out(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = eager("llama")
    scarce(steps, monkeypatch, 8)
    steps.prepare([4, 8, 6], [[2, 3], [9]])
    found = sorted(point for point, _wall_ns in steps.round())
    assert found == [SweepPoint(1, 2), SweepPoint(1, 3), SweepPoint(4, 0), SweepPoint(6, 0)]
    scarce(steps, monkeypatch, 6)
    assert sorted(point for point, _ in steps.round()) == found[:3], "as long as it fitted before"


def test_a_step_that_fits_no_more_in_a_round_is_left_out(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = eager("llama")
    rounds, round_ = itertools.count(), steps.round

    def scarcer() -> Any:
        if next(rounds) == 1:
            scarce(steps, monkeypatch, 5)
        return round_()

    monkeypatch.setattr(steps, "round", scarcer)
    times = process_times(steps, [3, 6], [[2, 3]], 3)
    assert {step.point: len(step.wall_ns) for step in times} == {
        SweepPoint(3, 0): 3,
        SweepPoint(1, 2): 3,
        SweepPoint(1, 3): 3,
    }


def test_batched_steps_have_sequences_of_their_own(eager: Any) -> None:
    steps = eager("phimoe")
    points = [SweepPoint(1, 6, 1), SweepPoint(1, 6, 4)]
    sizes: list[tuple[int, ...]] = []
    steps.model.register_forward_pre_hook(
        lambda _model, _args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    found = list(steps.batched(points, repeat=2))
    assert [point for point, _times in found] == points
    assert all(len(times) == 2 and min(times) > 0 for _point, times in found)
    run = [(6,), *[(1,)] * BATCHED_STEPS]
    assert sizes == [(batch, *tokens) for batch in (1, 4) for _ in range(3) for tokens in run], "a run warms"


def test_a_batched_step_is_the_mean_of_some(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = eager("llama")
    monkeypatch.setattr(steps, "_generate", lambda input_len, tokens, batch: [99, *range(tokens - 1)])
    ((_point, times),) = steps.batched([SweepPoint(1, 6, 4)], repeat=1)
    assert times == (round(sum(range(BATCHED_STEPS)) / BATCHED_STEPS),)


def test_batches_without_memory_are_left_out(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = eager("llama")
    scarce(steps, monkeypatch, 100, batches=2)
    points = [SweepPoint(1, 6, sequences) for sequences in (1, 4, 2)]
    assert [point.batch for point, _times in steps.batched(points, repeat=1)] == [1, 2]


# ---- the model of a table, opened


def profiled_table(folder: Path, name: str, **options: Any) -> LatencyTable:
    """A small table of a tiny model, measured on this CPU."""
    from llm_profile.cli.planning import model_record
    from llm_profile.models.hub import ModelSource
    from llm_profile.timing.backends.cpu_wall import CpuWallBackend
    from tests.table_samples import paths_in, writer

    backend = CpuWallBackend(tiny.subject(name, num_layers=2, **options))
    points = Sweep("both", 6, 6).points()
    with writer(folder, points, conditions=backend.conditions(), kinds=backend.kinds, clock="cpu-wall") as table:
        for result in backend.sample(points, StoppingRule(2, 0.0), 0):
            table.add(result)
        table.table.meta.update(model_record(ModelSource("org/tiny", tiny.CONFIGS[name], "table")), block_rows={})
        table.finish()
    backend.close()
    return read_table(paths_in(folder).csv)


def test_the_model_of_a_table_is_opened_under_its_conditions(tmp_path: Path) -> None:
    known = profiled_table(tmp_path, "opt", sdpa_backend="math")
    profiled = Profiled.of(known)
    for depth in (1, model_depth(known)):
        worker = Worker()
        assert worker.check(known.meta["conditions"], "cpu", 1) == []
        worker.open("eager", profiled, depth, "cpu", None, False)
        steps = worker._steps
        try:
            config = steps.model.config
            assert len(steps.model.model.decoder.layers) == depth and str(steps.model.dtype) == "torch.float32"
            assert config._attn_implementation == known.meta["conditions"]["attn_implementation"]
            assert torch.backends.cuda.math_sdp_enabled() and not torch.backends.cuda.flash_sdp_enabled()
            worker.prepare([7], [[6]])  # as long as the table's longest pass
            assert sorted(point for point, _wall_ns in worker.round()) == [SweepPoint(1, 6), SweepPoint(7, 0)]
        finally:
            steps.close()
    with pytest.raises(UsageError, match="--scaling-runtime cuda-graph: not on cpu"):
        Worker().open("cuda-graph", profiled, 1, "cpu", None, False)


def test_what_another_process_has_to_know_of_a_table() -> None:
    runs: list[dict[str, Any]] = [{}, {"slow_path": {}}]
    table = LatencyTable("H200", "m", {"runs": runs, "conditions": {"dtype": "float16"}})
    table.records = dict.fromkeys([SweepPoint(6, 0), SweepPoint(1, 7)])  # type: ignore[arg-type]
    assert Profiled.of(table) == Profiled(table.meta, table.conditions, longest=8, allow_slow_path=False)
    for allowed in ({"slow_path": {"attn": "why"}}, {"allow_slow_path": True}):
        runs[0] = allowed
        assert Profiled.of(table).allow_slow_path


@pytest.mark.parametrize(
    ("field", "then", "named"),
    [
        ("cpu_threads", 999, "cpu_threads is 999 there and"),
        ("torch", "1.0.0", 'torch is "1.0.0" there and'),
        ("transformers", "4.0.0", 'transformers is "4.0.0" there and'),
        ("gpu", "NVIDIA H200", 'gpu is "NVIDIA H200" there and null now'),
        ("cpu", "another", 'cpu is "another" there and'),
        ("cpu_threads", None, "cpu_threads is not recorded there and"),
    ],
)
def test_a_table_of_another_machine_is_refused_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, field: str, then: object, named: str
) -> None:
    monkeypatch.setitem(REALITIES, "eager", lambda *_: pytest.fail("loaded"))
    conditions = device_conditions(torch.device("cpu")) | {"dtype": "float16", field: then}
    if then is None:
        del conditions[field]
    timed = ProcessReality("eager", Profiled({}, conditions, 8, False), 1, "cpu", start=WorkerHere)
    with pytest.raises(UsageError, match="--csv: the table was measured under other conditions: " + named) as refusal:
        list(timed.steps([1], [], 1))
    assert "\n" not in str(refusal.value) and refusal.value.args[0].count(" there and ") == 1


def test_every_runtime_of_the_command_is_there() -> None:
    from llm_profile.cli.scaling_options import RUNTIMES
    from llm_profile.validation.processes import PROCESSES

    assert tuple(reality.REALITIES) == tuple(PROCESSES) == RUNTIMES


@pytest.mark.parametrize(
    ("model_type", "depth"),
    [
        ("gemma3_text", 6),  # sliding and full attention
        ("mamba", 2),  # a cache of another name, of states alone
        ("bamba", 3),  # states, and attention in another block
        ("jamba", 5),  # the same, but that the first blocks have states alone
        ("falcon_h1", 2),  # both in each block
        ("deepseek_v3", 3),  # latent attention
        ("minimax", 4),  # a cache of a class of its own
        ("xlnet", 2),  # tensors
    ],
)
def test_generate_makes_the_cache(model_type: str, depth: int, tmp_path: Path) -> None:
    steps = EagerSteps(plain_model(write_model(model_type, tmp_path / model_type), depth))
    passes = Passes(steps.model)
    steps.prepare([3, 7], [[4, 5], [9]])
    found = sorted(point for point, _wall_ns in steps.round())
    assert found == [*(SweepPoint(1, n) for n in (4, 5, 9)), SweepPoint(3, 0), SweepPoint(7, 0)]
    assert len(passes.caches) == 2 * (2 + 3 + 2)
    assert not any(isinstance(cache, InPlaceCache) for cache in passes.caches)
    steps.close()


@pytest.mark.parametrize(
    "model_type",
    [
        "musicgen",  # takes the tokens of several codebooks, in a form that its `generate` makes itself
        "jamba",  # its first blocks have no attention, whose cache would say how long it is
    ],
)
def test_a_model_that_generate_cannot_run_is_refused_in_one_line(model_type: str, tmp_path: Path) -> None:
    steps = EagerSteps(plain_model(write_model(model_type, tmp_path / model_type), 2))
    with pytest.raises(UsageError) as refused:
        steps.prepare([4], [[5, 6]])
    text = str(refused.value)
    assert text.startswith(f"--scaling-runtime eager: {model_type.capitalize()}ForCausalLM does not run in generate: ")
    assert text.endswith("; use --scaling-runtime cuda-graph, on a GPU") and "\n" not in text


@pytest.mark.parametrize("model_type", ["mamba", "xlstm"])  # the second loops over tokens, which 12 do not show
def test_the_whole_command_validates_them(
    model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], worker_here: list[WorkerHere]
) -> None:
    write_model(model_type, tmp_path / model_type)
    sweep = "--prefill-max 12 --prefill-step 4 --decode-max 16 --repeat 2 --precision 0 --warmup 1"
    lengths = "--scaling-input-min 4 --scaling-input-max 12 --scaling-input-step 4 --scaling-output-min 2"
    lengths += " --scaling-output-max 4 --scaling-output-step 2 --scaling-repeat 1 --scaling-tolerance 1000000"
    options = "--device cpu --load-format dummy --allow-slow-path --scaling-runtime eager --scaling-processes 2"
    model = ["--model", str(tmp_path / model_type), "--output-dir", str(tmp_path), "--hardware", "CPU"]
    assert run_profile.main([*model, *sweep.split(), *lengths.split(), *options.split()]) == 0, capsys.readouterr().err
    assert (tmp_path / "CPU" / f"{model_type}-scaled.csv").exists() and len(worker_here) == 2
    told = json.loads((tmp_path / "CPU" / f"{model_type}.validation.json").read_bytes())
    assert told["processes"] == 2 and told["spread_between_processes"]["total"] > 0
