"""Files of the Hugging Face hub, from its local cache or over the network, with limited retries. Imports no torch.

huggingface_hub manages the cache and the protocol, but its own retries may go on for too long: a server may ask for an
hour's wait, and a download that breaks off each time is repeated for ever. So every request made here goes through
`_limited_retries`. Messages never contain the token, nor texts of errors that might.
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
"""Longest wait for an answer of the hub, in seconds. HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT override it."""

PAUSES_S = (0.5, 2.0)
"""Pause before each retry of a request, in seconds; there are as many retries as pauses."""

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP statuses of temporary problems, after which a request is retried."""


class HubError(UsageError):
    """A file of the hub cannot be fetched; the message says which and why."""


class HubUnreachable(HubError):
    """The hub does not answer, or is switched off (HF_HUB_OFFLINE). A file in the cache can still be used."""


class ModelNotFound(HubError):
    """The hub has no model of this name, or none that this token may see."""


class FileNotInRepository(HubError):
    """The model is on the hub, but has no such file."""


def fetch(model: str, filename: str, *, revision: str | None, token: str | None) -> Path:
    """The local path of a file of a model on the hub. If the hub does not answer, the file in the cache is taken.

    revision: branch, tag or commit; None for the main branch. token: None for HF_TOKEN or the stored login.
    Raises HubError.
    """
    return _ask(model, filename, revision, token, only_look=False)


def has(model: str, filename: str, *, revision: str | None, token: str | None) -> bool:
    """Whether the model has the file, which is not downloaded. Raises HubError where that cannot be found out."""
    try:
        _ask(model, filename, revision, token, only_look=True)
    except FileNotInRepository:
        return False
    return True


def cached(model: str, filename: str, *, revision: str | None) -> Path | None:
    """The path of a file in the local cache, without asking the hub; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(model, filename, revision=revision)
    except HFValidationError:
        return None
    return Path(path) if isinstance(path, str) else None


def _ask(model: str, filename: str, revision: str | None, token: str | None, only_look: bool) -> Path:
    """The local path of a file. only_look: ask the hub whether the file is there, and do not download it."""
    from huggingface_hub import hf_hub_download, is_offline_mode

    known = cached(model, filename, revision=revision)
    if is_offline_mode():
        if known is not None:
            return known
        raise HubUnreachable(
            f"--model {model}: {filename} is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub"
        )
    _check_token(token)
    try:
        with _limited_retries():
            found: Any = hf_hub_download(
                model,
                filename,
                revision=revision,
                token=token,
                endpoint=os.environ.get("HF_ENDPOINT") or None,  # huggingface_hub reads it only when it is imported
                etag_timeout=TIMEOUT_S,
                dry_run=only_look,
            )
    except HubUnreachable as error:
        if known is not None:
            return known
        raise HubUnreachable(f"--model {model}: {error}") from None
    except Exception as error:
        # the texts of other errors may quote headers with the token, so messages are made from what the error is
        raise _explain(error, model, filename, revision, token) from None
    return Path(found.local_path if only_look else found)


@contextmanager
def _limited_retries() -> Iterator[None]:
    """While open, requests of huggingface_hub are retried after PAUSES_S only, and then raise HubUnreachable."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import logging

    session, verbosity, no_telemetry = get_session(), logging.get_verbosity(), constants.HF_HUB_DISABLE_TELEMETRY
    logging.set_verbosity_error()  # it logs many lines on retries; the message of HubUnreachable is one
    constants.HF_HUB_DISABLE_TELEMETRY = True  # telemetry would make requests of its own first and wait for answers
    # huggingface_hub uses httpx or a successor of it, by its version: take the library that the session is from
    http = sys.modules[type(session).__module__.partition(".")[0]]
    session.send = _with_limited_retries(session.send, http)
    try:
        yield
    finally:
        del session.send
        logging.set_verbosity(verbosity)
        constants.HF_HUB_DISABLE_TELEMETRY = no_telemetry


def _with_limited_retries(send: Callable[..., Any], http: Any) -> Callable[..., Any]:
    """`send` with retries after PAUSES_S. Then HubUnreachable is raised, which huggingface_hub does not retry.

    http: the library of `send`, for its exceptions.
    """
    asked: Counter[tuple[str, str, str | None]] = Counter()

    def send_with_retries(request: Any, **options: Any) -> Any:
        host = f"{request.url.scheme}://{request.url.netloc.decode()}"
        # a resumed download asks for the range that is missing: the same range again means that nothing arrived
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

    return send_with_retries


def _check_token(token: str | None) -> None:
    """Raise UsageError for a token with characters that an HTTP header cannot contain."""
    from huggingface_hub import get_token

    token = token or get_token() or ""
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UsageError("--hf-token or HF_TOKEN: not a token of the hub, which is one word of ASCII characters")


def _explain(error: Exception, model: str, filename: str, revision: str | None, token: str | None) -> UsageError:
    """The error to show to the user in place of an error of huggingface_hub."""
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
