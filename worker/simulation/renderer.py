"""Stand in for a renderer: take as long as one, and draw a picture that says that it is simulated."""

from __future__ import annotations

import io
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from shared.job import AdapterReport, ItemSpec, PipelineReport, Progress, ReferenceReport, TokenReport
from shared.references import LoadReference
from worker.simulation import SIMULATED
from worker.step_previews import PreviewSink

# Parts of a step's time, as measured at 1024x1024 on an H100 (docs/performance.md): encoding a prompt, swapping an
# adapter, decoding.
_ENCODE_STEPS, _SWAP_STEPS, _DECODE_STEPS = 0.1, 0.7, 0.1
_PIXELS_OF_A_STEP = 1024 * 1024
_PREVIEW_PIXELS = 128
_BLUR_PIXELS = 12
_WARNING = "simulated: no model drew this image"


@dataclass(frozen=True)
class SimulatedImage:
    """See `worker.rendering.attempt.RenderedImage`."""

    image: Image.Image
    pipeline: PipelineReport
    timings: dict[str, float]
    references: tuple[ReferenceReport, ...]
    adapters: tuple[AdapterReport, ...] = ()
    tokens: TokenReport | None = None
    warnings: tuple[str, ...] = (_WARNING,)


@dataclass(frozen=True)
class SimulatedPreview:
    """A blurred copy of a picture, which gets sharper with the share of the steps that are done."""

    picture: Image.Image
    share: float
    is_ready: bool = True

    def image(self) -> Image.Image:
        small = self.picture.copy()
        small.thumbnail((_PREVIEW_PIXELS, _PREVIEW_PIXELS))
        return small.filter(ImageFilter.GaussianBlur(_BLUR_PIXELS * (1 - self.share)))


class SimulatedRenderer:
    """Waits as long as a renderer would work.

    Args:
        step_s: seconds of a step at 1024x1024; other sizes take more or less by their pixels.
    """

    def __init__(self, step_s: float, *, load_reference: LoadReference) -> None:
        self.warm_key = "base"
        self.corrupted = 0
        self._step_s = step_s
        self._load_reference = load_reference
        self._encoded: str | None = None

    def render(
        self,
        spec: ItemSpec,
        adapters: Sequence[Path],
        *,
        on_progress: Callable[[Progress], None],
        previews: PreviewSink | None = None,
    ) -> SimulatedImage:
        """Draw the labelled picture of an item, in the time that its steps, prompt and adapters take."""
        timings: dict[str, float] = {}

        def spend(stage: str, steps: float, *, step: int = 0) -> None:
            on_progress(Progress(stage=stage, step=step, steps=spec.num_inference_steps))
            began = time.perf_counter()
            threading.Event().wait(steps * self._step_s)
            timings[stage] = timings.get(stage, 0.0) + time.perf_counter() - began

        spend("encode", 0 if spec.prompt == self._encoded else _ENCODE_STEPS)
        self._encoded = spec.prompt
        is_warm, self.warm_key = spec.adapter_key == self.warm_key, spec.adapter_key
        spend("adapter", 0 if is_warm else _SWAP_STEPS)
        references = tuple(self._report_reference(ref.slot, ref.sha256) for ref in spec.references)
        size, steps = spec.width * spec.height / _PIXELS_OF_A_STEP, spec.num_inference_steps
        for step in range(1, steps + 1):
            if previews is not None and previews.is_due(step, steps):
                previews.offer(SimulatedPreview(_draw(spec), share=step / steps), step=step, steps=steps)
            spend("denoise", size, step=step)
        spend("decode", size * _DECODE_STEPS, step=spec.num_inference_steps)
        timings["encode_prompt"] = timings.pop("encode")
        return SimulatedImage(_draw(spec), _report(spec, is_warm=is_warm), timings, references)

    def prepare(self, spec: ItemSpec, adapters: Sequence[Path], *, between: Callable[[], None]) -> None:
        """Prepare nothing: the picture needs no adapter."""

    def _report_reference(self, slot: int, digest: str) -> ReferenceReport:
        with Image.open(io.BytesIO(self._load_reference(digest))) as image:
            return ReferenceReport(slot=slot, sha256=digest, width=image.width, height=image.height)


def _report(spec: ItemSpec, *, is_warm: bool) -> PipelineReport:
    return PipelineReport(
        engine=SIMULATED,
        precision=SIMULATED,
        base_revision=SIMULATED,
        device=SIMULATED,
        adapter_mode=spec.adapter_mode or "merged",
        change="none" if is_warm else "swapped",
        versions={},
    )


def _draw(spec: ItemSpec) -> Image.Image:
    """Return a picture in a color of the item's adapters, with the item's description on it."""
    color = sha256(spec.adapter_key.encode()).digest()
    image = Image.new("RGB", (spec.width, spec.height), (64 + color[0] // 2, 64 + color[1] // 2, 64 + color[2] // 2))
    names = [f"{ref.path} {ref.multiplier:g}" for ref in spec.adapters]
    lines = ["SIMULATED", f"seed {spec.seed}", *names, *textwrap.wrap(spec.prompt, 40)[:6]]
    height = max(8, min(spec.width, spec.height) // 20)
    text = "\n".join(lines).encode("ascii", "replace").decode()
    ImageDraw.Draw(image).multiline_text((height, height), text, fill="white", font_size=height)
    return image
