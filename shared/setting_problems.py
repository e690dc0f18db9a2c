"""Describe in one line why the settings cannot be used."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_settings import SettingsError


def describe_problem(error: ValueError) -> str | None:
    """Return what is wrong with a setting, by its variable, or None if the error is about something else."""
    if isinstance(error, SettingsError):
        return f"{error}; settings are named FLUX2_<SECTION>_<NAME>"
    if not isinstance(error, ValidationError):
        return None
    problem = error.errors()[0]
    reason = problem["msg"].removeprefix("Value error, ")
    path = "_".join(str(part) for part in problem["loc"]).upper()
    # A check across several settings names them in its message.
    return reason if reason.startswith("FLUX2_") else f"FLUX2_{path}: {reason}"
