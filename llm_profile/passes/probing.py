"""The first passes of a model: how many tokens it has positions for, and passes that make each of its layers run."""

from torch import nn

from llm_profile.errors import UsageError, is_out_of_memory
from llm_profile.layers.probe import running_modules
from llm_profile.models.model_errors import line_of_model_code
from llm_profile.models.positions import learned_positions
from llm_profile.passes.runner import PassRunner
from llm_profile.points import SweepPoint

PROBE_TOKENS = 256
"""Longest prompt that is probed. Shorter ones would miss layers: some that compress their cache run only once in so
many tokens."""


def most_positions(runner: PassRunner, model_type: object) -> int | None:
    """Most tokens that the model has positions for, None where they do not end. Runs a pass of one token.

    Raises UsageError for a model that returns no cache.
    """
    fired: list[nn.Module] = []
    with running_modules(runner.model, fired.append):
        output = runner.run(SweepPoint(1, 0))
    if getattr(output, runner.cache_argument, None) is None:
        raise UsageError(
            f"--model: this {model_type} returns no cache, so it is an encoder and "
            'cannot decode; "is_decoder": true in the config.json of a local copy would make it a decoder'
        )
    return learned_positions(runner.model, fired)


def run_probes(runner: PassRunner, max_input: int, max_total: int) -> None:
    """Run a prompt, a decode step on a cache of one token, and steps on longer caches.

    Layers that compress their cache run once in so many tokens, mostly a power of two: so the longer caches have a
    power of two less one tokens, and the last is the longest that is possible.
    """
    runner.run(SweepPoint(min(PROBE_TOKENS, max_input), 0))
    longest = max_total - 1
    powers = [2**n - 1 for n in range(1, longest.bit_length()) if 2**n - 1 < longest]
    for kv_len in [*powers, longest] if longest else []:
        try:
            runner.run(SweepPoint(1, kv_len))
        except Exception as error:
            # memory or the model's code does not allow it: the sweep will report the point as missing
            if kv_len == 1 or not (is_out_of_memory(error) or line_of_model_code(error)):
                raise
            break
    runner.forget_masks()
