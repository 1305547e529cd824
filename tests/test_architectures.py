"""Every type of causal LM that transformers has, as a tiny model with random weights, profiled on the CPU.

`python -m tests.test_architectures` writes docs/supported-models.md. Tests fail when that file is out of date.
"""

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_layers import GradientCheckpointingLayer

import run_profile
from llm_profile.errors import UsageError
from llm_profile.layers.layout import MODEL_OTHER
from llm_profile.layers.probe import is_kernel
from llm_profile.layers.ranges import LayerRanges
from llm_profile.models.blocks import find_kinds, find_stacks, kinds_of
from llm_profile.models.building import UNSUPPORTED, ModelOptions, make_config, meta_model
from llm_profile.models.patches import SCAN_FUNCTION, modelling_functions, patched
from llm_profile.passes.options import SubjectOptions
from llm_profile.passes.subject import Subject
from llm_profile.points import SweepPoint
from llm_profile.store.files import read_table
from llm_profile.store.table import LatencyTable
from tests.shrunken import TYPES, WRITTEN, tiny_config

POINTS = [SweepPoint(1, 0), SweepPoint(5, 0), SweepPoint(9, 0), SweepPoint(1, 1), SweepPoint(1, 5), SweepPoint(1, 9)]
SHOWS_LOOPS = 20
"""Longest prompt that models are opened for, in tokens: long enough that loops over tokens are found."""

SWEEP = ["--prefill-max", "9", "--prefill-step", "4", "--decode-max", "9", "--decode-step", "4"]
QUICK = ["--device", "cpu", "--load-format", "dummy", "--repeat", "2", "--precision", "0", "--warmup", "1"]
QUICK += ["--allow-slow-path"]

CANNOT_BE_BUILT: dict[str, str] = {
    "gemma3n": "needs timm, pillow and torchvision; gemma3n_text needs nothing",
}
"""Type -> why no tiny model of it can be built in these tests."""

EXCEPTIONS: dict[str, str] = {**UNSUPPORTED, **CANNOT_BE_BUILT}
"""Type -> why it is not profiled. All other types are."""

NO_DEFAULT: dict[str, str] = {
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), "no head_dim"),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), "no sizes of its indexer"),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "no text encoder"),
    "cohere_compass_text": "no rotary parameters of full attention",
    "dbrx": "no rope_theta of its attention",
    "dots1": "no number of experts",
    "lfm2_moe": "no layer_types",
    "nemotron": "no number of key and value heads",
    "reformer": "is no decoder",
}
"""Type -> what its configuration class lacks by default, so that no model can be built of it."""

DOCUMENT = Path(__file__).parent.parent / "docs" / "supported-models.md"
LINES = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.count("|") == 6][2:]
"""The lines of the committed table of supported types."""

RELEASE = "5.17"
"""The release of transformers that the table was made with.

With another release, the types in the table are profiled, but their lines are not compared.
"""

OF_RELEASE = transformers.__version__.startswith(f"{RELEASE}.")

SUPPORTED = tuple(
    name for name in TYPES if name not in EXCEPTIONS and (OF_RELEASE or any(f"| {name} |" in line for line in LINES))
)


OUTSIDE = "outside the model"


