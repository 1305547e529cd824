"""The real model on the CPU: `generate` token by token, with the profile's model, cache and options."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import run_profile
from llm_profile.errors import UsageError
from llm_profile.measurement import StoppingRule
from llm_profile.models.building import ModelOptions
from llm_profile.passes.cache import InPlaceCache
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.runner import PassRunner
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable
from llm_profile.sweep import Sweep
from llm_profile.validation import reality
from llm_profile.validation.estimate import model_depth
from llm_profile.validation.reality import EagerReality, open_reality
from llm_profile.validation.steps import MeasuredSteps
from tests import tiny
from tests.test_architectures import write_model


@pytest.fixture
def eager() -> Iterator[Callable[[str], EagerReality]]:
    """Opens tiny models, and closes them at the end."""
    opened: list[EagerReality] = []

    def open_tiny(name: str, max_total: int = 32) -> EagerReality:
        opened.append(EagerReality(tiny.subject(name, num_layers=4, max_total=max_total)))
        return opened[-1]

    yield open_tiny
    for one in opened:
        one.close()


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_every_family_runs_exactly_the_steps_asked_for(eager: Any, name: str) -> None:
    """Cache lengths are those of the real passes, seen where the model is called."""
    real = eager(name)
    model = real._subject.model
    forward, seen = model.forward, []

    def noting(*args: Any, **kwargs: Any) -> Any:
        seen.append((kwargs["input_ids"].shape[1], kwargs[real._subject.runner.cache_argument].get_seq_length()))
        return forward(*args, **kwargs)

    model.forward = noting
    try:
        prefill = list(real.prefill([3, 7], repeat=2))
        ran_in_prefill, seen[:] = list(seen), []
        decode = list(real.decode([[4, 5, 6], [9]], repeat=2))
    finally:
        del model.forward
    assert [(step.point, len(step.wall_ns)) for step in prefill] == [(SweepPoint(3, 0), 2), (SweepPoint(7, 0), 2)]
    assert [step.point for step in decode] == [SweepPoint(1, kv_len) for kv_len in (4, 5, 6, 9)]
    assert all(wall_ns > 0 for step in prefill + decode for wall_ns in step.wall_ns)
    assert sorted(ran_in_prefill) == sorted(3 * [(3, 0), (7, 0)]), "warmed once, timed twice, one token each"
    assert sorted(seen) == sorted(3 * [(4, 0), (1, 4), (1, 5), (1, 6), (9, 0), (1, 9)])


def test_a_token_that_means_the_end_does_not_end_it(eager: Any) -> None:
    """The head is made to say token 2 always, which configurations like this one's call the end."""
    real = eager("llama")
    model = real._subject.model
    assert model.config.eos_token_id == 2
    bias = torch.nn.functional.one_hot(torch.tensor(2), 256) * 1e4
    handle = model.lm_head.register_forward_hook(lambda _module, _inputs, logits: logits + bias)
    try:
        assert len(list(real.decode([range(4, 20)], repeat=1))) == 16
    finally:
        handle.remove()


