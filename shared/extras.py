"""Name the extra of this package that installs a missing library."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from shared.errors import MissingExtra

if TYPE_CHECKING:
    import typer


def require_extras(libraries: Mapping[str, str]) -> None:
    """Check, without an import, that libraries are installed; the mapping has the extra of each.

    Raises:
        MissingExtra: a library is missing.
    """
    for library, extra in libraries.items():
        if find_spec(library) is None:
            raise MissingExtra(library, extra=extra)


def report_missing_modules(side: typer.Typer, *, extra: str) -> typer.Typer:
    """Make each command of a side raise `MissingExtra` instead of `ModuleNotFoundError`; return the side."""
    for command in side.registered_commands:
        if command.callback is not None:
            command.callback = _reporting(command.callback, extra)
    for group in side.registered_groups:
        if group.typer_instance is not None:
            report_missing_modules(group.typer_instance, extra=extra)
    return side


def _reporting(command: Callable[..., Any], extra: str) -> Callable[..., Any]:
    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except ModuleNotFoundError as error:
            library = (error.name or "").partition(".")[0]
            # A missing part of an installed library is a fault of that library, which needs its traceback.
            if not library or find_spec(library) is not None:
                raise
            raise MissingExtra(library, extra=extra) from error

    return run
