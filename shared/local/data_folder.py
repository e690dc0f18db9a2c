"""Keep a stack's settings in its data folder, so that other commands can use the same servers, model and adapters."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from shared.errors import NoStack
from shared.settings import DOTENV, Settings

# The stack's own keys, and settings of this project. HF_TOKEN stays where its owner keeps it.
_OTHER_NAMES = ("AI_TOOLKIT_PATH", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def settings_file(data: Path) -> Path:
    """Return the file in `data` that holds the stack's settings."""
    return data / "flux2.env"


def write_settings(data: Path, environment: Mapping[str, str]) -> None:
    """Write the settings among the variables to the stack's file, which its owner alone can read."""
    kept = {name: value for name, value in sorted(environment.items()) if _is_setting(name)}
    file = settings_file(data)
    fresh = file.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    # Readable by its owner only before a secret is in it, and complete before it has its name.
    fresh.touch(mode=0o600)
    lines = ["# Settings of the stack in this folder, written by `flux2 up`."]
    lines += [f"{name}={_quoted(value)}" for name, value in kept.items()]
    fresh.write_text("\n".join(lines) + "\n", encoding="utf-8")
    fresh.replace(file)


def read_settings(data: Path) -> Settings:
    """Return the settings of the stack in `data`, which win over the environment; `.env` only gives the hub's token.

    The variables become this process' environment, where boto3 looks for keys.

    Raises:
        NoStack: `flux2 up` never ran with this folder.
    """
    file = settings_file(data.expanduser())
    if not file.is_file():
        raise NoStack(f"{file} does not exist; `flux2 up --data {shlex.quote(str(data))}` writes it")
    stored = {name: value or "" for name, value in dotenv_values(file, interpolate=False).items()}
    for name in [name for name in os.environ if name.upper() in stored]:
        del os.environ[name]
    os.environ.update(stored)
    token = dotenv_values(DOTENV).get("HF_TOKEN")
    if token and not os.environ.get("HF_TOKEN"):
        os.environ["HF_TOKEN"] = token
    return Settings(_env_file=None)


def _is_setting(name: str) -> bool:
    return name.startswith("FLUX2_") or name in _OTHER_NAMES


def _quoted(value: str) -> str:
    # As python-dotenv reads it; a shell reads the same unless the value holds a quote or a backslash.
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
