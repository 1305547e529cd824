"""Finding models in folders, the table, the cache and on the hub, which a local server imitates with its errors."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from llm_profile.errors import UsageError
from llm_profile.models import catalog, download
from llm_profile.models.blocks import Stack
from llm_profile.models.checkpoint import checkpoint_view
from llm_profile.models.download import FileNotInRepository, HubError, HubUnreachable, ModelNotFound
from llm_profile.models.hub import find_model

ROOT = Path(__file__).parent.parent
COMMIT, OLD_COMMIT = "c" * 40, "d" * 40
TOKEN = "hf_secretsecretsecret"
REPO = "someone/small"
LLAMA = "meta-llama/Llama-3.1-8B"
CONFIG = {"model_type": "llama", "hidden_size": 32, "auto_map": {"AutoConfig": "evil.Config"}}
INDEX = {
    "weight_map": {
        "model.embed_tokens.weight": "one.safetensors",
        "model.layers.0.mlp.weight": "one.safetensors",
        "model.layers.1.mlp.weight": "two.safetensors",
        "model.layers.2.mlp.weight": "three.safetensors",
        "lm_head.weight": "three.safetensors",
    }
}
FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    **{f"{shard}.safetensors": shard.encode() * 100 for shard in ("one", "two", "three")},
}


class Hub(ThreadingHTTPServer):
    """A server that answers as the hub does.

    repositories: name -> files. asked: method and path of each request. trouble: is called first with each request, and
    returns True if it has answered it itself (with an error).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories = {REPO: dict(FILES)}
        self.revisions = {"main": COMMIT, COMMIT: COMMIT, "v1": OLD_COMMIT, OLD_COMMIT: OLD_COMMIT}
        self.asked: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.trouble: Callable[[Answer], bool] = lambda answer: False
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self) -> list[str]:
        return [path.rpartition("/")[2] for method, path in self.asked if method == "GET"]


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path))
        self.server.tokens.add(self.headers.get("Authorization"))
        if not self.server.trouble(self):
            self.serve()

    do_HEAD = do_GET

    def serve(self) -> None:
        repository, _, rest = self.path.removeprefix("/").partition("/resolve/")
        revision, _, filename = rest.partition("/")
        if repository not in self.server.repositories:
            return self.refuse(404, "RepoNotFound")
        if revision not in self.server.revisions:
            return self.refuse(404, "RevisionNotFound")
        body = self.server.repositories[repository].get(filename)
        commit = self.server.revisions[revision]
        if body is None:
            return self.refuse(404, "EntryNotFound", commit=commit)
        self.send(200, body, commit)

    def refuse(self, status: int, code: str = "", message: str = "", commit: str = COMMIT, **headers: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, **headers}
        self.send(status, message.encode(), commit, **{key: value for key, value in headers.items() if value})

    def send(self, status: int, body: bytes, commit: str, cut: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(download, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    huggingface_hub.close_session()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


# --- what is found, and where ---


def test_hub(hub: Hub) -> None:
    source = find_model(REPO, load_format="hf", token=TOKEN)
    assert (source.name, source.origin, source.revision, source.weights) == (REPO, "hub", COMMIT, "hf")
    assert source.weights_file == "model.safetensors.index.json"
    assert source.config == {"model_type": "llama", "hidden_size": 32}  # no auto_map
    assert source.notice is None
    assert hub.fetched() == ["config.json"]
    assert hub.tokens == {f"Bearer {TOKEN}"}


def test_second_time_from_the_cache(hub: Hub) -> None:
    find_model(REPO, load_format="hf")
    assert find_model(REPO, load_format="hf").origin == "cache"
    assert hub.fetched() == ["config.json"]


def test_revision_is_resolved(hub: Hub) -> None:
    source = find_model(REPO, load_format="hf", revision="v1")
    assert source.revision == OLD_COMMIT
    assert find_model(REPO, load_format="hf", revision=OLD_COMMIT).revision == OLD_COMMIT


def test_moved_revision_is_fetched_anew(hub: Hub) -> None:
    find_model(REPO, load_format="dummy")
    hub.revisions["main"] = OLD_COMMIT
    source = find_model(REPO, load_format="dummy")
    assert (source.origin, source.revision) == ("hub", OLD_COMMIT)


def test_dummy_of_the_hub_needs_only_a_config(hub: Hub) -> None:
    source = find_model(REPO, load_format="dummy")
    assert (source.origin, source.weights, source.notice) == ("hub", "dummy", None)
    assert {path.rpartition("/")[2] for _, path in hub.asked} == {"config.json"}


@pytest.mark.parametrize("name", [LLAMA, "llama-3.1-8b"])
def test_dummy_of_a_table_name_asks_nobody(hub: Hub, name: str) -> None:
    source = find_model(name, load_format="dummy")
    assert (source.name, source.origin, source.weights) == (LLAMA, "table", "dummy")
    assert source.config["hidden_size"] == 4096
    assert hub.asked == []


def test_dummy_with_a_revision_asks_the_hub(hub: Hub) -> None:
    hub.repositories[LLAMA] = dict(FILES)
    assert find_model(LLAMA, load_format="dummy", revision="v1").revision == OLD_COMMIT


def test_table_name_without_owner_means_its_model_on_the_hub(hub: Hub) -> None:
    hub.repositories[LLAMA] = dict(FILES)
    source = find_model("Llama-3.1-8B", load_format="hf")
    assert (source.name, source.origin) == (LLAMA, "hub")


def test_only_needed_shards_are_fetched(hub: Hub) -> None:
    source = find_model(REPO, load_format="hf")
    view = checkpoint_view(source, kept={Stack(("model.layers",)): tuple(range(1))})
    assert [file.name for file in view.files] == ["one.safetensors", "three.safetensors"]
    assert hub.fetched() == ["config.json", "model.safetensors.index.json", "one.safetensors", "three.safetensors"]
    assert all(file.read_bytes() == FILES[file.name] for file in view.files)
    # shards are asked for by the hash of the commit, not by a name that may move
    assert all(f"/resolve/{COMMIT}/" in path for _, path in hub.asked if not path.endswith("config.json"))


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for load_format in ("dummy", "auto"):
        source = find_model(str(tmp_path), load_format=load_format)
        assert (source.origin, source.path, source.weights, source.revision) == ("folder", tmp_path, "dummy", None)
    assert source.notice is not None and "no weights there" in source.notice
    with pytest.raises(UsageError, match=r"no weights there .*--load-format dummy"):
        find_model(str(tmp_path), load_format="hf")
    (tmp_path / "model.safetensors").touch()
    source = find_model(str(tmp_path), load_format="auto")
    assert (source.weights, source.weights_file) == ("hf", "model.safetensors")
    assert source.notice is not None and "real weights" in source.notice


def test_folder_before_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny-llama").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("tiny-llama", load_format="dummy").origin == "table"  # a folder without a config.json is no model
    (tmp_path / "tiny-llama" / "config.json").write_text(json.dumps(CONFIG))
    assert find_model("tiny-llama", load_format="dummy").origin == "folder"


@pytest.mark.parametrize(
    ("nested", "expected"),
    [
        ({"text_config": {"auto_map": {}, "_attn_implementation": "x/y", "a": 1}}, {"text_config": {"a": 1}}),
        ({"attn_implementation": "x/y", "experts_implementation": "x/y", "dtype": "float16"}, {"dtype": "float16"}),
        ({"_attn_implementation_internal": "x/y", "transformers_weights": "../x", "fusion_config": {}}, {}),
    ],
)
def test_config_without_what_could_lead_to_code(
    tmp_path: Path, nested: dict[str, Any], expected: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(nested))
    assert find_model(str(tmp_path), load_format="dummy").config == expected


# --- auto: real weights, else dummy ones and why ---


def test_auto_takes_real_weights(hub: Hub) -> None:
    source = find_model(REPO, load_format="auto")
    assert source.weights == "hf"
    assert source.notice == f"real weights, those of {REPO} at revision {COMMIT}"


def test_auto_without_hub_takes_the_table_and_says_why(hub: Hub) -> None:
    hub.trouble = lambda answer: answer.refuse(503) is None
    source = find_model(LLAMA, load_format="auto")
    assert (source.origin, source.weights) == ("table", "dummy")
    assert source.notice is not None and "dummy" in source.notice and "HTTP 503" in source.notice
    assert "\n" not in source.notice


def test_auto_of_a_gated_model_takes_the_table_and_says_why(hub: Hub) -> None:
    hub.trouble = lambda answer: answer.refuse(401, "GatedRepo") is None
    source = find_model(LLAMA, load_format="auto")
    assert source.weights == "dummy"
    assert source.notice is not None and "--hf-token" in source.notice


def test_auto_of_pickles_takes_dummy_weights_unless_allowed(hub: Hub) -> None:
    hub.repositories[REPO] = {"config.json": FILES["config.json"], "pytorch_model.bin": b"pickle"}
    source = find_model(REPO, load_format="auto")
    assert (source.origin, source.weights) == ("hub", "dummy")
    assert source.notice is not None and "--allow-pickle" in source.notice
    assert find_model(REPO, load_format="auto", allow_pickle=True).weights_file == "pytorch_model.bin"
    with pytest.raises(UsageError, match="may run code"):
        find_model(REPO, load_format="hf")
    assert hub.fetched() == ["config.json"]


def test_auto_of_our_own_model_asks_nobody(hub: Hub) -> None:
    source = find_model("tiny-llama", load_format="auto")
    assert (source.origin, source.weights) == ("table", "dummy")
    assert source.notice is not None
    with pytest.raises(UsageError, match="--load-format dummy"):
        find_model("tiny-llama", load_format="hf")
    assert hub.asked == []


def test_auto_keeps_the_hubs_config_where_only_weights_are_out_of_reach(hub: Hub) -> None:
    hub.trouble = lambda answer: "config.json" not in answer.path and answer.refuse(500) is None
    source = find_model(REPO, load_format="auto")
    assert (source.origin, source.weights) == ("hub", "dummy")
    assert source.notice is not None and "HTTP 500" in source.notice


def test_auto_without_any_config_is_an_error(hub: Hub) -> None:
    hub.trouble = lambda answer: answer.refuse(500) is None
    with pytest.raises(HubUnreachable):
        find_model(REPO, load_format="auto")
    with pytest.raises(HubUnreachable):  # with a revision, the table is not used
        find_model(LLAMA, load_format="auto", revision="v1")


# --- offline ---


def test_cache_serves_when_the_hub_is_gone(hub: Hub) -> None:
    source = find_model(REPO, load_format="hf")
    checkpoint_view(source, kept={Stack(("model.layers",)): tuple(range(1))})
    hub.trouble = lambda answer: answer.refuse(502) is None
    source = find_model(REPO, load_format="auto")
    assert (source.origin, source.weights, source.revision) == ("cache", "hf", COMMIT)
    assert checkpoint_view(source, kept={Stack(("model.layers",)): tuple(range(1))}).files
    with pytest.raises(HubError, match="502"):
        checkpoint_view(source, kept={Stack(("model.layers",)): tuple(range(2))})


def test_offline_mode_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    find_model(REPO, load_format="dummy")
    asked = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_model(REPO, load_format="dummy").origin == "cache"
    source = find_model(REPO, load_format="auto")
    assert (source.weights, source.origin) == ("dummy", "cache")
    assert source.notice is not None and "HF_HUB_OFFLINE" in source.notice
    assert find_model(LLAMA, load_format="auto").origin == "table"
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE"):
        find_model(LLAMA, load_format="hf")
    assert len(hub.asked) == asked


def test_offline_mode_finds_a_cached_single_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[REPO] = {"config.json": FILES["config.json"], "model.safetensors": b"weights"}
    source = find_model(REPO, load_format="hf")
    checkpoint_view(source, kept={Stack(("model.layers",)): tuple(range(1))})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_model(REPO, load_format="hf").weights_file == "model.safetensors"


def test_nobody_listens(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachable, match="http://127.0.0.1:9 cannot be reached"):
        find_model(REPO, load_format="hf")
    assert find_model(LLAMA, load_format="auto").origin == "table"


# --- errors of the hub ---


def stall(answer: Answer) -> bool:
    answer.server.closing.wait(5)
    answer.close_connection = True
    return True


def stall_in_body(answer: Answer) -> bool:
    if answer.command == "HEAD":
        return False
    answer.send(200, FILES["config.json"], COMMIT, cut=5)
    answer.wfile.flush()
    return stall(answer)


def cut_body(answer: Answer) -> bool:
    if answer.command == "HEAD":
        return False
    answer.send(200, FILES["config.json"], COMMIT, cut=5)
    answer.close_connection = True
    return True


def hang_up(answer: Answer) -> bool:
    answer.close_connection = True
    return True


def refusal(status: int, *args: str, **headers: str) -> Callable[[Answer], bool]:
    return lambda answer: answer.refuse(status, *args, **headers) is None


def on_get(trouble: Callable[[Answer], bool]) -> Callable[[Answer], bool]:
    return lambda answer: answer.command == "GET" and trouble(answer)


def no_hub_at_all(answer: Answer) -> bool:
    answer.send_response(200)
    answer.send_header("Content-Length", "0")
    answer.end_headers()
    return True


BAD_ANSWERS: dict[str, tuple[Callable[[Answer], bool], str | None, type[UsageError], str, int]] = {
    # what the server does, the token, type and part of the error, most requests that are made
    "401 missing": (refusal(401), None, ModelNotFound, "--hf-token or HF_TOKEN", 1),
    "401 gated": (refusal(401, "GatedRepo"), None, HubError, "gated; set --hf-token or HF_TOKEN", 1),
    "403 gated": (refusal(403, "GatedRepo"), TOKEN, HubError, "account has no access", 1),
    "401 token": (
        refusal(401, "", "Invalid credentials in Authorization header"),
        TOKEN,
        HubError,
        r"--hf-token: the hub refused this token \(HTTP 401\)",
        1,
    ),
    "401 echo": (refusal(401, "RepoNotFound", f"no good: {TOKEN}"), TOKEN, HubError, "refused this token", 1),
    "403": (refusal(403), TOKEN, HubError, "HTTP 403", 2),
    "404": (refusal(404, "RepoNotFound"), None, ModelNotFound, "not on the hub", 1),
    "404 bare": (refusal(404), None, ModelNotFound, "not on the hub", 2),
    "404 file": (refusal(404, "EntryNotFound"), None, FileNotInRepository, "no config.json", 1),
    "404 revision": (refusal(404, "RevisionNotFound"), None, HubError, "no branch, tag or commit", 1),
    "418": (refusal(418), None, HubError, "HTTP 418", 2),
    "429": (refusal(429, Retry_After="3600"), None, HubUnreachable, r"HTTP 429 \(Too Many Requests\)", 3),
    "429 body": (on_get(refusal(429, Retry_After="3600")), None, HubUnreachable, "HTTP 429", 4),
    "500": (refusal(500), None, HubUnreachable, "HTTP 500", 3),
    "503": (refusal(503), None, HubUnreachable, "HTTP 503", 3),
    "503 body": (on_get(refusal(503)), None, HubUnreachable, "HTTP 503", 4),
    "stall": (stall, None, HubUnreachable, "does not answer in time", 3),
    "stall in body": (stall_in_body, None, HubUnreachable, "broke off", 5),
    "cut body": (cut_body, None, HubUnreachable, "broke off", 5),
    "hang up": (hang_up, None, HubUnreachable, "cannot be reached", 3),
    "no hub": (no_hub_at_all, None, HubError, "is no hub", 2),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_bad_answers_are_one_line_soon(
    hub: Hub, case: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, "httpcore")  # at DEBUG, httpcore logs the headers of answers
    hub.trouble, token, error_type, message, most_requests = BAD_ANSWERS[case]
    with pytest.raises(error_type, match=message) as raised:
        find_model(REPO, load_format="hf", token=token)
    text = str(raised.value)
    assert "\n" not in text and text.startswith("--")
    assert 1 <= len(hub.asked) <= most_requests
    assert TOKEN not in text + caplog.text + "".join(capfd.readouterr())


def test_not_even_a_traceback_repeats_the_hubs_words(hub: Hub) -> None:
    hub.trouble = refusal(401, "RepoNotFound", f"no good: {TOKEN}")
    with pytest.raises(HubError) as raised:
        download.fetch(LLAMA, "config.json", revision=None, token=TOKEN)
    assert TOKEN not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("trouble", [refusal(503), on_get(refusal(500)), cut_body, hang_up])
def test_passing_trouble_is_outlasted(hub: Hub, trouble: Callable[[Answer], bool]) -> None:
    left = [trouble, trouble]

    def first_only(answer: Answer) -> bool:
        return bool(left) and left[-1](answer) and left.pop() is trouble

    hub.trouble = first_only
    assert find_model(REPO, load_format="dummy").origin == "hub"
    assert left == []


def test_a_download_that_gets_on_goes_on(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that breaks off but makes progress is resumed, more often than one without progress is retried."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4)
    body = FILES["config.json"]

    def resumable(answer: Answer) -> bool:
        if answer.command == "HEAD":
            return False
        start = int(answer.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        headers = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        answer.send(206 if start else 200, body[start:], COMMIT, cut=len(body) // 8, **headers)
        answer.close_connection = True
        return True

    hub.trouble = resumable
    assert find_model(REPO, load_format="dummy").config["hidden_size"] == 32
    assert len(hub.fetched()) > 5


def test_huggingface_hub_is_as_before(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)

    def state() -> tuple[Any, ...]:
        verbosity = huggingface_hub.utils.logging.get_verbosity()
        return huggingface_hub.get_session(), verbosity, constants.HF_HUB_DISABLE_TELEMETRY

    before = state()
    find_model(REPO, load_format="hf")
    hub.trouble = refusal(500)
    with pytest.raises(HubUnreachable):
        find_model("someone/else", load_format="hf")
    assert state() == before
    assert "send" not in vars(huggingface_hub.get_session())


# --- mistakes ---


def test_unknown_model_with_near_names(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match="not on the hub.*did you mean meta-llama/Llama-3.1-8B"):
        find_model("meta-llama/Llama-3.1-8", load_format="hf")
    with pytest.raises(ModelNotFound) as raised:
        find_model("zz/zzzzzz", load_format="dummy")
    assert "did you mean" not in str(raised.value)


@pytest.mark.parametrize("name", ["a/b/c", "a//b", "owner/has spaces", "ünï/cöde", "a" * 200])
def test_names_that_no_hub_can_have(hub: Hub, name: str) -> None:
    with pytest.raises(ModelNotFound):
        find_model(name, load_format="auto")
    assert hub.asked == []


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "../x", "~/nothing-there", "results/", ""])
def test_paths_are_never_asked_of_the_hub(hub: Hub, name: str) -> None:
    with pytest.raises(UsageError, match="is no folder|has no config.json"):
        find_model(name, load_format="auto")
    assert hub.asked == []


def test_mistakes(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="auto, hf, dummy"):
        find_model(REPO, load_format="gguf")
    with pytest.raises(UsageError, match="has no config.json"):
        find_model(str(tmp_path), load_format="dummy")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UsageError, match="JSON object"):
        find_model(str(tmp_path), load_format="dummy")
    with pytest.raises(UsageError, match="--revision v1.*leave it out"):
        find_model(str(tmp_path), load_format="dummy", revision="v1")
    with pytest.raises(UsageError, match="--revision"):
        find_model("tiny-llama", load_format="dummy", revision="v1")


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "hf_ünï"])
def test_a_token_that_cannot_be_sent_is_not_repeated(hub: Hub, token: str) -> None:
    with pytest.raises(UsageError, match="--hf-token") as raised:
        find_model(REPO, load_format="hf", token=token)
    assert token not in str(raised.value)
    assert hub.asked == []


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(HubError, match="HF_HOME: cannot write to .*Not a directory"):
        find_model(REPO, load_format="dummy")


# --- in a new process, so that huggingface_hub reads the environment variables that users set ---


def run(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    code = f"from llm_profile.models.hub import find_model\n{code}"
    settings = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**settings, **environment}, capture_output=True, text=True
    )


