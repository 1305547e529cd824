"""The rows of a table as the layers that a simulator knows. No torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from llm_profile.errors import UsageError, shown
from llm_profile.points import SweepPoint
from llm_profile.store.paths import whole_name
from llm_profile.store.table import LatencyTable

LayerRows = dict[str, tuple[str, ...]]
"""Layer of a simulator -> the rows that it holds, in the order of a pass. A table must have the first row of each; a
layer without rows gets BLANK_NS."""

BLANK_NS = 1
"""Least time of a layer in ns: simulators look up layers that have no row too, and some take no 0."""

MOST_RANGES = 4
"""Ranges of missing lengths that an error names."""


def choose_layout(table: LatencyTable, layouts: Mapping[str, LayerRows], simulator: str) -> str:
    """The name of the first layout that has a place for each row of a table.

    Raises UsageError, naming the rows, where there is none, and for blocks of several kinds.
    """
    kinds = [kind["name"] for kind in table.meta["kinds"]]
    if len(kinds) > 1:
        raise UsageError(f"{table.model}: has blocks of the kinds {', '.join(kinds)}; {simulator} repeats one block")
    rows = set(table.row_names())
    why = []
    for name, layout in layouts.items():
        lacking = sorted({places[0] for places in layout.values() if places} - rows)
        unknown = sorted(rows.difference(*layout.values()))
        if not lacking and not unknown:
            return name
        problems = (("no row", lacking), ("no layer for the row", unknown))
        why.append(f"as {name}: " + ", ".join(f"{text} {', '.join(names)}" for text, names in problems if names))
    raise UsageError(f"{table.model}: its rows are not the layers of {simulator} ({'; '.join(why)})")


def degree_of(table: LatencyTable) -> int:
    """Tensor parallel degree of a table: above 1, its rows are of one rank's shard."""
    return int(table.conditions["tp"])


def model_of(table: LatencyTable) -> str:
    """The name of the model that a table, or the table of a shard, is of."""
    return whole_name(table.model, degree_of(table))


def degrees_note(tables: Iterable[LatencyTable]) -> str:
    """Which tensor parallel degrees can be simulated."""
    degrees = ", ".join(map(str, sorted({degree_of(table) for table in tables})))
    return f"tensor parallel degrees that were measured: {degrees}; collectives are in no row"


def require_one_model(tables: Sequence[LatencyTable], form: str) -> None:
    """Raises UsageError for tables of several models or GPUs, and for two of one tensor parallel degree."""
    if len({(table.hardware, model_of(table)) for table in tables}) > 1 or len({*map(degree_of, tables)}) < len(tables):
        raise UsageError(
            f"--format {form}: a folder is of one model; export one at a time, with a table for each of its tensor "
            "parallel degrees (--tp)"
        )


def layer_ns(table: LatencyTable, rows: Iterable[str], point: SweepPoint) -> int:
    """Time of a layer that holds these rows, in ns, at least BLANK_NS. Rows that the table does not have count 0.

    Raises LookupError for a point that is not in the table.
    """
    found = table.records[point].rows
    return max(BLANK_NS, sum(found[row].measurement.latency_ns for row in rows if row in found))


def require_flat(table: LatencyTable, longest_prefill: int, longest_decode: int, cure: str) -> None:
    """`require_lengths` of prompts of 1..longest_prefill tokens, and steps on histories of 1..longest_decode."""
    require_lengths(table, range(1, longest_prefill + 1), range(1, longest_decode + 1), cure)


def require_lengths(table: LatencyTable, prompts: Iterable[int], histories: Iterable[int], cure: str) -> None:
    """Raises UsageError, naming them, where a table lacks a prompt or a decode step of one sequence.

    prompts: in tokens, ascending. histories: of decode steps, the same. cure: how to ask for less.
    """
    prefill = (SweepPoint(tokens, 0) for tokens in prompts)
    decode = (SweepPoint(1, history) for history in histories)
    lacking = (
        ("input {}, kv_cache 0", [point.input_len for point in prefill if point not in table.records]),
        ("input 1, kv_cache {}", [point.kv_len for point in decode if point not in table.records]),
    )
    texts = [text.format(ranges_text(lengths)) for text, lengths in lacking if lengths]
    if texts:
        raise UsageError(
            f"{table.model} on {table.hardware}: lacks {' and '.join(texts)}; measure them with run_profile.py "
            f"--append (--grid adaptive measures 15 percent of them and fills the others in), or {cure}"
        )


def ranges_text(lengths: Sequence[int]) -> str:
    """Ascending whole numbers as ranges, the first few of them: `9..15, 17..23 (14 in all)`."""
    runs = [list(run) for _, run in groupby(enumerate(lengths), key=lambda pair: pair[1] - pair[0])]
    ends = [(run[0][1], run[-1][1]) for run in runs]
    shown = ", ".join(str(first) if first == last else f"{first}..{last}" for first, last in ends[:MOST_RANGES])
    return f"{shown}{', ...' if len(ends) > MOST_RANGES else ''} ({len(lengths)} in all)"


def moved_text(layout: LayerRows, table: LatencyTable) -> str:
    """Where a layout puts rows of a table that are no layer of the simulator."""
    rows = set(table.row_names())
    moved = {
        layer: [row for row in places if row in rows and row != layer] for layer, places in layout.items() if places
    }
    return "; ".join(f"{layer} holds {', '.join(extra)} too" for layer, extra in moved.items() if extra)


def filled_notes(table: LatencyTable) -> Iterator[str]:
    """How many points were not measured, a line if there are any."""
    filled = sum(not record.is_measured for record in table.records.values())
    if filled:
        yield f"{table.model}: {filled} of {len(table.records)} points are interpolated between measured ones"


def model_config(table: LatencyTable, fields: Iterable[Sequence[str]], simulator: str) -> Mapping[str, object]:
    """The model's configuration that a table keeps.

    fields: the numbers that the simulator reads of it, each by all names that it takes. Raises UsageError, naming it,
    for one that is not there or is no whole number of at least 1.
    """
    config: Mapping[str, object] = table.meta.get("config", {})
    lacking = [" or ".join(names) for names in fields if not any(name in config for name in names)]
    if lacking:
        raise UsageError(f"{table.model}: its configuration lacks {', '.join(lacking)}, which {simulator} reads")
    for names in fields:
        name = next(name for name in names if name in config)
        value = config[name]
        if not isinstance(value, int) or value < 1:
            raise UsageError(
                f"{table.model}: config.{name} in its .meta.json is {shown(value)}, and must be a whole number of at "
                "least 1; restore the file, or measure the table anew"
            )
    return config
