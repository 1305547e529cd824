"""Files of the Hugging Face hub, from its cache or over the network, within bounds. Imports no torch.

huggingface_hub keeps the cache and knows the protocol. Its own retries are not bounded in a way that a command can
stand (a server may ask for an hour's wait, a body that is cut each time is asked for for ever), so each request made
here goes through `_patient_requests`. No message carries the token, or words that came with it.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_profile.errors import UsageError

TIMEOUT_S = 10.0
"""Longest silence of the hub before a try counts as failed; HF_HUB_ETAG_TIMEOUT, HF_HUB_DOWNLOAD_TIMEOUT override."""

PAUSES_S = (0.5, 2.0)
"""Waits between the tries of a request: their number is that of the retries."""

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
"""Answers that may be others a moment later."""


class HubError(UsageError):
    """The hub's files cannot be had: the message says which and why."""


class HubUnreachable(HubError):
    """No hub, or none that answers: what the cache has may do instead."""


class ModelNotFound(HubError):
    """The hub has no such model, or shows none to this token."""


class FileNotInRepository(HubError):
    """The model is there, and does not have this file."""


def fetch(model: str, filename: str, *, revision: str | None, token: str | None) -> Path:
    """The local path of a file of a model on the hub: up to date where the hub answers, else as cached.

    revision: branch, tag or commit; None for the main branch. token: None takes HF_TOKEN or the stored login.
    Raises HubError.
    """
    return _ask(model, filename, revision, token, only_look=False)


def has(model: str, filename: str, *, revision: str | None, token: str | None) -> bool:
    """Whether `fetch` would find the file. Raises HubError where it cannot be known."""
    try:
        _ask(model, filename, revision, token, only_look=True)
    except FileNotInRepository:
        return False
    return True


def cached(model: str, filename: str, *, revision: str | None) -> Path | None:
    """The path of a file in the cache, without asking the hub; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(model, filename, revision=revision)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def _ask(model: str, filename: str, revision: str | None, token: str | None, only_look: bool) -> Path:
    from huggingface_hub import hf_hub_download, is_offline_mode

    known = cached(model, filename, revision=revision)
    if is_offline_mode():
        if known is not None:
            return known
        raise HubUnreachable(f"--model {model}: {filename} is not in the cache and the hub is off (HF_HUB_OFFLINE)")
    _check_token(token)
    try:
        with _patient_requests():
            found: Any = hf_hub_download(
                model,
                filename,
                revision=revision,
                token=token,
                endpoint=os.environ.get("HF_ENDPOINT") or None,  # now: huggingface_hub reads it when it is imported
                etag_timeout=TIMEOUT_S,
                dry_run=only_look,
            )
    except HubUnreachable as error:
        if known is not None:
            return known
        raise HubUnreachable(f"--model {model}: {error}") from None
    except Exception as error:
        # foreign texts may quote headers, and with them the token: only what is known of the error is told
        raise _explain(error, model, filename, revision, token) from None
    return Path(found.local_path if only_look else found)


@contextmanager
def _patient_requests() -> Iterator[None]:
    """While open, requests of huggingface_hub are tried a few times, with short pauses, and then given up for good."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import logging

    session, verbosity, no_telemetry = get_session(), logging.get_verbosity(), constants.HF_HUB_DISABLE_TELEMETRY
    logging.set_verbosity_error()  # its notes on retries are many lines, ours is one
    constants.HF_HUB_DISABLE_TELEMETRY = True  # it asks the hub questions of its own first, and waits for answers
    # the HTTP library is httpx or a successor of it, by huggingface_hub's version: the session's own is the right one
    http = sys.modules[type(session).__module__.partition(".")[0]]
    session.send = _patient(session.send, http)
    try:
        yield
    finally:
        del session.send
        logging.set_verbosity(verbosity)
        constants.HF_HUB_DISABLE_TELEMETRY = no_telemetry


def _patient(send: Callable[..., Any], http: Any) -> Callable[..., Any]:
    """`send` with bounded retries. Raises HubUnreachable, which huggingface_hub does not retry.

    http: the library of `send`, for its exceptions.
    """
    asked: Counter[tuple[str, str, str | None]] = Counter()

    def patient_send(request: Any, **options: Any) -> Any:
        host = f"{request.url.scheme}://{request.url.netloc.decode()}"
        # a download that got further asks for another range; the same one again and again goes nowhere
        same = (request.method, str(request.url), request.headers.get("range"))
        asked[same] += 1
        if asked[same] > len(PAUSES_S) + 1:
            raise HubUnreachable(f"{host} broke off its answer {len(PAUSES_S) + 1} times; try again later")
        problem = ""
        for pause_s in (0.0, *PAUSES_S):
            time.sleep(pause_s)
            try:
                response = send(request, **options)
            except http.TimeoutException:
                problem = "does not answer in time"
            except http.TransportError:
                problem = "cannot be reached"
            else:
                if response.status_code not in RETRIED_STATUSES:
                    return response
                response.close()
                problem = f"answers HTTP {response.status_code} ({response.reason_phrase})"
        raise HubUnreachable(f"{host} {problem} ({len(PAUSES_S) + 1} tries); check the network, or HF_ENDPOINT")

    return patient_send


def _check_token(token: str | None) -> None:
    """Refuse a token that no HTTP header can carry. Raises UsageError."""
    from huggingface_hub import get_token

    token = token or get_token() or ""
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UsageError("--hf-token: not a token of the hub, which is one word of ASCII letters (or is it HF_TOKEN?)")


def _explain(error: Exception, model: str, filename: str, revision: str | None, token: str | None) -> UsageError:
    """What an error of huggingface_hub means to a user."""
    from huggingface_hub import constants, errors, get_token

    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
    status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else None
    with_token = bool(token or get_token())
    if isinstance(cause, errors.GatedRepoError):
        if with_token:
            return HubError(f"--model {model}: gated, and this token's account has no access; ask for it on the hub")
        return HubError(f"--model {model}: gated; set --hf-token or HF_TOKEN to the token of an account with access")
    if isinstance(cause, errors.RevisionNotFoundError):
        return HubError(f"--revision {revision}: {model} has no branch, tag or commit of this name")
    if isinstance(cause, errors.EntryNotFoundError) and status is not None:
        return FileNotInRepository(f"--model {model}: the hub has no {filename} for it")
    if status == 401 and with_token:
        return HubError("--hf-token: the hub refused this token (HTTP 401); make a new one, or leave it out")
    if status in (401, 404) or isinstance(cause, errors.HFValidationError):
        return ModelNotFound(f"--model {model}: not on the hub (a private model needs --hf-token or HF_TOKEN)")
    if status == 403:
        return HubError(f"--model {model}: the hub forbids access (HTTP 403); the token may lack the right to read it")
    if status is not None:
        return HubError(f"--model {model}: the hub answers HTTP {status} for {filename}; try again later")
    if isinstance(cause, errors.FileMetadataError):
        return HubError(f"--model {model}: what answers at HF_ENDPOINT is no hub; check it, and the proxy")
    if isinstance(cause, OSError) and cause.errno is not None:
        return HubError(f"HF_HOME: cannot write to {constants.HF_HUB_CACHE} ({os.strerror(cause.errno)}); set another")
    return HubError(f"--model {model}: {filename} did not arrive whole ({type(cause).__name__}); try again")
