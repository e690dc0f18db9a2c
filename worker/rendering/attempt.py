"""The attempts at one item: an item that does not fit into memory is rendered again in ways that need less."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from shared.job import AdapterRef, AdapterReport, ItemSpec, PipelineReport, Progress
from worker.rendering.engine import Engine

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Attempt:
    """One way to render an item.

    Attributes:
        alone: no swap is begun for the next item, so none takes memory from this one.
        tiled: the image is decoded in tiles, if the engine supports that.
    """

    name: str
    exclusive: bool
    tiled: bool


FIRST_ATTEMPT = Attempt("as usual", exclusive=False, tiled=False)
EXCLUSIVE_ATTEMPT = Attempt("alone", exclusive=True, tiled=False)
TILED_ATTEMPT = Attempt("in tiles", exclusive=True, tiled=True)

#: Each is made when the one before ran out of memory. An engine without tiles still profits from the freed memory.
ATTEMPTS = (FIRST_ATTEMPT, EXCLUSIVE_ATTEMPT, TILED_ATTEMPT)


@dataclass(frozen=True)
class RenderedImage:
    """One finished image and how it was made.

    Attributes:
        timings: seconds by stage: encode_prompt, adapter, denoise, decode.
        adapters: what each adapter did, in merge order.
    """

    image: Image.Image
    timings: dict[str, float]
    adapters: tuple[AdapterReport, ...]
    pipeline: PipelineReport


@dataclass(kw_only=True)
class RenderingItem:
    """An item while it renders, through all of its attempts.

    Attributes:
        files: its adapters, in merge order.
        shares_memory: whether a swap for another item has taken memory from this one.
        timings: see `RenderedImage`; of the last attempt.
    """

    spec: ItemSpec
    files: tuple[tuple[AdapterRef, Path], ...]
    engine: Engine
    on_progress: OnProgress
    device: torch.device
    shares_memory: bool = False
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def device_name(self) -> str:
        """The device and, for a GPU, its model."""
        name = str(self.device)
        return f"{name} {torch.cuda.get_device_name(self.device)}" if self.device.type == "cuda" else name

    def report(self, stage: str, step: int = 0) -> None:
        """Report progress; what `on_progress` raises ends the attempt."""
        self.on_progress(Progress(stage=stage, step=step, steps=self.spec.num_inference_steps))

    @contextmanager
    def stage(self, name: str, *, timing: str, step: int = 0) -> Iterator[None]:
        """Report that a stage begins, and measure it until the device has done its work."""
        self.report(name, step)
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            # Only the current stream: weights that are on their way in another one are not part of this stage.
            torch.cuda.current_stream(self.device).synchronize()
        self.timings[timing] = time.perf_counter() - started

    def can_differ(self, attempt: Attempt) -> bool:
        """Whether an attempt can succeed where the one before it failed."""
        return attempt is not EXCLUSIVE_ATTEMPT or self.shares_memory
