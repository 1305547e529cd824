"""The documentation holds: options, commands, links and requirements are those of the code."""

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

from llm_profile.versions import TESTED

ROOT = Path(__file__).parent.parent
COMMANDS = ("run_profile", "validation")
DOCUMENTS = ("README.md", "RTX3090/README.md")
PAGES = (*DOCUMENTS, "docs/releases.md")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = importlib.import_module(command).build_parser()
    assert isinstance(parser, argparse.ArgumentParser)
    return parser


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


def headings(text: str) -> set[str]:
    """The anchors that a page of this text has."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", without_code, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_stands_in_the_readme(command: str) -> None:
    readme = text_of("README.md")
    missing = [o for o in options_of(parser_of(command)) if not re.search(rf"(?<![\w-]){o}(?![\w-])", readme)]
    assert not missing


def test_every_option_in_a_table_of_the_readme_exists() -> None:
    known = {option for command in COMMANDS for option in options_of(parser_of(command))}
    first_cells = re.findall(r"^\| *(`--[^|]*)\|", text_of("README.md"), flags=re.MULTILINE)
    named = {option for cell in first_cells for option in re.findall(r"--[a-z][\w-]*", cell)}
    assert named, "the README has a table of options"
    assert named <= known


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_documented_command_parses(document: str) -> None:
    parsers = {f"{command}.py": parser_of(command) for command in COMMANDS}
    found = [words for words in commands_in(text_of(document)) if words[1] in parsers]
    assert found, f"{document} shows no command"
    for words in found:
        try:
            parsers[words[1]].parse_args(words[2:])
        except SystemExit as stopped:
            assert stopped.code == 0, f"{document}: {shlex.join(words)}"  # --help ends with 0


def test_the_readme_shows_both_commands() -> None:
    assert {f"{command}.py" for command in COMMANDS} <= {words[1] for words in commands_in(text_of("README.md"))}


def test_every_python_file_run_in_a_document_is_there() -> None:
    files = {word for document in PAGES for words in commands_in(text_of(document)) for word in words[1:2]}
    missing = [name for name in files if name.endswith(".py") and not (ROOT / name).is_file()]
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


def test_the_readme_names_the_tested_range_and_every_variable_of_the_set_up() -> None:
    readme = " ".join(text_of("README.md").split())
    ranges = " and ".join(f"{name} {oldest} to {newest}" for name, (oldest, newest) in TESTED.items())
    assert f"{ranges} were [tested]" in readme
    variables = set(re.findall(r'"\$\{(\w+):=', text_of("llm_profile/setup_env.sh")))
    assert variables >= {"PYTHON", "LATEST"}
    assert not [name for name in variables if f"| `{name}` |" not in readme]


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
