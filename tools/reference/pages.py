"""Which files of the repository have parts that are written from the code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from shared.ledger import Ledger
from tools.reference import calls, command_line, error_codes, metric_list, setting_list, webhook_events
from tools.reference.markdown import replace_part

ROOT: Final = Path(__file__).parents[2]


def render_files(ledger: Ledger) -> dict[Path, str]:
    """Return the text that each generated file should have.

    Args:
        ledger: any, also an empty one; the API's metrics are read from it.

    Raises:
        ValueError: a page has no place for a part, or an error code has no explanation.
    """
    reference = ROOT / "docs/reference"
    parts: Mapping[Path, Mapping[str, Callable[[], str]]] = {
        reference / "settings.md": {"settings": setting_list.write_tables},
        reference / "errors.md": {"codes": error_codes.write_list},
        reference / "webhooks.md": {"events": webhook_events.write_events},
        reference / "metrics.md": {
            "metrics of the ledger": lambda: metric_list.write_ledger_table(ledger),
            "metrics of the processes": lambda: metric_list.write_reported_table(ledger),
        },
    }
    found = {
        reference / "cli.md": command_line.write_page(),
        reference / "calls.md": calls.write_page(),
        ROOT / ".env.example": setting_list.write_example(),
    }
    for file, writers in parts.items():
        text = file.read_text()
        for name, write in writers.items():
            text = replace_part(text, name, write())
        found[file] = text
    return found