class RowsOfOperators(TorchDispatchMode):
    """A recorder of ranges that collects in which row each operator of `is_kernel` ran.

    open: rows of the open ranges. rows: all rows seen. kernels: pairs of a row and the name of an operator or scan.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: set[str] = set()
        self.kernels: set[tuple[str, str]] = set()

    def enter(self, row: str) -> None:
        self.rows.add(row)
        self.open.append(row)

    def leave(self) -> None:
        self.open.pop()

    @contextmanager
    def scans_of(self, model: nn.Module) -> Iterator[None]:
        """While open, calls of scan functions are collected too: reference implementations run only small operators."""

        def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def scan(*args: Any, **kwargs: Any) -> Any:
                self.kernels.add((self.open[-1] if self.open else OUTSIDE, name))
                return function(*args, **kwargs)

            return scan

        with ExitStack() as undo:
            for namespace, name, function in modelling_functions(model, SCAN_FUNCTION):
                undo.enter_context(patched(namespace, name, noting(name, function)))
            yield

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_kernel(func):
            self.kernels.add((self.open[-1] if self.open else OUTSIDE, func.name()))
        return func(*args, **(kwargs or {}))


def write_model(model_type: str, folder: Path) -> dict[str, Any]:
    """Make `folder` with the config.json of a tiny model. Returns the fields of the file."""
    folder.mkdir(parents=True)
    if model_type in WRITTEN:
        text = json.dumps(WRITTEN[model_type])
    else:
        config = tiny_config(model_type)
        config.dtype = "float32"
        text = config.to_json_string(use_diff=False)
    (folder / "config.json").write_text(text)
    return dict(json.loads((folder / "config.json").read_text()))


def open_subject(fields: dict[str, Any], num_layers: int = 1) -> Subject:
    model = ModelOptions(num_layers, "cpu", "float32")
    return Subject(SubjectOptions(fields, model, SHOWS_LOOPS, SHOWS_LOOPS + 1, allow_slow_path=True))


OTHER_TOWERS = re.compile("vision|visual|image|audio|depth_decoder")
"""Paths of the parts of composite models that process no text."""

LISTS = ("layer_types", "layers_block_type", "mlp_layer_types", "attention_layers")
"""Lists of a configuration that name each block's type."""

SWITCHES: dict[str, str] = {
    "is_sliding": "attention within a window, by another mask and another cache",
    "use_rope": "queries and keys are rotated",
    "activation_sparsity": "where above 0, all but the largest activations are put out",
    "is_kv_shared_layer": "no keys and values of its own",
    "store_full_length_kv": "leaves keys and values to blocks that share them; where none does, it does nothing",
}
"""Attribute of a module in a block -> how blocks with equal parameters differ where its value differs."""


def counted_kinds(model: Any) -> list[tuple[int, ...]]:
    """The blocks of each kind of a full model, found in another way than `find_kinds` does.

    Blocks are of one kind if their parameters (name, shape, type), their entries in LISTS and their SWITCHES are equal.
    """
    text_config = model.config.get_text_config(decoder=True)
    lists = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.ModuleList) and not OTHER_TOWERS.search(p)]
    stacks = [(p, m) for p, m in lists if isinstance(m[0], GradientCheckpointingLayer)]
    stacks = stacks or [(p, m) for p, m in lists if len(m) == text_config.num_hidden_layers]
    alike: dict[Any, list[int]] = {}
    for path, stack in stacks:
        named = [types for name in LISTS if len(types := getattr(text_config, name, None) or ()) == len(stack)]
        for index, block in enumerate(stack):
            parameters = Counter((name, tuple(p.shape), p.dtype) for name, p in block.named_parameters())
            said = tuple(types[index] for types in named)
            key = (path, frozenset(parameters.items()), said, switched(block, text_config))
            alike.setdefault(key, []).append(index)
    return sorted(map(tuple, alike.values()))


def switched(block: nn.Module, text_config: Any) -> frozenset[tuple[str, bool]]:
    """The SWITCHES that the modules of a block have, each with whether it is on."""
    names = set(SWITCHES) - (set() if getattr(text_config, "num_kv_shared_layers", 0) else {"store_full_length_kv"})
    return frozenset((name, bool(vars(m)[name])) for m in block.modules() for name in names & vars(m).keys())


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_type(model_type: str, tmp_path: Path) -> None:
    fields = write_model(model_type, tmp_path / model_type)
    arguments = ["--model", str(tmp_path / model_type), *SWEEP, *QUICK, "--skip-scaling", "--output-dir", str(tmp_path)]
    assert run_profile.main(arguments) == 0
    (meta_file,) = tmp_path.rglob("*.meta.json")
    meta = json.loads(meta_file.read_text())
    assert sorted(tuple(kind["layers"]) for kind in meta["kinds"]) == counted_kinds(meta_model(make_config(fields)))
    assert all(kind["count"] == len(kind["layers"]) and kind["profiled"] for kind in meta["kinds"])
    check_identity(read_table(meta_file.with_name(f"{model_type}.csv")))
    check_passes(model_type, fields)


