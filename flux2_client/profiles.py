"""Find the API that commands use: an option, a variable, or a profile in a config file."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from shared.errors import ClientConfigRefused

DEFAULT_URL = "http://127.0.0.1:8000"


def find_url(url: str | None, profile: str | None) -> str:
    """Return the API's address: from the options, else from the environment, else from the file's default profile.

    Raises:
        ClientConfigRefused: the config file is unsound, or lacks the profile.
    """
    # Not in `Settings`: a mistake in the settings of a service on this host must not stop a client.
    if not (url or profile):
        url, profile = os.environ.get("FLUX2_CLIENT_URL"), os.environ.get("FLUX2_CLIENT_PROFILE")
    if url:
        return url
    file = config_file()
    config = _read(file)
    name = profile or config.get("default")
    return DEFAULT_URL if name is None else _profile_url(config, str(name), file)


def config_file() -> Path:
    """Return the path of the config file, which need not exist."""
    # The folder is the desktop's convention, not a setting of this project.
    folder = os.environ.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "flux2" / "config.toml"


def _read(file: Path) -> dict[str, Any]:
    try:
        # Some editors of Windows begin a file with a byte order mark.
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ClientConfigRefused(f"{file} cannot be read: {error}") from error


def _profile_url(config: dict[str, Any], name: str, file: Path) -> str:
    profiles = config.get("profiles")
    found = profiles.get(name) if isinstance(profiles, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("url"), str):
        raise ClientConfigRefused(
            f'{file} has no url for the profile {name!r}; add the section [profiles.{name}] with url = "http://..."'
        )
    return str(found["url"])
