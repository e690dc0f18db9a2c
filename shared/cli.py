"""The `flux2` command: the commands of this host and of each installed side, and errors in one line.

The sides register their commands in the entry-point group `flux2.commands`, so this module imports neither. Each
command imports what it needs when it runs: `flux2 COMMAND --help` must not wait for libraries.
"""

from __future__ import annotations

import io
import sys
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from shared import cache_commands, commands, key_commands, provenance_commands
from shared.errors import Flux2Error
from shared.extras import report_missing_modules

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Render FLUX.2 LoRAs in bulk on your own GPUs.",
)
app.add_typer(commands.app)
app.add_typer(cache_commands.app, name="cache")
app.add_typer(key_commands.app, name="keys")
app.add_typer(report_missing_modules(provenance_commands.app, extra="provenance"), name="provenance")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flux2-queue {version('flux2-queue')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command; print an error that the caller can fix as one line, without a traceback."""
    # A prompt may hold characters that the terminal cannot show; they must not end the command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # Settings take 0.1 s to import, and these options use none.
        if not {"--help", "--version"} & set(sys.argv):
            _warn_of_unknown_settings()
        app()
    except Flux2Error as error:
        _exit_with(str(error))
    except UnicodeDecodeError as error:
        _exit_with(f".env is not UTF-8 text: {error.reason} at byte {error.start}; save it as UTF-8")
    except ValueError as error:
        from shared.setting_problems import describe_problem

        problem = describe_problem(error)
        if problem is None:
            raise
        _exit_with(problem)


def _warn_of_unknown_settings() -> None:
    from shared.unknown_settings import find_unknown_settings

    for name, suggestion in find_unknown_settings().items():
        hint = f"did you mean {suggestion}?" if suggestion else "docs/reference/settings.md lists all settings"
        _print_error(f"unknown setting {name} is ignored; {hint}", style="yellow")


def _exit_with(message: str) -> None:
    _print_error(message, style="red")
    sys.exit(1)


def _print_error(message: str, *, style: str) -> None:
    from rich.console import Console

    from shared.visible_text import escape_block

    # Messages hold paths and keys from files; Rich must neither style nor wrap them.
    # The end of a process' log has lines, which stay.
    text = escape_block(message, indent="  ")
    Console(stderr=True).print(text, style=style, markup=False, highlight=False, soft_wrap=True)


for _side in entry_points(group="flux2.commands"):
    # Each side has the name of the extra that installs its libraries.
    app.add_typer(report_missing_modules(_side.load(), extra=_side.name))

if __name__ == "__main__":
    main()
