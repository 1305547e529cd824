"""How a command ends: its exit code, and the line that says what was wrong. Imports no torch."""

from collections.abc import Callable

from llm_profile import versions
from llm_profile.cli.messages import notice, stdout_problem, tell_json
from llm_profile.errors import EXIT_INTERRUPTED, EXIT_USAGE, UsageError
from llm_profile.store.storage import without_tokens


def exit_code_of(command: str, run: Callable[[], int], interrupted: str, json: bool = False) -> int:
    """Run a command and return its exit code.

    A UsageError is printed as one line and gives 2. Ctrl-C prints `interrupted`, what was kept, and gives 130. json:
    whether these print a document, too. A stdout that cannot be written gives 2, unless its reader had enough.
    """
    code = _code_of(command, run, interrupted, json)
    if (problem := stdout_problem()) is None:
        return code
    notice(f"{command}: cannot write to stdout: {problem}; send it elsewhere, or make room there")
    return EXIT_USAGE


def _code_of(command: str, run: Callable[[], int], interrupted: str, json: bool) -> int:
    try:
        with versions.possible_cause_noted():
            return run()
    except UsageError as error:
        code, texts = EXIT_USAGE, [f"{command}: {error}", *getattr(error, "__notes__", ())]
    except KeyboardInterrupt:
        code, texts = EXIT_INTERRUPTED, [f"{command}: interrupted; {interrupted}"]
    for text in texts:
        notice(text)
    if json:
        tell_json({"exit_code": code, "error": without_tokens(texts[0])})
    return code
