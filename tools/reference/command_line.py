"""The page of the `flux2` command: every command with its arguments and options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import typer
import typer.main

from shared.cli import app
from tools.reference.markdown import code, paragraphs, plain, table

_HEAD: Final = """# Command line

Every command of `flux2` with its options. [The command line and the Python client](../client.md) explains those that
use the API, and [operations](../operations.md) those for operators. An option whose type begins with `list` may be
repeated. `python -m tools.reference` writes this page from the code.
"""


def write_page() -> str:
    """Return the page."""
    command: Any = typer.main.get_command(app)
    parts = [_HEAD, *(part for name in sorted(command.commands) for part in _describe(command.commands[name], name))]
    return "\n".join(parts)


def _describe(command: Any, name: str) -> Iterator[str]:
    context = typer.Context(command, info_name=f"flux2 {name}")
    yield f"## flux2 {name}\n\n{plain(paragraphs(command.help or ''))}\n"
    inner = getattr(command, "commands", {})
    # A group may have options of its own.
    if shown := [parameter for parameter in command.params if not parameter.hidden]:
        usage = command.get_usage(context).removeprefix("Usage: ")
        yield f"```text\n{' '.join(usage.split())}\n```\n"
        yield table(["option", "meaning"], (_record(parameter, context) for parameter in shown))
    for each in sorted(inner):
        yield from _describe(inner[each], f"{name} {each}")


def _record(parameter: Any, context: typer.Context) -> tuple[str, str]:
    names, text = parameter.get_help_record(context)
    # Without Rich, nothing removes the backslash that keeps words in brackets.
    return code(names), plain(text.replace(r"\[", "["))