@pytest.mark.parametrize("model_type", [name for name in SUPPORTED if name not in NO_DEFAULT])
def test_kinds_of_the_default_model(model_type: str) -> None:
    """With the depth and the pattern of blocks that the configuration class has by default."""
    model = meta_model(make_config({"model_type": model_type}))
    stacks = [stack for stack in find_stacks(model) if not OTHER_TOWERS.search(stack.paths[0])]
    kinds = [kind.layers for stack in stacks for kind in kinds_of(find_kinds(model, stack), ())]
    assert sorted(kinds) == counted_kinds(model)


@pytest.mark.skipif(not OF_RELEASE, reason=f"the list is of transformers {RELEASE}")
@pytest.mark.parametrize("model_type", NO_DEFAULT)
def test_defaults_that_are_left_out_cannot_be_built(model_type: str) -> None:
    with pytest.raises(UsageError):
        meta_model(make_config({"model_type": model_type}))


def check_identity(table: LatencyTable) -> None:
    """Check that rows add up to the pass. Of two passes, nothing is trimmed, so the means must add up as well."""
    assert table.records and not table.missing
    for record in table.records.values():
        assert record.whole_pass.n == 2
        rows_ns = sum(row.measurement.trimmed_mean_ns * row.blocks for row in record.rows.values())
        assert rows_ns == pytest.approx(record.whole_pass.trimmed_mean_ns, rel=1e-9)


def check_passes(model_type: str, fields: dict[str, Any]) -> None:
    """Check that hooks change no output, and that every operator of `is_kernel` runs in the row of a layer."""
    subject = open_subject(fields)
    try:
        check_names(subject)
        for point in POINTS:  # the first pass at a length makes the buffers of the cache
            subject.runner.run(point)
        for point in POINTS:
            plain = logits_of(subject, point)
            recorder = RowsOfOperators()
            with LayerRanges(subject.model, subject.layout, recorder), recorder, recorder.scans_of(subject.model):
                hooked = logits_of(subject, point)
            assert torch.equal(plain, hooked) and torch.isfinite(plain).all()
            assert not recorder.open
            assert {"embedding", "lm_head"} <= recorder.rows
            unnamed = {(row, name) for row, name in recorder.kernels if row.endswith("_other") or row == OUTSIDE}
            assert not unnamed - TABLES, unnamed
        assert not [row for row in subject.slow_path if row.endswith("_other")], "loops over tokens are scans"
        assert not OF_RELEASE or described(model_type, subject) in LINES, "run python -m tests.test_architectures"
    finally:
        subject.close()


def check_names(subject: Subject) -> None:
    """Check that a row is of one place only. The embedding and the head are one place each, with all of their parts."""
    model: Any = subject.model
    parts = {"embedding": model.get_input_embeddings(), "lm_head": model.get_output_embeddings()}
    ends = {id(module): row for row, end in parts.items() for module in end.modules()}
    paths = {module: path for path, module in model.named_modules()}
    places: dict[str, set[tuple[str | None, str]]] = {}
    for site in subject.layout.sites:
        place = ends.get(id(site.module)) or re.sub(r"\.\d+(?=\.|$)", "", paths[site.module])
        places.setdefault(site.row, set()).add((site.kind, place))
    assert not {row: found for row, found in places.items() if len(found) > 1}
    assert {row: places[row] for row in parts} == {row: {(None, row)} for row in parts}


TABLES = {(MODEL_OTHER, "aten::bmm")}
"""The rotary table is a product of positions and frequencies, launched by a module without parameters."""


