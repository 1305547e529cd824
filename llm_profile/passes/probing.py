"""The first passes of a model: they find its number of positions, and make each of its layers run at least once."""

from torch import nn

from llm_profile.errors import UsageError, is_out_of_memory
from llm_profile.layers.probe import running_modules
from llm_profile.models.model_errors import line_of_model_code
from llm_profile.models.positions import learned_positions
from llm_profile.passes.runner import PassRunner
from llm_profile.points import SweepPoint

PROBE_TOKENS = 256
"""Length of the prompt that is probed. Shorter ones could miss layers that compress their cache, which run only once
in so many tokens."""


def most_positions(runner: PassRunner, model_type: object) -> int | None:
    """Number of tokens that the model has learned positions for, None if it has no such limit. Runs one pass.

    Raises UsageError for a model that returns no KV cache.
    """
    fired: list[nn.Module] = []
    with running_modules(runner.model, fired.append):
        output = runner.run(SweepPoint(1, 0))
    if getattr(output, runner.cache_argument, None) is None:
        raise UsageError(
            f"--model: this {model_type} returns no cache, so it is an encoder and "
            'cannot decode; set "is_decoder": true in the config.json of a local copy to make it a decoder'
        )
    return learned_positions(runner.model, fired)


def run_probes(runner: PassRunner, max_input: int, max_total: int) -> None:
    """Run a prompt, a decode step on a cache of one token, and steps on longer caches, so that each layer runs.

    Layers that compress their cache run once in so many tokens, mostly a power of two. So the caches have lengths of
    2**n - 1 tokens, where the step completes a power of two, and the last one is the longest of the sweep.
    """
    runner.run(SweepPoint(min(PROBE_TOKENS, max_input), 0))
    longest = max_total - 1
    powers = [2**n - 1 for n in range(1, longest.bit_length()) if 2**n - 1 < longest]
    for kv_len in [*powers, longest] if longest else []:
        try:
            runner.run(SweepPoint(1, kv_len))
        except Exception as error:
            # Memory does not suffice, or the model's code fails at this length: the sweep reports the point as missing.
            if kv_len == 1 or not (is_out_of_memory(error) or line_of_model_code(error)):
                raise
            break
    runner.forget_masks()