def test_environment(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {"HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}
    code = f"print(find_model({REPO!r}, load_format='auto'))"
    online = run(code, environment)
    assert "origin='hub'" in online.stdout and online.stderr == ""
    assert hub.tokens == {f"Bearer {TOKEN}"}
    asked = len(hub.asked)
    offline = run(code, {**environment, "HF_HUB_OFFLINE": "1"})
    assert "origin='cache'" in offline.stdout
    assert len(hub.asked) == asked
    files = [file for file in home.rglob("*") if file.is_file()]
    assert files and not any(TOKEN.encode() in file.read_bytes() for file in files)
    assert TOKEN not in online.stdout + offline.stdout + offline.stderr


def test_imports_no_torch_and_no_hub_for_the_table() -> None:
    code = (
        "import sys\nfind_model('tiny-llama', load_format='dummy')\n"
        "print({'torch', 'transformers', 'huggingface_hub', 'httpx'} & set(sys.modules))"
    )
    assert run(code, {}).stdout == "set()\n"


def test_every_table_name_can_be_found() -> None:
    for model_id in catalog.MODELS:
        assert find_model(model_id, load_format="dummy").origin == "table"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{\n "model_type": "llama",\n "hidden_size": 64,\n}', r"is no JSON: .* at line [34], column"),
        (b'{\n "model_type": "llama"\n "hidden_size": 64\n}', r"is no JSON: .* at line 3, column 2"),
        (b'{\n// a comment\n"model_type": "llama"}', r"is no JSON: .* at line 2, column 1"),
        (b"", r"is no JSON: .* at line 1, column 1"),
        (b"[" * 100_000, r"nested too deeply"),
        (b'{"model_type": "\xff"}', r"cannot be read \(.*utf-8"),
        (b"[1]", r"holds a list where a JSON object is expected"),
        (b"null", r"holds null where"),
        (b"Infinity", r"holds a number where"),
    ],
)
def test_a_broken_config_is_told_by_its_line(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=told) as refused:
        find_model(str(tmp_path), load_format="dummy")
    assert "\n" not in str(refused.value)
