from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_profile.errors import UsageError
from llm_profile.store.paths import TablePaths


def test_model_id_becomes_folders() -> None:
    paths = TablePaths.of(Path("out"), "RTX3090", "meta-llama/Llama-3.1-8B")
    folder = Path("out/RTX3090/meta-llama")
    assert paths.csv == folder / "Llama-3.1-8B.csv"
    assert paths.journal == folder / "Llama-3.1-8B.journal.jsonl"
    assert paths.rows == folder / "Llama-3.1-8B.rows.parquet"
    assert paths.meta == folder / "Llama-3.1-8B.meta.json"
    assert paths.lock == folder / "Llama-3.1-8B.lock"
    assert TablePaths.beside(paths.csv) == paths


BAD_PARTS = ["", ".", "..", "~", "~root", "a\\b", "a\0b", "a\nb", "a\x1bb", " a", "a ", "\u202ea", "\udc80", "x" * 201]


@pytest.mark.parametrize("part", BAD_PARTS)
def test_bad_names_are_refused_with_their_option(part: str) -> None:
    with pytest.raises(UsageError, match="^--hardware "):
        TablePaths.of(Path("out"), part, "model")
    for model in (part, f"{part}/model", f"org/{part}", f"org/{part}/model"):
        with pytest.raises(UsageError, match="^--model-name ") as refusal:
            TablePaths.of(Path("out"), "H200", model)
        assert str(refusal.value).isprintable()


@pytest.mark.parametrize(("hardware", "model"), [("/etc", "m"), ("a/b", "m"), ("H200", "/etc/m"), ("H200", "m/")])
def test_absolute_and_nested_names_are_refused(hardware: str, model: str) -> None:
    with pytest.raises(UsageError):
        TablePaths.of(Path("out"), hardware, model)


names = st.text(st.sampled_from("ab./\\~ \0\n-"), max_size=8) | st.text(max_size=20)


@given(names, names)
def test_no_name_leaves_its_folder(hardware: str, model: str) -> None:
    out = Path("/nonexistent/out")
    try:
        paths = TablePaths.of(out, hardware, model)
    except UsageError:
        return
    for path in (paths.csv, paths.journal, paths.rows, paths.meta, paths.lock):
        assert path.resolve().is_relative_to(out / hardware)
        assert path.resolve() != out / hardware


@pytest.mark.parametrize("name", ["table.txt", "table", ".csv"])
def test_a_table_is_named_csv(name: str) -> None:
    with pytest.raises(UsageError, match="must end in .csv"):
        TablePaths.beside(Path("out") / name)


def linked(output_dir: Path, link: str, target: str) -> None:
    (output_dir / link).parent.mkdir(parents=True, exist_ok=True)
    (output_dir / link).symlink_to(target)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("H200", "../outside"),
        ("H200", "/nowhere/at/all"),
        ("H200/org", "../../outside"),
        *((f"H200/org/model{ending}", "../../../outside/x") for ending in (".csv", ".journal.jsonl", ".lock")),
        *((f"H200/org/model{ending}", "/etc/hostname") for ending in (".rows.parquet", ".meta.json")),
        ("H200", "other"),
    ],
)
def test_a_link_out_of_the_output_folder_is_refused(tmp_path: Path, link: str, target: str) -> None:
    out = tmp_path / "out"
    linked(out, link, target)
    if target == "other":
        linked(out, "other", "../outside")
    with pytest.raises(UsageError, match=r"^--output-dir .* is a link out of it, to /.*; remove the link") as refusal:
        TablePaths.of(out, "H200", "org/model")
    assert "\n" not in str(refusal.value)


def test_links_that_stay_inside_or_lead_to_the_output_folder_are_fine(tmp_path: Path) -> None:
    real = tmp_path / "disk"
    real.mkdir()
    (tmp_path / "out").symlink_to(real)
    linked(real, "H200", "old-name")
    paths = TablePaths.of(tmp_path / "out", "H200", "org/model")
    assert paths.csv.resolve() == real / "old-name" / "org" / "model.csv"


def test_links_in_a_circle_and_names_too_long_are_refused(tmp_path: Path) -> None:
    linked(tmp_path, "H200", "H100")
    linked(tmp_path, "H100", "H200")
    for output_dir, model in (
        (tmp_path, "m"),
        (tmp_path / "x" / ("y" * 5000), "m"),
        (tmp_path, "/".join(["a" * 50] * 99)),
    ):
        with pytest.raises(UsageError, match="; .*choose another --output-dir") as refusal:
            TablePaths.of(output_dir, "H200", model)
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500
