"""Read the config that PEFT stores in an adapter's folder."""

from __future__ import annotations

from pathlib import Path

from shared.adapters.strength import CONFIG_NAME, PEFT_FILE
from shared.errors import AdapterRefused

# PEFT's own configs have about 1 kB, with patterns for every layer of FLUX.2 [dev] 30 kB.
_MAX_BYTES = 1024**2


def read_peft_config(path: Path) -> str | None:
    """Return the text of `adapter_config.json` from the folder of PEFT's `adapter_model.safetensors`, or None.

    Raises:
        AdapterRefused: the config has more than 1 MiB or is not UTF-8.
    """
    config = path.with_name(CONFIG_NAME)
    if path.name != PEFT_FILE or not config.is_file():
        return None
    try:
        with config.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise AdapterRefused(f"{CONFIG_NAME} has more than {_MAX_BYTES} bytes; export the adapter again")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterRefused(f"{CONFIG_NAME} cannot be read: {error}; export the adapter again") from error
