"""Write counts in messages for people."""

from __future__ import annotations


def counted(count: int, one: str, many: str) -> str:
    """Return e.g. "1 item is" or "2 items are"."""
    return f"{count} {one if count == 1 else many}"
