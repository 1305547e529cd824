"""README.md and docs/ hold: options, commands, links, modules and requirements are those of the code.

A new option needs a row in docs/options.md, a new module its name in docs/architecture.md.
"""

import argparse
import ast
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llm_profile.cli.subcommands import SUBCOMMANDS
from llm_profile.errors import UsageError
from llm_profile.versions import TESTED

ROOT = Path(__file__).parent.parent
COMMANDS = ("run_profile", "validation")
PARSERS = {name: name for name in COMMANDS} | {f"run_profile {name}": of for name, of in SUBCOMMANDS.items()}
"""A command with its sub-command, and the module that has its parser."""

OF_SIMULATORS = {"main.py"}
"""Python files that documents run and that are not of this repository."""

PAGES = ["README.md", "RTX3090/README.md", "CHANGELOG.md"] + sorted(
    f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")
)
OPTIONS_PAGE = "docs/options.md"
MOST_README_LINES = 200


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = importlib.import_module(PARSERS[command]).build_parser()
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


def parse(words: list[str]) -> None:
    """Parse a command line `python3 SCRIPT ...`, by the parser of its sub-command where it has one."""
    if sub_command := SUBCOMMANDS.get(" ".join(words[2:3])):
        parser_of(sub_command).parse_args(words[3:])
    else:
        parser_of(words[1].removesuffix(".py")).parse_args(words[2:])


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Long options of a parser and of its subcommands."""
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from options_of(subparser)


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands_in(text: str) -> Iterator[list[str]]:
    """Each `python3 SCRIPT ...` line of the code blocks, split as a shell does; `VAR=value` in front is left out."""
    for block in code_blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            for simple in re.split(r"&&|;|\|", line.removeprefix("$ ")):
                words = shlex.split(simple, comments=True)
                while words and re.match(r"\w+=", words[0]):
                    words = words[1:]
                if words and words[0] in ("python3", "python"):
                    yield words


def first_cells(text: str) -> list[str]:
    """The first cell of each line of the tables in a text."""
    return re.findall(r"^\|([^|\n]*)\|", text, flags=re.MULTILINE)


def options_in_tables(text: str) -> set[str]:
    """Options that a line of a table is about."""
    return {option for cell in first_cells(text) for option in re.findall(r"`(--[a-z][\w-]*)", cell)}


def headings(text: str) -> set[str]:
    """The anchors that a page of this text has."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", without_code, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("command", PARSERS)
def test_every_option_has_a_row_in_docs_options(command: str) -> None:
    missing = sorted({*options_of(parser_of(command))} - options_in_tables(text_of(OPTIONS_PAGE)))
    assert not missing, f"add a row to a table of {OPTIONS_PAGE} for each of {missing} of {command}"


@pytest.mark.parametrize("document", PAGES)
def test_every_option_in_a_table_exists(document: str) -> None:
    known = {option for command in PARSERS for option in options_of(parser_of(command))}
    unknown = options_in_tables(text_of(document)) - known
    assert not unknown, f"{document}: no command has {unknown}"


def commands_of_ours(document: str) -> list[list[str]]:
    return [words for words in commands_in(text_of(document)) if words[1].removesuffix(".py") in COMMANDS]


@pytest.mark.parametrize("document", PAGES)
def test_every_documented_command_parses(document: str) -> None:
    for words in commands_of_ours(document):
        try:
            command, arguments = words[1].removesuffix(".py"), words[2:]
            if arguments and f"{command} {arguments[0]}" in PARSERS:
                command, arguments = f"{command} {arguments[0]}", arguments[1:]
            parser_of(command).parse_args(arguments)
        except (SystemExit, UsageError) as stopped:
            assert getattr(stopped, "code", stopped) == 0, f"{document}: {shlex.join(words)}"  # --help ends with 0


def test_the_readme_shows_both_commands() -> None:
    assert {words[1] for words in commands_of_ours("README.md")} == {f"{command}.py" for command in COMMANDS}


@pytest.mark.parametrize("document", ["RTX3090/README.md", "docs/validation.md"])
def test_pages_about_a_command_show_it(document: str) -> None:
    assert commands_of_ours(document)


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    readme = text_of("README.md")
    assert len(readme.splitlines()) <= MOST_README_LINES, "move what is new to a page of docs/"
    assert not [page for page in PAGES if page != "README.md" and f"]({page})" not in readme]


def test_the_results_of_the_readme_are_those_of_docs_results() -> None:
    """The table is there a second time, with what has to be known about it."""
    section = text_of("README.md").partition("\n## Results\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) > 2, "the README has a table of results"
    assert not {*lines} - {*text_of("docs/results.md").splitlines()}


def test_docs_architecture_names_every_module_once() -> None:
    named: list[str] = []
    for heading, section in re.findall(r"^### `(\S+/)`\n(.*?)(?=^##)", text_of("docs/architecture.md"), re.M | re.S):
        named += [heading + name for cell in first_cells(section) for name in re.findall(r"`([\w/]+\.py)`", cell)]
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "llm_profile").rglob("*.py")]
    has_content = [name for name in files if not name.endswith("/__init__.py") or name.endswith("backends/__init__.py")]
    assert sorted(named) == sorted(has_content), "name each module in the table of its room, and no other"


def test_files_named_in_docs_architecture_are_there() -> None:
    text = text_of("docs/architecture.md").partition("## The way of one point")[2]
    named = re.findall(r"`([\w/]+/[\w/]+\.py)`", text)
    assert named
    assert not [name for name in named if not (ROOT / "llm_profile" / name).is_file()]


def test_every_python_file_run_in_a_document_is_there() -> None:
    files = {word for document in PAGES for words in commands_in(text_of(document)) for word in words[1:2]}
    ours = [name for name in files if name.endswith(".py") and name not in OF_SIMULATORS]
    missing = [name for name in ours if not (ROOT / name).is_file()]
    assert not missing


@pytest.mark.parametrize("document", PAGES)
def test_every_link_leads_somewhere(document: str) -> None:
    page = ROOT / document
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(document)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in headings(target.read_text(encoding="utf-8"))):
            dead.append(link)
    assert not dead


def test_docs_setup_has_the_tested_range_and_every_variable_of_the_set_up() -> None:
    page = " ".join(text_of("docs/setup.md").split())
    ranges = " and ".join(f"{name} {oldest} to {newest}" for name, (oldest, newest) in TESTED.items())
    assert f"{ranges} were [tested]" in page
    variables = set(re.findall(r'"\$\{(\w+):=', text_of("llm_profile/setup_env.sh")))
    assert variables >= {"PYTHON", "LATEST"}
    assert not [name for name in variables if f"| `{name}` |" not in page]


def test_requirements_are_what_the_code_imports() -> None:
    """None is missing, none is idle."""
    sources = [ROOT / f"{command}.py" for command in COMMANDS] + sorted((ROOT / "llm_profile").rglob("*.py"))
    modules: set[str] = set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules.add(node.module.split(".")[0])
    third_party = modules - {"llm_profile", *COMMANDS} - set(sys.stdlib_module_names)
    distributions = packages_distributions()
    imported = {canonicalize_name(distributions.get(module, [module])[0]) for module in third_party}
    lines = (line.split("#")[0].strip() for line in text_of("requirements.txt").splitlines())
    required = {canonicalize_name(Requirement(line).name) for line in lines if line}
    assert imported == required
