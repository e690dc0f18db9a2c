"""Render one item: encode its prompt, activate its adapters, denoise, decode.

The caller owns the queue, the lease and the upload. Rendering runs in the caller's thread, and `on_progress` may raise
an error at any point: the next item still finds either the base weights or a complete merge.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import DeviceFault, InvalidRequest, NotFinite, ReferenceRefused
from shared.job import AdapterReport, Decode, ItemSpec, PipelineReport
from shared.job import Engine as EngineName
from shared.noise_levels import sigmas_refusal
from shared.prompt import MAX_TOKENS
from shared.references import LoadReference
from worker.lora.adapter_swap import SwapKind
from worker.lora.apply import Fp8Error
from worker.lora.hot_swap import AdapterSwapper
from worker.model.compile import uncompiled
from worker.model.components import Components
from worker.model.placement import lacking_step_bytes
from worker.rendering.attempt import ATTEMPTS, Attempt, OnProgress, RenderedImage, RenderingItem
from worker.rendering.decode import tiled_decoding
from worker.rendering.engine import DenoisingInputs, Engine
from worker.rendering.errors import GroupOutOfMemory
from worker.rendering.followers import Followers
from worker.rendering.item_inputs import InputBuilder, ItemInputs
from worker.rendering.latent_preview import Previewer
from worker.rendering.native_engine import ExactEngine, FastEngine, native_engine
from worker.rendering.prepared_items import PreparedItems
from worker.rendering.reference_encoder import ReferenceEncoder, References
from worker.rendering.toolkit_checkout import Toolkit
from worker.rendering.toolkit_engine import ToolkitEngine
from worker.step_previews import PreviewSink

logger = logging.getLogger("flux2.worker.render")


def _refuse_references(sha256: str) -> bytes:
    """Refuse every reference image."""
    raise ReferenceRefused("this renderer has no store of reference images; submit the request to a queue")


_decode_thread = partial(ThreadPoolExecutor, 1, thread_name_prefix="flux2-decode")

#: The settings that each engine needs, as sentences for messages.
ENGINE_REQUIREMENTS = {engine.name: engine.requirement for engine in (ExactEngine, ToolkitEngine, FastEngine)}


class Renderer:
    """Renders items with one base model; adapters stay merged between calls.

    Args:
        prompt_cache: number of encoded prompts to cache in memory.
        adapter_cache_bytes: total size of the adapter files to cache in memory.
        toolkit: AI Toolkit's classes; with them, the renderer also offers AI Toolkit's engine.
        load_reference: see `LoadReference`; without it, items with reference images are refused.
        followers: devices that denoise together with that of `components`, once `warm_up` has checked their bits.

    Raises:
        CheckpointError: AI Toolkit's classes cannot hold the weights.

    Attributes:
        swapper: keeps an item's adapters current in the model.
        inputs: builds the inputs of an item's first step.
        references: encodes reference images.
    """

    def __init__(
        self,
        components: Components,
        *,
        prompt_cache: int,
        adapter_cache_bytes: int = 0,
        toolkit: Toolkit | None = None,
        load_reference: LoadReference = _refuse_references,
        followers: Followers | None = None,
    ) -> None:
        self.swapper = AdapterSwapper(components, adapter_cache_bytes=adapter_cache_bytes)
        self.inputs = InputBuilder(components, prompt_cache=prompt_cache)
        self._components = components
        self.references = ReferenceEncoder(components, load=load_reference)
        self._prepared = PreparedItems(self.swapper, self.inputs, self.references)
        self._decoder = _decode_thread()
        self._fp8_error: Fp8Error | None = None
        self._runs_compiled = True
        self._previewer = Previewer(components)
        self._followers: Followers | None = None
        self._unchecked_followers = followers
        ours = native_engine(components)
        self._engines: dict[EngineName, Engine] = {ours.name: ours}
        if toolkit is not None and ToolkitEngine.name in components.precision.engines(has_toolkit=True):
            theirs = ToolkitEngine.from_components(components, toolkit)
            self._engines[theirs.name] = theirs
            self.swapper.unmerged.add_toolkit_transformer(theirs.transformer)

    @property
    def warm_key(self) -> str:
        """Key of the adapters that are merged now or being merged for the next item; see `ItemSpec.adapter_key`."""
        return self.swapper.warm_key

    @property
    def corrupted(self) -> int:
        """Number of restored parameters whose bits differ from the loaded ones."""
        return self.swapper.corrupted

    @property
    def engines(self) -> tuple[EngineName, ...]:
        """The values of `ItemSpec.engine` that this renderer accepts."""
        return tuple(self._engines)

    @torch.no_grad()
    def warm_up(self) -> None:
        """Run one typical step, and compare it with uncompiled code.

        With float8 weights, each result states the error of this step. With all other weights the bits must be equal;
        otherwise compiled code is not used. A step on several devices must have the bits of one device too; otherwise
        one device renders.

        Raises:
            CheckpointError: the followers cannot take part; see `Followers.join`.
            DeviceFault: a follower failed.
        """
        # Before the first item: compiling may take longer than an item may stall.
        engine = next(iter(self._engines.values()))
        if self._unchecked_followers is not None:
            # First: blocks of a group run other code, which is then what is compiled and compared.
            self._unchecked_followers.join(self._components)
        self._compare_compiled(engine)
        if self._unchecked_followers is not None:
            # As items will run.
            with nullcontext() if self._runs_compiled else uncompiled():
                if self._unchecked_followers.check(engine, self.inputs.typical_call()):
                    self._followers = self._unchecked_followers

    def _compare_compiled(self, engine: Engine) -> None:
        if not self._components.compiled and not engine.measures_fp8_error:
            return
        step = partial(engine.predict, self.inputs.typical_call())
        if engine.measures_fp8_error:
            self._fp8_error = self.swapper.fp8_error(step)
            logger.info(
                "float8 compared with bfloat16",
                extra={"drift": self._fp8_error.whole, "attention_drift": self._fp8_error.of_attention},
            )
            return
        compiled = step()
        with uncompiled():
            differing = int((compiled != step()).sum())
        # Only on a GPU must results have AI Toolkit's bits.
        self._runs_compiled = not differing or self._components.device.type == "cpu"
        if not self._runs_compiled:
            logger.error("compiled code is not used: it gives other bits", extra={"values_differing": differing})

    def prepare(self, spec: ItemSpec, adapters: Sequence[Path], *, between: Callable[[], None] = lambda: None) -> None:
        """Preload the next item's adapters and images and build its inputs; raise the errors that `render` would raise.

        Another thread may call this while an item renders.

        Args:
            between: called before each reference image; an error that it raises ends the preparation.
        """
        engine = self._engines.get(spec.engine)
        files_only = engine is not None and engine.encodes_references
        if self._followers is not None:
            self._followers.preload(tuple(zip(spec.adapters, adapters, strict=True)))
        self._prepared.prepare(spec, adapters, files_only=files_only, between=between)

    def render(
        self,
        spec: ItemSpec,
        adapters: Sequence[Path],
        *,
        on_progress: OnProgress,
        previews: PreviewSink | None = None,
    ) -> RenderedImage:
        """Render `spec` with its adapters' files, in the order of `spec.adapters`.

        Args:
            on_progress: called when a stage begins and after each step; an error that it raises ends the work.
            previews: takes pictures of what the image will look like.

        Raises:
            InvalidRequest: a value cannot give a meaningful image, or this worker does not offer the engine.
            AdapterNotFound, AdapterRefused, AdapterMismatch: an adapter file cannot be used.
            ReferenceRefused: a reference image cannot be used.
            StorageUnavailable: the store did not answer for a reference image.
            OutOfMemory: the device could not hold the item, even in tiles; its memory is free again.
            NotFinite: the latents or the decoded image hold NaN or infinity.
        """
        self.inputs.check(spec)
        if spec.engine not in self._engines:
            raise InvalidRequest(
                f"this worker does not offer the engine {spec.engine!r}: {ENGINE_REQUIREMENTS[spec.engine]}",
                field="engine",
            )
        if spec.sigmas and not self._engines[spec.engine].takes_sigmas:
            raise InvalidRequest(sigmas_refusal(spec.engine), field="sigmas")
        item = RenderingItem(
            spec=spec,
            files=tuple(zip(spec.adapters, adapters, strict=True)),
            engine=self._engines[spec.engine],
            device=self._components.device,
            on_progress=on_progress,
            previews=previews,
        )
        reason = ""
        for attempt in filter(item.can_differ, ATTEMPTS):
            try:
                with self._tiles() if attempt.tiled else nullcontext():
                    return self._render(item, attempt)
            except GroupOutOfMemory as error:
                raise item.too_large(str(error), ends_process=True) from error
            except torch.OutOfMemoryError as error:
                reason = str(error).partition(". ")[0]
            # Outside of the handler: the error's traceback would keep every tensor of the failed attempt alive.
            self._free_memory()
            logger.warning("out of memory", extra={"seed": spec.seed, "reason": reason, "attempt": attempt.name})
        raise item.too_large(reason)

    @torch.no_grad()
    def _render(self, item: RenderingItem, attempt: Attempt) -> RenderedImage:
        spec, engine = item.spec, item.engine
        references = self._encode_references(item)
        # Inputs are copied to the device before the weights: a copy that is queued after them waits for all of them.
        with item.stage("encode", timing="encode_prompt"):
            inputs = self._prepared.inputs_of(spec)
        with item.stage("adapter", timing="adapter"):
            kind, reports = self._activate(item)
        with item.stage("denoise", timing="denoise"):
            latents = self._denoise(item, inputs, references, exclusive=attempt.exclusive)
        with item.stage("decode", timing="decode", step=spec.num_inference_steps):
            decoded = self._decoder.submit(torch.no_grad()(engine.decode), latents).result()[0]
            if not decoded.isfinite().all():
                raise NotFinite(f"the decoded image of seed {spec.seed} is not finite")
            image = engine.image(decoded)
        decode: Decode = "tiled" if attempt.tiled and engine.supports_tiling else "whole"
        pipeline = self._report(item, kind, decode)
        return RenderedImage(
            image, item.timings, reports, pipeline, inputs.tokens, inputs.warnings, tuple(item.references)
        )

    def _followers_for(self, item: RenderingItem) -> Followers | None:
        """Return the followers if they take part in an item."""
        # The bits of unmerged adapters' products were never compared on several devices, and AI Toolkit's modules run
        # on one.
        is_unmerged = bool(item.files) and self.swapper.runs_unmerged(item.spec.adapter_mode)
        return self._followers if item.engine.waits_for_blocks and not is_unmerged else None

    def _activate(self, item: RenderingItem) -> tuple[SwapKind, tuple[AdapterReport, ...]]:
        """Make the item's adapters current on every device that takes part."""
        mode, followers = item.spec.adapter_mode, self._followers_for(item)
        with followers.activating(item.files, mode=mode) if followers else nullcontext():
            return self.swapper.activate(item.files, mode=mode, wait=not item.engine.waits_for_blocks)

    def _encode_references(self, item: RenderingItem) -> References | None:
        """Load and encode the item's reference images, unless an earlier item had the same.

        Raises:
            OutOfMemory: not even the first step would fit.
        """
        if not item.spec.references:
            return None
        # The store's delays are not the device's.
        with item.stage("fetch", timing="fetch_references"):
            loaded = self.references.load(
                item.spec.references,
                files_only=item.engine.encodes_references,
                # The watchdog allows a silent store this long for each image.
                between=partial(item.report, "fetch"),
            )
        item.references = [reference.report for reference in loaded]
        self._check_room(item, reference_tokens=sum(reference.size.tokens for reference in loaded))
        with item.stage("encode", timing="encode_references"):
            # In the thread that decodes, for the same reason: see `_free_memory`.
            encode = partial(self.references.encode, loaded, between=partial(item.report, "encode"))
            return self._decoder.submit(encode).result()

    def _check_room(self, item: RenderingItem, *, reference_tokens: int) -> None:
        """Refuse an item whose step certainly needs more memory than the weights leave free."""
        components, config = self._components, self._components.transformer.config
        lacking = lacking_step_bytes(
            components.placement,
            tokens=item.tokens_of_image + MAX_TOKENS + reference_tokens,
            channels=config.num_attention_heads * config.attention_head_dim,
            dtype=components.dtype,
        )
        if lacking:
            raise item.too_large(f"a step needs at least {lacking / 1e9:.1f} GB more than the weights leave free")

    def _denoise(
        self, item: RenderingItem, inputs: ItemInputs, references: References | None, *, exclusive: bool
    ) -> Tensor:
        """Return the final latents, (1, channels, height / 16, width / 16)."""
        spec, engine = item.spec, item.engine
        run = DenoisingInputs(
            spec.num_inference_steps,
            spec.guidance_scale,
            inputs.prompt_embeds,
            inputs.negative_embeds,
            references,
            spec.sigmas,
        )

        def on_step(step: int, steps: int) -> None:
            if step == 1:
                self._wait_for_weights(item)
            item.report("denoise", step)
            if step == steps - 1 and engine.waits_for_blocks and not exclusive:
                self._begin_next_swap(item, passes=1 if run.negative_prompt_embeds is None else 2)

        def on_estimate(step: int, estimate: Callable[[], Tensor]) -> None:
            if item.previews is not None and item.previews.is_due(step, run.steps):
                rows, columns = inputs.start.shape[2:]
                made = self._previewer.preview(estimate, rows=rows, columns=columns)
                if made is not None:
                    item.previews.offer(made, step=step, steps=run.steps)

        try:
            followers = self._followers_for(item)
            # Compiled code does not run hooks that were registered later, such as those of unmerged adapters.
            with (
                uncompiled() if self.swapper.unmerged or not self._runs_compiled else nullcontext(),
                followers.denoising(inputs.start, run) if followers else nullcontext(),
            ):
                latents = engine.denoise(inputs.start, run, on_step=on_step, on_estimate=on_estimate)
        finally:
            self._prepared.end_turn()
            self.swapper.abandon_passes()
        if not latents.isfinite().all():
            raise NotFinite(f"the latents of seed {spec.seed} are not finite, so they hold no image")
        return latents

    def _wait_for_weights(self, item: RenderingItem) -> None:
        """Wait until the swap is complete."""
        # After the first step this takes no time: every block has waited for its weights.
        try:
            self.swapper.wait()
        except torch.OutOfMemoryError:
            # The swap may have begun while another item rendered.
            item.shares_memory = True
            raise

    def _begin_next_swap(self, item: RenderingItem, *, passes: int) -> None:
        """Begin the prepared item's swap during the last step of this one."""
        coming = self._prepared.next_item()
        engine = self._engines.get(coming.spec.engine) if coming is not None else None
        if coming is None or engine is None or not engine.waits_for_blocks:
            return
        item.shares_memory = True
        try:
            self.swapper.begin_next(coming.files, mode=coming.spec.adapter_mode, passes=passes)
            if followers := self._followers_for(item):
                followers.begin_next(coming.files, mode=coming.spec.adapter_mode, passes=passes)
        except DeviceFault:
            raise
        except Exception as error:  # noqa: BLE001 - the next item meets the same error and reports it
            logger.info("next adapter swap not begun", extra={"error": f"{type(error).__name__}: {error}"})

    @contextmanager
    def _tiles(self) -> Iterator[None]:
        """Decode in tiles inside the `with` block, and free memory afterwards."""
        try:
            with tiled_decoding(self._components.autoencoder):
                yield
        finally:
            self._free_memory()

    def _free_memory(self) -> None:
        """Return cached memory to the device, and start a new thread for decoding."""
        # When memory is short, cuDNN picks other convolution algorithms, which round differently, and keeps them for
        # each thread and shape. In the old thread, later images would differ in their last bits from earlier ones.
        self._decoder.shutdown()
        self._decoder = _decode_thread()
        self.references.forget()
        gc.collect()
        torch.cuda.empty_cache()

    def _report(self, item: RenderingItem, kind: SwapKind, decode: Decode) -> PipelineReport:
        components, error = self._components, self._fp8_error
        return PipelineReport(
            engine=item.engine.name,
            precision=components.precision_names,
            base_revision=components.revision,
            device=item.device_name,
            adapter_mode=item.spec.adapter_mode or ("merged" if components.precision.can_merge else "live"),
            change=kind,
            decode=decode,
            drift=None if error is None else error.whole,
            attention_drift=None if error is None else error.of_attention,
            versions=item.engine.versions,
        )
