"""Show a fleet on a terminal: a summary, a line for each slot, and the queue by tenant and adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flux2_client.fleet import Fleet
from flux2_client.models import QueueLine, Slot, SlotItem
from shared.visible_text import escape_controls

Row = list[RenderableType]

_STYLES = {"faulty": "bold red", "draining": "yellow", "busy": "green", "ready": "cyan"}
# Two lines of the summary, an empty one before each table, the tables' headings, and the last line.
_FIXED_LINES = 7
_LEAST_LINES = 3
_ID_CHARACTERS = 8
_BAR_WIDTH = 12
# Narrower terminals show no bars.
_WITH_BARS = 90
_LEAST_ADAPTERS = 8
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class FleetView:
    """A fleet as it fits the terminal; what does not fit is counted.

    Attributes:
        source: address of the API.
        time: when the fleet was read.
        failure: why the last attempt to read it failed; empty if it did not.
        hint: the last line.
        first: number of slots that are scrolled out at the top.
    """

    fleet: Fleet
    source: str
    time: str
    failure: str = ""
    hint: str = ""
    first: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text.assemble(("flux2 top", "bold"), f"  {escape_controls(self.source)}  {self.time}", no_wrap=True)
        if self.failure:
            yield Text(escape_controls(self.failure), style="bold red", no_wrap=True, overflow="ellipsis")
        else:
            yield Text(describe_fleet(self.fleet), no_wrap=True, overflow="ellipsis")
        slots = [_slot_row(slot) for slot in self.fleet.slots[self.first :]]
        slot_lines, queue_lines = self._share_lines(options.height, len(slots) + bool(self.fleet.left_out))
        yield ""
        yield _table(SLOT_COLUMNS, _fit(slots, slot_lines, left_out=self.fleet.left_out), width=options.max_width)
        yield ""
        yield _table(
            QUEUE_COLUMNS,
            _fit(list(_queue_rows(self.fleet.lines_by_tenant())), queue_lines),
            width=options.max_width,
        )
        yield Text(self.hint, style="dim", no_wrap=True)

    def _share_lines(self, height: int | None, slots: int) -> tuple[int | None, int | None]:
        """Return the lines for slots and for the queue; None for as many as they have."""
        if height is None:
            return None, None
        free = max(2 * _LEAST_LINES, height - _FIXED_LINES)
        # Half of the screen for each, unless one of them needs less.
        for_queue = max(_LEAST_LINES, free - slots, min(len(self.fleet.queue.data), free // 2))
        return max(_LEAST_LINES, free - for_queue), for_queue


#: Headings of `slot_cells`.
SLOT_COLUMNS = ("slot", "state", "gpu", "adapters", "tenant", "image", "stage", "step")
#: Headings of `queue_cells`.
QUEUE_COLUMNS = ("tenant", "adapters", "model", "waiting", "running")
_NUMBERS = frozenset({"step", "waiting", "running"})


def describe_fleet(fleet: Fleet) -> str:
    """Return the summary: slots by state, waiting and running images, and the rate."""
    queue = fleet.queue
    states = ", ".join(f"{count:,} {escape_controls(state)}" for state, count in queue.slot_states.items())
    slots = f"{queue.slots:,} {'slot' if queue.slots == 1 else 'slots'}"
    parts = [f"{slots} ({states})" if states else slots, f"{queue.queued:,} waiting", f"{queue.running:,} running"]
    parts.append(f"{queue.images_per_minute:g} images/min")
    if queue.queued and fleet.drain_s is not None:
        parts.append(f"queue empty in {describe_seconds(fleet.drain_s)}")
    return "   ".join(parts)


def describe_seconds(seconds: float) -> str:
    """Return a duration in its two largest units, e.g. `2 h 5 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 60:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def slot_cells(slot: Slot) -> list[str]:
    """Return the cells of a slot as texts; see `SLOT_COLUMNS`."""
    item = slot.item
    state = f"{slot.state}, {slot.corrupted} corrupted" if slot.corrupted else slot.state
    cells = [slot.name, state, _gpu(slot), _short(slot.adapters or "-")]
    cells += ["-"] * 4 if item is None else [item.tenant, _image(item), item.stage or "claimed", _steps(item)]
    return [escape_controls(cell) for cell in cells]


def queue_cells(line: QueueLine) -> list[str]:
    """Return the cells of a line of the queue as texts; see `QUEUE_COLUMNS`."""
    model = line.model if line.engine == "exact" else f"{line.model} {line.engine}"
    adapters = "(others)" if line.adapters is None else _short(line.adapters)
    return [
        *(escape_controls(cell) for cell in (line.tenant, adapters, model)),
        f"{line.queued:,}",
        f"{line.running:,}",
    ]


def _slot_row(slot: Slot) -> Row:
    cells: Row = [_cell(cell) for cell in slot_cells(slot)]
    style = "bold red" if slot.corrupted else _STYLES.get(slot.state, "")
    cells[1] = Text(slot_cells(slot)[1], style=style)
    item = slot.item
    return [*cells, _bar(item.step, item.steps) if item and item.steps else ""]


def _queue_rows(lines: Sequence[QueueLine]) -> Iterator[Row]:
    most = max((line.queued for line in lines), default=0)
    tenant = None
    for line in lines:
        cells: Row = [_cell(cell) for cell in queue_cells(line)]
        if line.tenant == tenant:
            cells[0] = ""
        tenant = line.tenant
        yield [*cells, _bar(line.queued, most) if line.queued else ""]


def _bar(part: int, whole: int) -> ProgressBar:
    return ProgressBar(whole, part, width=_BAR_WIDTH, complete_style="cyan", finished_style="cyan")


def _table(columns: Sequence[str], rows: Sequence[Row], *, width: int) -> Table:
    if width >= _WITH_BARS:
        columns = (*columns, "")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=False)
    for name in columns:
        # Long names of adapters give way to the other cells, which Rich shortens last.
        is_flexible = name == "adapters"
        table.add_column(
            name,
            no_wrap=not is_flexible,
            overflow="ellipsis",
            min_width=_LEAST_ADAPTERS if is_flexible else None,
            justify="right" if name in _NUMBERS else "left",
        )
    for row in rows:
        table.add_row(*row[: len(columns)])
    return table


def _fit(rows: list[Row], lines: int | None, *, left_out: int = 0) -> list[Row]:
    """Return the rows that fit in so many lines; a last one counts the others, and those that were left out before."""
    if (lines is None or len(rows) <= lines) and not left_out:
        return rows
    shown = rows if lines is None else rows[: lines - 1]
    return [*shown, [_more(len(rows) - len(shown) + left_out)]]


def _cell(text: str) -> Text:
    # Its own setting: the column of adapters would fold it otherwise.
    return Text(text, no_wrap=True, overflow="ellipsis")


def _more(count: int) -> Text:
    return Text(f"and {count:,} more", style="dim")


def _short(adapters: str) -> str:
    return " + ".join(name.removesuffix(_SUFFIX) for name in adapters.split(" + "))


def _gpu(slot: Slot) -> str:
    """Return how busy a GPU is, and its memory in use."""
    used, memory = slot.gpu_memory_used_bytes, slot.memory_bytes
    parts = ["" if slot.gpu_utilization is None else f"{slot.gpu_utilization:.0%}"]
    if used is not None:
        parts.append(f"{used / 1e9:.0f}/{memory / 1e9:.0f} GB" if memory else f"{used / 1e9:.0f} GB")
    return " ".join(filter(None, parts)) or "-"


def _image(item: SlotItem) -> str:
    return f"{item.request_id[:_ID_CHARACTERS]}:{item.index}"


def _steps(item: SlotItem) -> str:
    return f"{item.step}/{item.steps}" if item.steps else "-"
