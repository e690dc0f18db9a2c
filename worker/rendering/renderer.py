"""Render one item: encode, make its adapters current, denoise, decode.

The caller owns the queue, the lease and the upload. Everything here but the writing of weights runs in the caller's
thread, and `on_progress` may raise at any point to end the work: before the next item starts the weights are base or
completely merged, never between.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from shared.errors import InvalidRequest, NotFinite, OutOfMemory
from shared.job import AdapterReport, Decode, ItemSpec, PipelineReport, Progress
from shared.job import Engine as EngineName
from worker.checkpoint.pinned import side_stream
from worker.lora.adapter_swap import SwapKind
from worker.lora.hot_swap import AdapterSwapper
from worker.model.compile import uncompiled
from worker.model.components import Components
from worker.rendering.decode import tiled
from worker.rendering.denoise import Call
from worker.rendering.engine import Engine, Run
from worker.rendering.latents import PIXELS, image_ids, noise, pack, text_ids
from worker.rendering.native_engine import ExactEngine, FastEngine, native_engine
from worker.rendering.prompt_encoder import PromptEncoder
from worker.rendering.toolkit_checkout import Toolkit
from worker.rendering.toolkit_engine import ToolkitEngine

logger = logging.getLogger("flux2.worker.render")

_REQUIREMENTS = {engine.name: engine.requirement for engine in (ExactEngine, ToolkitEngine, FastEngine)}

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Rendered:
    """One finished image and how it came to be.

    Attributes:
        timings: seconds by stage: encode_prompt, adapter, denoise, decode.
        adapters: what each adapter did, in merge order.
    """

    image: Image.Image
    timings: dict[str, float]
    adapters: tuple[AdapterReport, ...]
    pipeline: PipelineReport


class _Inputs(NamedTuple):
    """What the steps of an item begin with, on the device.

    Attributes:
        start: noise, (1, channels, height / 16, width / 16).
    """

    prompt_embeds: Tensor
    negative_embeds: Tensor | None
    start: Tensor


class _Prepared(NamedTuple):
    """A coming item.

    Attributes:
        denoised: how many items had been when it was prepared.
    """

    denoised: int
    spec: ItemSpec
    adapters: tuple[Path, ...]
    inputs: _Inputs


class Renderer:
    """Renders items with one base model; what is merged into it persists between calls.

    Args:
        prompt_cache: encoded prompts kept in memory.
        adapter_cache_bytes: of adapter files kept in memory.
        toolkit: AI Toolkit's classes, if its engine is to be offered too.

    Raises:
        CheckpointError: AI Toolkit's classes cannot hold the weights.

    Attributes:
        warm: the model and what is merged into it; its `warm_key` says which items start at once.
    """

    def __init__(
        self,
        components: Components,
        *,
        prompt_cache: int,
        adapter_cache_bytes: int = 0,
        toolkit: Toolkit | None = None,
    ) -> None:
        self.swapper = AdapterSwapper(components, adapter_cache_bytes=adapter_cache_bytes)
        self._components = components
        self._prompts = PromptEncoder(
            components.text_encoder, components.tokenizer, device=components.device, cache_size=prompt_cache
        )
        self._decoder = _thread()
        self._drift: float | None = None
        self._runs_compiled = True
        self._denoised = 0  # items, or attempts at them
        self._prepared: tuple[_Prepared, ...] = ()  # the last two: one begins when the other is known
        self._beside = side_stream(components.device)
        self._disturbed = False  # the item by a change of weights for the next, which takes memory
        ours = native_engine(components)
        self._engines: dict[EngineName, Engine] = {ours.name: ours}
        if toolkit is not None and components.precision.fits_toolkit:
            theirs = ToolkitEngine.from_components(components, toolkit)
            self._engines[theirs.name] = theirs
            self.swapper.unmerged.also_patch(theirs.transformer)

    @property
    def warm_key(self) -> str:
        """Key of the adapters that are merged now, or being merged for the next item; see `ItemSpec.adapter_key`."""
        return self.swapper.warm_key

    @property
    def corrupted(self) -> int:
        """Count of restored parameters whose bits are not those that were loaded."""
        return self.swapper.corrupted

    @property
    def engines(self) -> tuple[EngineName, ...]:
        """What `ItemSpec.engine` may ask for."""
        return tuple(self._engines)

    @torch.no_grad()
    def warm_up(self) -> None:
        """Take a step of a usual size before the first item: compiling may take longer than an item may stall.

        The step is compared. On a GPU, compiled code must give the bits of the modules as they are written, which
        run instead if it does not. Over float8 weights each result tells how far the step is from the exact one.
        """
        engine = next(iter(self._engines.values()))
        if not self._components.compiled and not engine.measures_fp8_error:
            return
        step = partial(engine.predict, self.usual_call())
        if engine.measures_fp8_error:
            self._drift = self.swapper.fp8_error(step)
            logger.info("float8 compared with bfloat16", extra={"drift": self._drift})
        else:
            compiled = step()
            with uncompiled():
                differing = int((compiled != step()).sum())
            self._runs_compiled = not differing or self._components.device.type == "cpu"
            if not self._runs_compiled:
                logger.error("compiled code is not used: it gives other bits", extra={"values_differing": differing})

    def usual_call(self) -> Call:
        """Return what a step of 1024x1024 half way through is given; on a CPU of 128x128."""
        device = self._components.device
        side = 1024 if device.type == "cuda" else 128
        prompt_embeds = self._encode("a photograph")
        timestep = torch.full((1,), 0.5, dtype=prompt_embeds.dtype, device=device)
        return Call(
            pack(self._noise(0, height=side, width=side)),
            timestep,
            prompt_embeds,
            image_ids(side // PIXELS, side // PIXELS, device=device),
            text_ids(prompt_embeds.shape[1], device=device),
            torch.full_like(timestep, 4.0),
        )

    def prepare(self, spec: ItemSpec, adapters: Sequence[Path]) -> None:
        """Read a coming item's adapters, and bring its prompts and noise to the device, beside one that renders.

        Raises:
            InvalidRequest, AdapterNotFound, AdapterRefused, AdapterMismatch: as `render` will.
        """
        denoised = self._denoised
        for ref, path in zip(spec.adapters, adapters, strict=True):
            self.swapper.preload(ref, path)
        # A new thread's device is the first one, on which a stream's end would open a context.
        mine = torch.cuda.device(self._components.device) if self._beside is not None else nullcontext()
        with torch.no_grad(), mine, torch.cuda.stream(self._beside):
            inputs = self._inputs(spec)
            if self._beside is not None:
                self._beside.synchronize()
        self._prepared = (*self._prepared[-1:], _Prepared(denoised, spec, tuple(adapters), inputs))

    def render(self, spec: ItemSpec, adapters: Sequence[Path], *, on_progress: OnProgress) -> Rendered:
        """Render `spec` with the adapter files that its `adapters` name, in the same order.

        Args:
            on_progress: called when a stage begins and after each step; what it raises ends the work.

        Raises:
            InvalidRequest: a value that can only give garbage.
            AdapterNotFound, AdapterRefused, AdapterMismatch: an adapter file cannot be used.
            OutOfMemory: the device could not hold the item, in tiles neither; memory has been given back.
            NotFinite: the latents or the decoded image are not.
        """
        _check(spec)
        if spec.engine not in self._engines:
            raise InvalidRequest(
                f"the engine {spec.engine!r} is not offered here: {_REQUIREMENTS[spec.engine]}", field="engine"
            )
        self._prompts.check(spec.prompt)
        self._disturbed = False
        outcome = self._try(spec, adapters, on_progress)
        if isinstance(outcome, str) and self._disturbed:
            outcome = self._try(spec, adapters, on_progress, alone=True)
        if isinstance(outcome, str):
            try:
                with tiled(self._components.autoencoder):
                    outcome = self._try(spec, adapters, on_progress, alone=True, in_tiles=True)
            finally:
                self._recover()
        if isinstance(outcome, str):
            device = _device_name(self._components)
            raise OutOfMemory(f"{spec.width}x{spec.height} does not fit on {device}: {outcome}")
        return outcome

    def _try(
        self,
        spec: ItemSpec,
        adapters: Sequence[Path],
        on_progress: OnProgress,
        *,
        alone: bool = False,
        in_tiles: bool = False,
    ) -> Rendered | str:
        """Return what was rendered, or why memory was short; it has been given back then.

        Args:
            alone: whether nothing is to be changed for the next item meanwhile.
            in_tiles: AI Toolkit's own autoencoder knows no tiles; it profits from the freed memory only.
        """
        decode_as: Decode = "tiled" if in_tiles and self._engines[spec.engine].supports_tiling else "whole"
        try:
            return self._render(spec, adapters, on_progress, decode_as=decode_as, alone=alone)
        except torch.OutOfMemoryError as error:
            reason = _first_sentence(error)
        # Outside of the handler: the error's traceback would keep every tensor of the failed attempt alive.
        self._recover()
        logger.warning("out of memory", extra={"seed": spec.seed, "reason": reason, "decode": decode_as})
        return reason

    @torch.no_grad()
    def _render(
        self, spec: ItemSpec, adapters: Sequence[Path], on_progress: OnProgress, *, decode_as: Decode, alone: bool
    ) -> Rendered:
        engine = self._engines[spec.engine]
        timings: dict[str, float] = {}
        steps = spec.num_inference_steps

        def stage(name: str) -> None:
            on_progress(Progress(stage=name, step=steps if name == "decode" else 0, steps=steps))

        # What goes to the device comes before the weights do, or it would wait until all of them are there.
        stage("encode")
        with self._timed(timings, "encode_prompt"):
            prepared = next((prepared for prepared in self._prepared if prepared.spec == spec), None)
            inputs = prepared.inputs if prepared else self._inputs(spec)
        stage("adapter")
        with self._timed(timings, "adapter"):
            files = list(zip(spec.adapters, adapters, strict=True))
            change, reports = self.swapper.activate(files, mode=spec.adapter_mode, wait=not engine.waits_for_blocks)
        stage("denoise")
        with self._timed(timings, "denoise"):
            run = Run(steps, spec.guidance_scale, inputs.prompt_embeds, inputs.negative_embeds)
            latents = self._denoise(engine, inputs.start, run, on_progress, seed=spec.seed, alone=alone)
        stage("decode")
        with self._timed(timings, "decode"):
            decoded = self._decoder.submit(torch.no_grad()(engine.decode), latents).result()[0]
            if not decoded.isfinite().all():
                raise NotFinite(f"the decoded image of seed {spec.seed} is not finite")
            image = engine.image(decoded)
        return Rendered(image, timings, reports, self._report(spec, engine, change, decode_as))

    def _recover(self) -> None:
        """Give memory back, and forget the algorithms that convolutions took for lack of it.

        cuDNN's are kept for each thread and shape, and another algorithm rounds otherwise: without a new thread, later
        images would differ in their last bits from those before.
        """
        self._decoder.shutdown()
        self._decoder = _thread()
        gc.collect()
        torch.cuda.empty_cache()

    def _inputs(self, spec: ItemSpec) -> _Inputs:
        negative_embeds = self._encode(spec.neg) if self._has_guidance(spec) else None
        start = self._noise(spec.seed, height=spec.height, width=spec.width)
        return _Inputs(self._encode(spec.prompt), negative_embeds, start)

    def _encode(self, prompt: str) -> Tensor:
        """Return embeddings in the transformer's dtype, in which noise is drawn; its encoder may have another."""
        return self._prompts.encode(prompt).to(self._components.dtype)

    def _has_guidance(self, spec: ItemSpec) -> bool:
        """Whether the negative prompt counts: from 1 down AI Toolkit runs the prompt alone."""
        return not self._components.distilled and spec.guidance_scale > 1

    def _denoise(
        self, engine: Engine, start: Tensor, run: Run, on_progress: OnProgress, *, seed: int, alone: bool
    ) -> Tensor:
        """Return final latents, (1, channels, height / 16, width / 16), as those at the start."""

        def on_step(step: int, steps: int) -> None:
            if step == 1:
                self._settle()
            on_progress(Progress(stage="denoise", step=step, steps=steps))
            if step == steps - 1 and engine.waits_for_blocks and not alone:
                self._change_ahead(passes=1 if run.negative_prompt_embeds is None else 2)

        try:
            with uncompiled() if self.swapper.unmerged or not self._runs_compiled else nullcontext():
                latents = engine.denoise(start, run, on_step=on_step)
        finally:
            self._denoised += 1
            self.swapper.abandon_passes()
        if not latents.isfinite().all():
            raise NotFinite(f"the latents of seed {seed} are not finite, so there is no image in them")
        return latents

    def _change_ahead(self, *, passes: int) -> None:
        """Begin to change the adapters for the item that was prepared, under the last step of this one."""
        coming = self._prepared[-1] if self._prepared else None
        if coming is None or coming.denoised != self._denoised:
            return
        engine = self._engines.get(coming.spec.engine)
        if engine is None or not engine.waits_for_blocks:
            return
        self._disturbed = True
        files = list(zip(coming.spec.adapters, coming.adapters, strict=True))
        try:
            self.swapper.begin_next(files, mode=coming.spec.adapter_mode, passes=passes)
        except Exception as error:  # noqa: BLE001 - the next item's, which will meet it again
            logger.info("adapters not changed ahead", extra={"error": f"{type(error).__name__}: {error}"})

    def _settle(self) -> None:
        """Wait for the weights; all blocks have had theirs by now, so that costs nothing."""
        try:
            self.swapper.wait()
        except torch.OutOfMemoryError:
            self._disturbed = True  # the change may have begun under another item
            raise

    def _noise(self, seed: int, *, height: int, width: int) -> Tensor:
        channels = self._components.transformer.config.in_channels
        drawn = noise(seed, channels=channels, height=height, width=width, dtype=self._components.dtype)
        return drawn.to(self._components.device)

    def _report(self, spec: ItemSpec, engine: Engine, change: SwapKind, decode_as: Decode) -> PipelineReport:
        components = self._components
        return PipelineReport(
            engine=engine.name,
            precision=components.precision_names,
            base_revision=components.revision,
            device=_device_name(components),
            adapter_mode=spec.adapter_mode or ("merged" if components.precision.can_merge else "live"),
            change=change,
            decode=decode_as,
            drift=self._drift,
            versions=engine.versions,
        )

    @contextmanager
    def _timed(self, timings: dict[str, float], name: str) -> Iterator[None]:
        """Measure a stage until its work is done, not until it has been handed to the GPU.

        Its own work: weights that are on their way, in another stream, are not waited for.
        """
        started = time.perf_counter()
        yield
        if self._components.device.type == "cuda":
            torch.cuda.current_stream(self._components.device).synchronize()
        timings[name] = time.perf_counter() - started


def _check(spec: ItemSpec) -> None:
    """Refuse what can only give garbage; the API floors and bounds these, so a violation is a caller's bug."""
    for field, pixels in (("width", spec.width), ("height", spec.height)):
        if pixels < PIXELS or pixels % PIXELS:
            raise InvalidRequest(f"{field} is {pixels}, not a positive multiple of {PIXELS}", field=field)
    if spec.num_inference_steps < 1:
        raise InvalidRequest(f"{spec.num_inference_steps} steps; at least 1 is needed", field="sample_steps")
    if not math.isfinite(spec.guidance_scale):
        raise InvalidRequest(f"guidance_scale is {spec.guidance_scale}", field="guidance_scale")
    for ref in spec.adapters:
        if not math.isfinite(ref.multiplier):
            raise InvalidRequest(f"the multiplier of {ref.path!r} is {ref.multiplier}", field="network_multiplier")


def _first_sentence(error: torch.OutOfMemoryError) -> str:
    return str(error).partition(". ")[0]


def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="flux2-decode")


def _device_name(components: Components) -> str:
    device = components.device
    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)
