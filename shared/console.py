"""Print for people on a terminal, and unfolded lines for files and pipes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared.visible_text import escape_controls

_WIDEST = 40


class LineConsole(Console):
    """A console that wraps text to the terminal's width, and never folds or cuts what is piped."""

    def print_line(self, text: str) -> None:
        """Print text without markup or colours, and never folded, so that paths and URLs can be copied.

        Characters that would command the terminal are shown escaped: answers hold texts of other people.
        """
        self.print(escape_controls(text), markup=False, highlight=False, soft_wrap=True)

    def print_aligned(self, rows: Sequence[Sequence[str]]) -> None:
        """Print one line for each row, in columns and never folded."""
        rows = [[escape_controls(cell) for cell in row] for row in rows]
        # One long cell must not move the cells behind it out of sight in all rows.
        widths = [min(max(map(len, cells)), _WIDEST) for cells in zip(*rows, strict=True)]
        for row in rows:
            self.print_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def print_rows(self, rows: Sequence[Sequence[str]], *, styles: Sequence[str] = ()) -> None:
        """Print rows in columns. A terminal folds long cells inside their column; a pipe gets one line for each row.

        Args:
            styles: Rich style of the first cell of each row; empty for none.
        """
        if not self.is_terminal:
            self.print_aligned(rows)
            return
        table = Table(show_header=False, box=None)
        for _ in rows[0] if rows else ():
            table.add_column(overflow="fold")
        for row, style in zip(rows, styles or [""] * len(rows), strict=True):
            first, *rest = (escape(escape_controls(cell)) for cell in row)
            table.add_row(f"[{style}]{first}[/]" if style else first, *rest)
        self.print(table)
