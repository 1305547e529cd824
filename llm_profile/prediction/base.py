"""How long a row takes by its work and a card's figures: the base that a learned correction multiplies. No torch.

Each formula falls where bandwidth, rate, clock or L2 grow, and where multiprocessors of the same rate are added. None
is below the floor of the card: the least bytes over its bandwidth, the least FLOPs over its rate.
"""

from collections.abc import Callable
from functools import lru_cache

from llm_profile.prediction.card import Card
from llm_profile.prediction.row_work import RowWork

TILES: tuple[tuple[int, int, float], ...] = (
    # rows and columns of the result that a block computes, and the share of the largest tile's rate that it reaches
    (16, 64, 0.50),
    (32, 64, 0.55),
    (64, 64, 0.65),
    (64, 128, 0.78),
    (128, 128, 0.93),
    (128, 256, 1.0),
)
INNER_SPLITS = (1, 2, 4, 8)
"""Into how many parts the inner dimension of a product is divided, for more blocks than the result has tiles."""

FILL = 0.6
"""Of the last wave's idle part, what is lost: blocks end at different times, and two may share a multiprocessor."""

BLOCKS_FOR_BANDWIDTH = 0.7
"""Blocks per multiprocessor from which on memory is fully used."""

PRODUCT_LAUNCHES = 2.2
"""What a product of nothing takes, in the smallest kernels: filling its pipeline, and writing results."""

SHARPNESS = 4.0
"""Of the maximum of two times that overlap: (a^4 + b^4)^(1/4), 19 % above each where both are equal."""

VECTOR_BYTES = 16.0
"""Bytes that an elementwise kernel of PyTorch moves per clock and multiprocessor at most."""

ATTENTION_SHARE = {"Hopper": 0.48}
"""Of the rate of mma instructions, what prompts reach in attention, by generation."""

OTHER_ATTENTION_SHARE = 0.78
"""The same where no table tells: tiles of 64 x 64, of which two blocks share a multiprocessor."""

MASKED_SHARE = {"Hopper": 0.3}
OTHER_MASKED_SHARE = 0.5
"""Both again for attention with a mask, which also computes what it masks."""

GROUPED_BANDWIDTH = 0.63
"""Of the bandwidth that a product reaches, what one kernel for all experts does: 2.4 to 2.8 TB/s on an H200."""

DISPATCH_SLOWER = 1.35
"""Sorting, counting and scanning tokens of experts take longer than the smallest kernel."""

ATTENTION_TILE = 64
"""Tokens of a tile of attention."""

TILE_CLOCKS = 900
"""Least clocks of a tile of keys in a decode step: its loads are waited for."""


def overlapped(*times_ns: float) -> float:
    """The time of parts that overlap: a maximum without a corner."""
    return float(sum(time**SHARPNESS for time in times_ns) ** (1 / SHARPNESS))


def floor_ns(work: RowWork, card: Card) -> float:
    """The least that this work can take on a card."""
    return 1e9 * max(work.bytes / card.bandwidth_bytes_per_sec, work.flops / card.flops_per_sec)


@lru_cache(maxsize=1 << 17)
def base_ns(work: RowWork, card: Card) -> float:
    """Never below the floor, and never below the smallest kernel."""
    time: float = BASES[work.category](work, card)
    return max(time, floor_ns(work, card), card.launch_ns)


def _memory_ns(moved: float, kernels: int, card: Card, slower: float = 1.0) -> float:
    """Of values that kernels hand to each other: by L2 where they fit into it, else by memory.

    slower: by what factor everything takes longer that is not memory.
    """
    each = moved / max(kernels, 1)
    missed = each**2 / (each**2 + (0.7 * card.l2_bytes) ** 2) if each else 0.0
    memory = card.bandwidth_bytes_per_sec * card.shares.bandwidth
    by_cores = moved / (VECTOR_BYTES * card.multiprocessors * card.clock_hz)
    return 1e9 * overlapped(missed * moved / memory, slower * moved / card.l2_bytes_per_sec, slower * by_cores)


def small_kernels_ns(work: RowWork, card: Card, slower: float = 1.0) -> float:
    """Of kernels that move values and compute little. slower: by what factor launches, L2 and cores take longer."""
    launches = slower * max(work.launches, 1) * card.launch_ns
    return launches + _memory_ns(work.moved, work.launches, card, slower)


def product_ns(rows: int, given: int, taken: int, groups: int, bytes_moved: float, card: Card) -> float:
    """Of `groups` products side by side, [rows, taken] x [taken, given], by the best of TILES and INNER_SPLITS."""
    candidates = (
        _tiled_ns(rows, given, taken, groups, bytes_moved, card, tile, split)
        for tile in TILES
        for split in INNER_SPLITS
    )
    return PRODUCT_LAUNCHES * card.launch_ns + min(candidates)


