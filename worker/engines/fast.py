"""The engine over float8 weights, see `worker.pipeline.fast`: this project's loop, and other bits."""

from __future__ import annotations

from typing import ClassVar

from shared.job import Engine as EngineName
from worker.engines.exact import Exact


class Fast(Exact):
    """Runs the modules of `components`."""

    name: ClassVar[EngineName] = "fast"
