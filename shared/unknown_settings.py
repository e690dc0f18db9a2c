"""Find misspelt settings: pydantic ignores unknown variables, so nobody would notice a typing error."""

from __future__ import annotations

import difflib
import os

from dotenv import dotenv_values
from pydantic import BaseModel

from shared.settings import DOTENV, Settings


def find_unknown_settings() -> dict[str, str | None]:
    """Return each unknown `FLUX2_*` variable, sorted, with the most similar setting, or None if none is similar."""
    known = {
        f"FLUX2_{section}_{name}".upper()
        for section, info in Settings.model_fields.items()
        if isinstance(info.default, BaseModel)
        for name in type(info.default).model_fields
    }
    # Settings holds only the variables that it knows, so the environment itself is read here.
    names = {name.upper() for name in (*os.environ, *dotenv_values(DOTENV))}
    unknown = sorted(name for name in names if name.startswith("FLUX2_") and name not in known)
    return {name: next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.8)), None) for name in unknown}
