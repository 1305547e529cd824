import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from llm_profile.errors import UsageError
from llm_profile.json_text import parse_json
from llm_profile.store.storage import locked, storage_errors, to_json, write_whole

HOLD = """
import pathlib, sys, time
from llm_profile.json_text import parse_json
from llm_profile.store.storage import locked
with locked(pathlib.Path(sys.argv[1]), pathlib.Path("m.csv")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_second_writer_is_refused_by_process_id_until_the_first_is_gone(tmp_path: Path) -> None:
    lock = tmp_path / "m.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"process \(id {holder.pid}\)"), locked(lock, tmp_path / "m.csv"):
            pytest.fail("two writers at once")
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert lock.exists()  # nothing could remove it
    with locked(lock, tmp_path / "m.csv"):
        assert lock.read_text() == f"{os.getpid()}\n"
    assert not lock.exists()


def test_lock_is_released_after_an_error(tmp_path: Path) -> None:
    lock = tmp_path / "m.lock"
    with pytest.raises(KeyboardInterrupt), locked(lock, tmp_path / "m.csv"):
        with pytest.raises(UsageError, match=f"id {os.getpid()}"), locked(lock, tmp_path / "m.csv"):
            pass
        raise KeyboardInterrupt
    with locked(lock, tmp_path / "m.csv"):
        pass


def test_lock_on_a_file_that_was_just_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder before us removes its file after we opened it and before we lock it."""
    lock = tmp_path / "m.lock"
    calls = []

    def flock_after_removal(handle: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            lock.unlink()
        flock(handle, operation)

    flock = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", flock_after_removal)
    with locked(lock, tmp_path / "m.csv"):
        assert lock.read_text() == f"{os.getpid()}\n"
    assert len(calls) == 2


def test_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "m.csv"
    write_whole(path, b"old")

    def full_disk(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UsageError, match="No space left on device; free some space"):
        write_whole(path, b"new")
    assert [file.name for file in path.parent.iterdir()] == ["m.csv"]
    assert path.read_bytes() == b"old"


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="^cannot write .*--output-dir$") as complaint:
        write_whole(tmp_path / "file" / "m.csv", b"")
    assert "\n" not in str(complaint.value)
    with pytest.raises(UsageError, match="^cannot write "), locked(tmp_path / "file" / "m.lock", tmp_path / "m.csv"):
        pass


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_every_system_error_is_one_line(code: int) -> None:
    with pytest.raises(UsageError, match=os.strerror(code)) as complaint, storage_errors("write", Path("m.csv")):
        raise OSError(code, os.strerror(code))
    assert "\n" not in str(complaint.value)


def test_no_token_gets_into_a_file() -> None:
    token = "hf_" + "aB3" * 11 + "x"
    text = to_json({"argv": ["--hf-token", token, f"--hf-token={token}"], "reason": f"refused\n{token}."})
    assert token not in text
    assert json.loads(text)["reason"] == "refused\nhf_***."
    assert to_json({"kernel": "hf_gemm_bf16_128x128"}) == '{"kernel":"hf_gemm_bf16_128x128"}'


@pytest.mark.parametrize("text", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_numbers_that_json_has_not_are_read_as_they_were_written(text: str) -> None:
    """As transformers writes and reads them; two files are alike where the numbers are."""
    value = json.loads(f'{{"limit": [0.0, {text}], "deep": {{"x": {text}}}}}')
    written = to_json(value)
    name = "Infinity" if text == "1e999" else text
    assert json.loads(written, parse_constant=pytest.fail) == {
        "limit": [0.0, {"__float__": name}],
        "deep": {"x": {"__float__": name}},
    }
    assert to_json(json.loads(written)) == written
    decoded = PreTrainedConfig._decode_special_floats(json.loads(written))
    assert repr(decoded) == repr(value)


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    """Neither by its own name nor by that of the unfinished file."""
    (tmp_path / "mine").write_text("mine")
    for link in ("m.csv", "m.csv.tmp"):
        (tmp_path / link).symlink_to(tmp_path / "mine")
    write_whole(tmp_path / "m.csv", b"table")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "m.csv").read_bytes() == b"table" and not (tmp_path / "m.csv").is_symlink()


@pytest.mark.parametrize("text", ["", "NaN", '{"a":[-Infinity]}', "[" * 100_000, b"\xff\xfe", "{'a':1}", "1 2"])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text, constants=False)
