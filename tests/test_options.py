"""The defaults of the commands' options, and where the token of the Hub comes from."""

import pytest

import run_profile
from llm_profile.cli.options import parse_requests
from llm_profile.request import Request, ScalingRequest


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)


def test_defaults_are_those_of_the_request() -> None:
    asked = run_profile.build_parser().parse_args(["--model", "tiny-llama", "--skip-scaling"])
    assert parse_requests(asked) == [Request("tiny-llama")]


def test_defaults_of_scaling_are_those_of_its_request() -> None:
    asked = run_profile.build_parser().parse_args(["--model", "tiny-llama"])
    grid = range(128, 1025, 128)
    assert parse_requests(asked)[0].scaling == ScalingRequest(tuple((i, o) for i in grid for o in grid))


def test_a_token_of_the_command_line_comes_before_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "of the environment")
    words = ["--model", "tiny-llama"]
    parse = run_profile.build_parser().parse_args
    assert parse_requests(parse(words))[0].hf_token == "of the environment"
    assert parse_requests(parse([*words, "--hf-token", "given"]))[0].hf_token == "given"