def logits_of(subject: Subject, point: SweepPoint) -> torch.Tensor:
    torch.manual_seed(0)
    subject.runner.cache.restore()
    logits: torch.Tensor = subject.runner.run(point)[0]
    return logits.clone()


OWN_PAST = "its own, from a prompt"
CACHES = {
    "BufferLayer": "full",
    "SlidingBufferLayer": "sliding",
    "IndexedBufferLayer": "indexed",
    "StateLayer": "states",
    "StateAndBufferLayer": "states and full",
    "StateAndSlidingBufferLayer": "states and sliding",
}


def described(model_type: str, subject: Subject) -> str:
    """The line of a type in the table: kinds of blocks, cache and slow path of the tiny model, rows of its blocks."""
    recorder = RowsOfOperators()
    with LayerRanges(subject.model, subject.layout, recorder):
        for point in POINTS:
            subject.runner.run(point)
    in_blocks = subject.layout.block_rows()
    rows = {row.rpartition(".")[2] for row in recorder.rows if row in in_blocks and not row.endswith("_other")}
    kinds = ", ".join(kind.name for kind in subject.layout.kinds)
    layers = getattr(subject.runner.cache, "layers", None)
    used = [CACHES[type(layer).__name__] for layer in layers or [] if is_used(layer)]
    cache = ", ".join(dict.fromkeys(used)) if layers else OWN_PAST
    slow = ", ".join(dict.fromkeys(subject.slow_path.values()))
    return f"| {model_type} | {kinds} | {cache} | {slow} | {', '.join(sorted(rows))} |"


def is_used(layer: Any) -> bool:
    """Whether a pass wrote keys or states to this layer of a cache."""
    states = getattr(layer, "_past", None)
    return bool(states) or bool(getattr(layer, "is_initialized", False))


def document(lines: list[str]) -> str:
    """The text of docs/supported-models.md. lines: the lines of its table."""
    refused = [f"| {name} | {reason} |" for name, reason in sorted(EXCEPTIONS.items())]
    return "\n".join(
        [
            "# Supported types of models",
            "",
            f"Of the {len(TYPES)} types of causal LMs in transformers {RELEASE}, {len(lines)} are profiled.",
            "Each is built tiny, with random weights, and taken through the whole command on a CPU by",
            "`tests/test_architectures.py`, which writes this file. Kinds of blocks and caches are those of the",
            "tiny configuration; rows are those of its blocks, without `_other` rows. A type with a slow path is",
            "refused without `--allow-slow-path`, unless the packages that it names are there.",
            "",
            "| type | kinds of blocks | cache | slow path | rows of blocks |",
            "|---|---|---|---|---|",
            *lines,
            "",
            "## Not profiled",
            "",
            "| type | reason |",
            "|---|---|",
            *refused,
            "",
        ]
    )


@pytest.mark.skipif(not OF_RELEASE, reason=f"the table is of transformers {RELEASE}")
def test_the_table_has_nothing_else() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(LINES)
    assert [line.split("|")[1].strip() for line in LINES] == list(SUPPORTED)


def test_nearly_all_types_are_supported() -> None:
    assert len(LINES) >= 170 and len(SUPPORTED) >= 170


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(model_type: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert (
        run_profile.main(["--model", str(tmp_path), *SWEEP, *QUICK, "--skip-scaling", "--output-dir", str(tmp_path)])
        == 2
    )
    assert f"{model_type} is not supported: {UNSUPPORTED[model_type]}" in capsys.readouterr().err


def main() -> None:
    """Write docs/supported-models.md."""
    lines = []
    for model_type in SUPPORTED:
        with tempfile.TemporaryDirectory() as scratch:
            subject = open_subject(write_model(model_type, Path(scratch) / model_type))
            lines.append(described(model_type, subject))
            subject.close()
    DOCUMENT.write_text(document(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