def _tiled_ns(
    rows: int,
    given: int,
    taken: int,
    groups: int,
    bytes_moved: float,
    card: Card,
    tile: tuple[int, int, float],
    split: int,
) -> float:
    tall, wide, share = tile
    blocks = groups * -(-rows // tall) * -(-given // wide) * split
    whole = blocks / card.multiprocessors
    waves = max(1.0, whole + FILL * (-(-blocks // card.multiprocessors) - whole))
    of_block = 2.0 * tall * wide * taken / split
    per_multiprocessor = card.flops_per_sec * card.shares.products * share / card.multiprocessors
    used = min(1.0, blocks / (BLOCKS_FOR_BANDWIDTH * card.multiprocessors))
    memory = bytes_moved / (card.bandwidth_bytes_per_sec * card.shares.bandwidth * used)
    partial = 0.0
    if split > 1:
        partial = card.launch_ns + 1e9 * 8.0 * rows * given * groups * split / card.l2_bytes_per_sec
    return 1e9 * overlapped(waves * of_block / per_multiprocessor, memory) + partial


def _product(work: RowWork, card: Card) -> float:
    return product_ns(work.rows, work.given, work.taken, 1, work.bytes, card)


def _experts(work: RowWork, card: Card) -> float:
    """Gate and up as one product, then down; in one kernel for all experts, or one after another."""
    one = work.bytes / work.groups
    groups, calls = (1, work.groups) if card.shares.separate_experts else (work.groups, 1)
    one /= 1.0 if card.shares.separate_experts else GROUPED_BANDWIDTH
    both = product_ns(work.rows, 2 * work.given, work.taken, groups, one * groups * 2 / 3, card)
    down = product_ns(work.rows, work.taken, work.given, groups, one * groups / 3, card)
    return small_kernels_ns(work, card, DISPATCH_SLOWER) + calls * (both + down)


def _attention(work: RowWork, card: Card) -> float:
    """Blocks of a tile of queries each, which go over the tiles of keys before it."""
    share = ATTENTION_SHARE.get(card.shares.generation, OTHER_ATTENTION_SHARE)
    size, heads = work.taken, work.given
    queries, keys = -(-work.tokens // ATTENTION_TILE), -(-work.total // ATTENTION_TILE)
    tile = 4.0 * ATTENTION_TILE**2 * size
    per_multiprocessor = card.flops_per_sec * card.shares.mma * share / card.multiprocessors
    pairs = queries * (2 * keys - queries + 1) / 2
    longest = keys * tile / per_multiprocessor
    all_of_it = heads * pairs * tile / (per_multiprocessor * card.multiprocessors)
    return PRODUCT_LAUNCHES * card.launch_ns * max(work.launches, 1) + 1e9 * overlapped(longest, all_of_it)


def _decode(work: RowWork, card: Card) -> float:
    """One query a head: each head reads its keys and values by L2, and memory gives them once."""
    memory = work.bytes / (card.bandwidth_bytes_per_sec * card.shares.bandwidth)
    tiles = -(-work.total // (2 * ATTENTION_TILE)) * work.given / (2 * card.multiprocessors)
    waited = max(1.0, tiles) * TILE_CLOCKS / card.clock_hz
    read = overlapped(memory, work.moved / card.l2_bytes_per_sec) + waited
    return PRODUCT_LAUNCHES * card.launch_ns * (2 if work.total > ATTENTION_TILE else 1) + 1e9 * read


def _masked(work: RowWork, card: Card) -> float:
    """Attention with a mask computes all pairs, and each head copies its keys and values first."""
    pairs = -(-work.tokens // ATTENTION_TILE) * ATTENTION_TILE * work.total
    share = MASKED_SHARE.get(card.shares.generation, OTHER_MASKED_SHARE)
    rate = card.flops_per_sec * card.shares.mma * share
    keys = -(-work.total // ATTENTION_TILE) * 5 * TILE_CLOCKS / card.clock_hz
    copies = _memory_ns(2 * work.moved, work.launches, card)
    computed = overlapped(4.0 * work.given * work.taken * pairs / rate, keys)
    return max(work.launches, 1) * card.launch_ns + copies + 1e9 * computed


BASES: dict[str, Callable[..., float]] = {
    "product": _product,
    "experts": _experts,
    "attention": _attention,
    "decode": _decode,
    "masked": _masked,
    "router": small_kernels_ns,
    "memory": small_kernels_ns,
}
"""Category of a row's work -> its formula."""