def test_a_run_that_is_cut_short_is_a_bug(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = eager("llama")
    monkeypatch.setattr(real._subject.model, "generate", lambda *args, **kwargs: None)
    with pytest.raises(RuntimeError, match="0 tokens where 1 were asked for"):
        list(real.prefill([4], repeat=1))


def test_repeats_are_rounds_over_all_lengths(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the spread is that of runs apart in time, and each length is warmed before."""
    real = eager("llama")
    asked: list[int] = []
    clock = itertools.count()

    def timed(_runner: PassRunner, input_len: int, tokens: int) -> list[int]:
        asked.append(input_len)
        return [next(clock)] * tokens

    monkeypatch.setattr(real, "_generate", timed)
    steps = list(real.prefill([3, 5], repeat=3))
    assert asked == [3, 5] * 4
    assert [step.wall_ns for step in steps] == [(2, 4, 6), (3, 5, 7)]
    measured = MeasuredSteps.of({step.point: step.wall_ns for step in steps})
    assert measured.spread((3, 1))["ttft"] == pytest.approx((6 - 2) / 4)


def test_lengths_without_memory_are_left_out(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = eager("llama")
    generate = real._generate

    def scarce(runner: PassRunner, input_len: int, tokens: int) -> list[int]:
        if input_len + tokens > 8:
            raise torch.OutOfMemoryError("made up")
        return generate(runner, input_len, tokens)

    monkeypatch.setattr(real, "_generate", scarce)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert [step.point.input_len for step in real.prefill([4, 8, 6], repeat=1)] == [4, 6]
    assert [step.point.kv_len for step in real.decode([[2, 3], [9]], repeat=1)] == [2, 3]


def test_batched_steps_have_sequences_of_their_own(eager: Any) -> None:
    real = eager("phimoe")
    points = [SweepPoint(1, 6, 1), SweepPoint(1, 6, 4)]
    steps = list(real.batched(points, repeat=2))
    assert [step.point for step in steps] == points
    assert all(len(step.wall_ns) == 2 and min(step.wall_ns) > 0 for step in steps)
    assert len(list(real.prefill([4], repeat=1))) == 1, "the runner of one sequence is as before"


def test_batches_without_memory_are_left_out(eager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = eager("llama")
    generate = real._generate

    def scarce(runner: PassRunner, input_len: int, tokens: int) -> list[int]:
        if runner.input_ids.shape[0] > 2:
            raise torch.OutOfMemoryError("made up")
        return generate(runner, input_len, tokens)

    monkeypatch.setattr(real, "_generate", scarce)
    points = [SweepPoint(1, 6, sequences) for sequences in (1, 4, 2)]
    assert [step.point.batch for step in real.batched(points, repeat=1)] == [1, 2]


def test_the_model_of_a_table_is_opened_under_its_conditions(tmp_path: Path) -> None:
    from llm_profile.cli.planning import model_record
    from llm_profile.models.hub import ModelSource
    from llm_profile.timing.backends.cpu_wall import CpuWallBackend
    from tests.table_samples import paths_in, writer

    backend = CpuWallBackend(tiny.subject("opt", num_layers=2, sdpa_backend="math"))
    points = Sweep("both", 6, 6).points()
    with writer(tmp_path, points, conditions=backend.conditions(), kinds=backend.kinds, clock="cpu-wall") as table:
        for result in backend.sample(points, StoppingRule(2, 0.0), 0):
            table.add(result)
        table.table.meta.update(model_record(ModelSource("org/tiny", tiny.CONFIGS["opt"], "table")), block_rows={})
        table.finish()
    profiled = backend.subject.conditions()
    backend.close()
    known = read_table(paths_in(tmp_path).csv)
    for depth in (1, model_depth(known)):
        real = open_reality("eager", known, depth, "cpu", None)
        assert isinstance(real, EagerReality) and real.notices == []
        try:
            assert real._subject.conditions() == profiled | {"num_layers": depth}
            longest = [
                *real.prefill([7], repeat=1),
                *real.decode([[6]], repeat=1),
            ]  # as long as the table's longest pass
            assert [step.point for step in longest] == [SweepPoint(7, 0), SweepPoint(1, 6)]
        finally:
            real.close()
    with pytest.raises(UsageError, match="--scaling-runtime cuda-graph: not on cpu"):
        open_reality("cuda-graph", known, 1, "cpu", None)


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
    monkeypatch.setattr(reality, "profiled_subject", lambda *_: pytest.fail("loaded"))
    conditions = reality.machine_conditions(torch.device("cpu")) | {"dtype": "float16", field: then}
    if then is None:
        del conditions[field]
    known = LatencyTable("CPU", "m", {"clock": "cpu-wall", "conditions": conditions})
    with pytest.raises(UsageError, match="--csv: the table was measured under other conditions: " + named) as refusal:
        open_reality("eager", known, 1, "cpu", None)
    assert "\n" not in str(refusal.value) and refusal.value.args[0].count(" there and ") == 1


def test_every_runtime_of_the_command_is_there() -> None:
    from llm_profile.cli.scaling_options import RUNTIMES

    assert tuple(reality.REALITIES) == RUNTIMES


def first_blocks(model_type: str, folder: Path, depth: int) -> EagerReality:
    fields = write_model(model_type, folder / model_type)
    model = ModelOptions(depth, "cpu", "float32", each_kind=False)
    return EagerReality(Subject(SubjectOptions(fields, model, 20, 20, allow_slow_path=True)))


@pytest.mark.parametrize(
    ("model_type", "depth", "in_place"),
    [
        ("gemma3_text", 6, True),  # sliding and full attention
        ("mamba", 2, True),  # a cache of another name, of states alone
        ("bamba", 3, True),  # states, and attention in another block
        ("jamba", 2, True),  # the same, but that the first blocks have states alone
        ("falcon_h1", 2, True),  # both in each block
        ("deepseek_v3", 3, True),  # latent attention
        ("minimax", 4, False),  # a cache of a class of its own
        ("xlnet", 2, False),  # tensors
    ],
)
def test_generate_runs_with_the_cache_of_the_profile(
    model_type: str, depth: int, in_place: bool, tmp_path: Path
) -> None:
    real = first_blocks(model_type, tmp_path, depth)
    runner = real._subject.runner
    caches: list[Any] = []

    def note(_model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        caches.append(kwargs.get(runner.cache_argument))

    handle = real._subject.model.register_forward_pre_hook(note, with_kwargs=True)
    steps = [*real.prefill([3, 7], repeat=1), *real.decode([[4, 5], [9]], repeat=1)]
    handle.remove()
    assert [step.point for step in steps] == [SweepPoint(3, 0), SweepPoint(7, 0)] + [
        SweepPoint(1, n) for n in (4, 5, 9)
    ]
    assert isinstance(runner.cache, InPlaceCache) == in_place and len(caches) == 2 * (2 + 3 + 2)
    if in_place:
        assert all(cache is runner.cache for cache in caches) and real.notices == []
    else:
        assert not any(isinstance(cache, InPlaceCache) for cache in caches)
        assert real.notices == [reality.OWN_CACHE_NOTICE]
    real.close()


def test_a_model_that_generate_cannot_run_is_refused_in_one_line(tmp_path: Path) -> None:
    """This one takes the tokens of several codebooks, in a form that its `generate` makes itself."""
    real = first_blocks("musicgen", tmp_path, 2)
    with pytest.raises(UsageError) as refused:
        list(real.prefill([4], repeat=1))
    text = str(refused.value)
    assert text.startswith("--scaling-runtime eager: MusicgenForCausalLM does not run in generate: ")
    assert text.endswith("; use --scaling-runtime cuda-graph, on a GPU") and "\n" not in text
    real.close()


@pytest.mark.parametrize("model_type", ["mamba", "xlstm"])  # the second loops over tokens, which 12 do not show
def test_the_whole_command_validates_them(model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(model_type, tmp_path / model_type)
    sweep = "--prefill-max 12 --prefill-step 4 --decode-max 16 --repeat 2 --precision 0 --warmup 1"
    lengths = "--scaling-input-min 4 --scaling-input-max 12 --scaling-input-step 4 --scaling-output-min 2"
    lengths += " --scaling-output-max 4 --scaling-output-step 2 --scaling-repeat 1 --scaling-tolerance 1000000"
    options = "--device cpu --load-format dummy --allow-slow-path --scaling-runtime eager"
    model = ["--model", str(tmp_path / model_type), "--output-dir", str(tmp_path), "--hardware", "CPU"]
    assert run_profile.main([*model, *sweep.split(), *lengths.split(), *options.split()]) == 0, capsys.readouterr().err
    assert (tmp_path / "CPU" / f"{model_type}-scaled.csv").exists()
