"""The attempts at one item: an item that runs out of memory is rendered again in ways that need less memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from shared.errors import OutOfMemory
from shared.job import AdapterRef, AdapterReport, ItemSpec, PipelineReport, Progress, ReferenceReport, TokenReport
from worker.rendering.engine import Engine
from worker.rendering.latents import PIXELS
from worker.step_previews import PreviewSink

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Attempt:
    """One way to render an item.

    Attributes:
        exclusive: whether the swap of the next item must wait until this item has rendered.
        tiled: whether to decode the image in tiles, if the engine supports that.
    """

    name: str
    exclusive: bool
    tiled: bool


FIRST_ATTEMPT = Attempt("as usual", exclusive=False, tiled=False)
EXCLUSIVE_ATTEMPT = Attempt("alone", exclusive=True, tiled=False)
TILED_ATTEMPT = Attempt("in tiles", exclusive=True, tiled=True)

#: Each attempt follows one that ran out of memory. An engine without tiles still profits from the freed memory.
ATTEMPTS = (FIRST_ATTEMPT, EXCLUSIVE_ATTEMPT, TILED_ATTEMPT)


@dataclass(frozen=True)
class RenderedImage:
    """One finished image and how it was made.

    Attributes:
        timings: seconds by stage: encode_prompt, adapter, denoise, decode; fetch_references and encode_references, if
            the item has references.
        adapters: the effect of each adapter, in merge order.
        warnings, references: see `ItemResult`.
    """

    image: Image.Image
    timings: dict[str, float]
    adapters: tuple[AdapterReport, ...]
    pipeline: PipelineReport
    tokens: TokenReport
    warnings: tuple[str, ...] = ()
    references: tuple[ReferenceReport, ...] = ()


@dataclass(kw_only=True)
class RenderingItem:
    """An item while it renders, through all of its attempts.

    Attributes:
        files: the adapters' files, in merge order.
        previews: takes pictures of what the image will look like; None if nobody does.
        shares_memory: whether a swap for another item has used memory during this one.
        timings: seconds of the last attempt by stage; see `RenderedImage`.
        references: the reference images, once they are loaded.
    """

    spec: ItemSpec
    files: tuple[tuple[AdapterRef, Path], ...]
    engine: Engine
    on_progress: OnProgress
    device: torch.device
    previews: PreviewSink | None = None
    shares_memory: bool = False
    timings: dict[str, float] = field(default_factory=dict)
    references: Sequence[ReferenceReport] = ()

    @property
    def tokens_of_image(self) -> int:
        """Number of tokens of the image that is denoised."""
        return (self.spec.width // PIXELS) * (self.spec.height // PIXELS)

    @property
    def device_name(self) -> str:
        """The device and, for a GPU, its model."""
        name = str(self.device)
        return f"{name} {torch.cuda.get_device_name(self.device)}" if self.device.type == "cuda" else name

    def too_large(self, reason: str, *, ends_process: bool = False) -> OutOfMemory:
        """Return the error that says that the item does not fit on the device."""
        size, remedy = f"{self.spec.width}x{self.spec.height}", "request a smaller size"
        if self.references:
            sizes = ", ".join(f"{reference.width}x{reference.height}" for reference in self.references)
            size, remedy = f"{size} with references of {sizes}", f"{remedy}, or fewer or smaller references"
        return OutOfMemory(f"{size} does not fit on {self.device_name}: {reason}; {remedy}", ends_process=ends_process)

    def report(self, stage: str, step: int = 0) -> None:
        """Report progress; an error that `on_progress` raises ends the attempt."""
        self.on_progress(Progress(stage=stage, step=step, steps=self.spec.num_inference_steps))

    @contextmanager
    def stage(self, name: str, *, timing: str, step: int = 0) -> Iterator[None]:
        """Report that a stage begins, and measure it until the device has done its work."""
        self.report(name, step)
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            # Only the current stream: weights that another stream copies are not part of this stage.
            torch.cuda.current_stream(self.device).synchronize()
        self.timings[timing] = time.perf_counter() - started

    def can_differ(self, attempt: Attempt) -> bool:
        """Whether an attempt can succeed after the previous one failed."""
        # Rendering exclusively changes nothing if no other item's swap used memory.
        return attempt is not EXCLUSIVE_ATTEMPT or self.shares_memory
