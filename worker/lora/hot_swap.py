"""Replace the adapters that are merged into a loaded model, without reloading the model.

Each swap is one `AdapterSwap`, which owns its warm key, its reports, its failure and its state:

                     begin                 last pass with            every block
                                          the old weights ends    restored and merged
    +------+      +----------+               +---------+              +-------+
    | idle | ---> | draining | ------------> | writing | -----------> | ready |
    +------+      +----------+               +---------+              +-------+
        |               |                         |
        |               |      any error          |                  +--------+
        +---------------+-------------------------+----------------> | failed |
                                                                     +--------+

    idle      The adapters are read and checked. The weights are still those of the swap before.
    draining  The last passes with the old weights still run. A block is rewritten once they have left it.
    writing   No pass needs the old weights. Blocks are restored and merged one by one, and a step may start: each
              block waits for its own weights (`worker.lora.block_gate`).
    ready     Every weight is written, and every restored weight was verified.
    failed    The base weights are restored. If that failed too, or unmerged adapters are still attached, the next
              swap cleans up.

A separate thread writes the weights on a separate CUDA stream. Adapters can also run unmerged, as extra products
in each step: AI Toolkit previews some adapters that way, and `qfloat8` weights allow nothing else
(`worker.lora.unmerged`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from shared.errors import InvalidRequest, WeightsLost
from shared.job import AdapterMode, AdapterRef, AdapterReport, adapter_key
from shared.log_context import in_this_context
from worker.checkpoint.pinned import device_thread_pool, side_stream
from worker.lora.adapter_swap import AdapterSwap, SwapKind, SwapState
from worker.lora.apply import Fp8Error, Merge, WeightWriter
from worker.lora.block_gate import BlockGate
from worker.lora.load import Adapter, AdapterReader
from worker.lora.unmerged import UnmergedAdapters
from worker.model.components import Components

logger = logging.getLogger("flux2.worker.lora")

AdapterFiles = Sequence[tuple[AdapterRef, Path]]


class AdapterSwapper:
    """Keeps one list of adapters current in a model.

    One thread activates adapters and runs the transformer; other threads may preload adapters and read `warm_key`.

    Args:
        adapter_cache_bytes: total size of the adapter files that are cached in host memory.

    Attributes:
        unmerged: the adapters that run unmerged now.
    """

    def __init__(self, components: Components, *, adapter_cache_bytes: int = 0) -> None:
        self.components = components
        self.unmerged = UnmergedAdapters(components.transformer)
        self._reader = AdapterReader(
            model=components.model,
            layers=components.layers,
            device=components.device,
            cache_bytes=adapter_cache_bytes,
        )
        self._gate = BlockGate(components.transformer, device=components.device)
        self._weights = WeightWriter(components, gate=self._gate)
        # One thread: swaps must not overlap.
        self._thread = device_thread_pool(components.device, 1, "flux2-weights")
        self._stream = side_stream(components.device)
        self._swap = AdapterSwap.finished_to_base()

    @property
    def warm_key(self) -> str:
        """Key of the adapters that are merged now or being merged for the next item; see `ItemSpec.adapter_key`."""
        # Base revision and precision belong to the warm key too, but never change in one process.
        return self._swap.warm_key

    @property
    def state(self) -> SwapState:
        """The state of the latest swap."""
        return self._swap.state

    @property
    def corrupted(self) -> int:
        """Number of restored parameters that differed from the loaded ones; any but 0 stops all rendering."""
        return self._weights.corrupted

    def activate(
        self, adapters: AdapterFiles, *, mode: AdapterMode | None = None, wait: bool = True
    ) -> tuple[SwapKind, tuple[AdapterReport, ...]]:
        """Make exactly these adapters current, in this order; an empty list is the base model.

        A swap that `begin_next` has begun to the same adapters is used. All checks of the files happen before the first
        write.

        Args:
            mode: see `ItemSpec.adapter_mode`.
            wait: if false, return as soon as the transformer may run steps. Their results are valid only if a later
                call of `wait` returns without an error.

        Raises:
            WeightsLost: restored weights differ from those that were loaded; the process must end.
            InvalidRequest: these weights do not allow `mode`.
            AdapterNotFound, AdapterRefused, AdapterMismatch: see `worker.lora.load.read_adapter`; AdapterRefused too
                if a merged weight is not finite.
        """
        self._check_mode(mode)
        refs = [ref for ref, _ in adapters]
        key = adapter_key(refs, mode)
        self.abandon_passes()
        if not self._swap.can_be_claimed_for(key):
            self._end_last_swap()
            self._weights.refuse_corrupted()
            if self._swap.merged_key != key:
                self._begin(adapters, mode, key=key, passes=0)
        swap = self._swap
        kind, reports = swap.claim(), _renamed(swap.reports, refs)
        if wait:
            self.wait()
        return kind, reports

    def begin_next(self, adapters: AdapterFiles, *, mode: AdapterMode | None = None, passes: int) -> None:
        """Begin the next item's swap while the last passes of this item still run with the old weights.

        Each block is rewritten as soon as the last pass has left it. Nothing happens if these adapters are current, or
        if adapters run unmerged before or after: `activate` then does all of it.

        Args:
            passes: number of passes through the transformer that still need the old weights.

        Raises:
            InvalidRequest, AdapterNotFound, AdapterRefused, AdapterMismatch: see `activate`; nothing has changed.
        """
        self._check_mode(mode)
        key = adapter_key([ref for ref, _ in adapters], mode)
        self.wait()
        is_unmerged = self.unmerged or self.runs_unmerged(mode)
        if is_unmerged or self.corrupted or self._swap.merged_key in (None, key):
            return
        self._begin(adapters, mode, key=key, passes=passes)

    def abandon_passes(self) -> None:
        """Stop waiting for passes with the old weights, even if some never ran."""
        self._gate.skip_remaining()

    def wait(self) -> None:
        """Wait until the latest swap is complete; raise its failure, once. Passes that never ran are abandoned."""
        self.abandon_passes()
        self._swap.wait()

    def runs_unmerged(self, mode: AdapterMode | None) -> bool:
        """Whether adapters in this mode run unmerged."""
        return mode == "live" or not self.components.precision.can_merge

    def preload(self, ref: AdapterRef, path: Path) -> None:
        """Read and check an adapter that a later item needs, if the cache has room for it.

        Raises:
            AdapterNotFound, AdapterRefused, AdapterMismatch: see `worker.lora.load.read_adapter`.
        """
        self._reader.preload(ref, path)

    def count_corrupted(self) -> int:
        """Count the parameters that should have their base values but do not; see `WeightWriter`."""
        return self._weights.count_corrupted()

    def fp8_error(self, step: Callable[[], Tensor]) -> Fp8Error:
        """Return the distance of a float8 step from a bfloat16 step; see `WeightWriter`."""
        return self._weights.fp8_error(step)

    def _check_mode(self, mode: AdapterMode | None) -> None:
        precision = self.components.precision
        only = "live" if not precision.can_merge else "merged" if not precision.can_run_unmerged else mode
        if mode not in (None, only):
            raise InvalidRequest(
                f"{precision.name} weights allow only adapter_mode {only!r}; leave adapter_mode out",
                field="adapter_mode",
            )

    def _end_last_swap(self) -> None:
        """Wait for the swap of an item that has ended, and log its failure."""
        try:
            self.wait()
        except WeightsLost:
            # This one concerns every later item.
            raise
        except Exception as error:  # noqa: BLE001 - it was the ended item's
            logger.warning("an adapter swap failed", extra={"error": f"{type(error).__name__}: {error}"})
        if self._swap.state is SwapState.FAILED and self._swap.merged_key is not None:
            self._swap = AdapterSwap.finished_to_base()

    def _begin(self, adapters: AdapterFiles, mode: AdapterMode | None, *, key: str, passes: int) -> None:
        """Read the adapters and begin a swap that starts to write after this many passes."""
        loaded = [self._reader.read(ref, path) for ref, path in adapters]
        # A multiplier of 0 gives the base model to the bit, for every kind: callers set 0 to see the base. DoRA's
        # formula would differ, because its rows keep their trained lengths at any multiplier.
        strong = [adapter for adapter in loaded if adapter.ref.multiplier != 0]
        kind = _kind(restored=bool(self.unmerged) or not self._weights.is_base, merged=bool(strong))
        reports = tuple(self._report(adapter) for adapter in loaded)
        swap = AdapterSwap(key, replaces=self.warm_key, kind=kind, reports=reports)
        # Before `_attach`, which detaches unmerged adapters: from there on the old warm key is wrong.
        self._swap = swap
        try:
            merges = self._attach(strong, mode)
            swap.begin()
            if self._stream is not None and not passes:
                # The current stream still reads the old weights.
                torch.cuda.current_stream(self.components.device).synchronize()
            self._gate.close(passes=passes, on_drained=swap.start_writing)
            self._thread.submit(in_this_context(self._write), swap, merges)
        except BaseException:
            self._gate.open_all()
            swap.fail(None, base_restored=False)
            raise
        logger.info("adapter swap begun", extra={"change": kind, "adapter_key": key})

    def _attach(self, adapters: Sequence[Adapter], mode: AdapterMode | None) -> list[Merge]:
        """Attach the adapters that run unmerged; return the updates to merge."""
        self.unmerged.clear()
        if not self.runs_unmerged(mode):
            return [
                Merge(adapter, update, self._weights.targets(update))
                for adapter in adapters
                for update in adapter.effective_updates
            ]
        for adapter in adapters:
            for update in adapter.layout.updates:
                self.unmerged.add(adapter, update, targets=self._weights.targets(update))
        return []

    @torch.no_grad()
    def _write(self, swap: AdapterSwap, merges: Sequence[Merge]) -> None:
        """Write the weights on the writing thread's stream; end the swap once every block may run."""
        if swap.state is SwapState.FAILED:
            # The swap's thread could not be started, and the executor runs its call in the thread of a later swap.
            return
        base_restored = False
        try:
            with torch.cuda.stream(self._stream), ExitStack() as ending:
                ending.callback(self._gate.open_all)
                try:
                    self._weights.write(merges)
                    # A swap that writes no block has not waited for the passes yet.
                    self._gate.wait_until_all_drained()
                except BaseException:
                    self._weights.restore()
                    # The rendering thread may run the hooks of unmerged adapters now, so the next swap detaches them.
                    base_restored = not self.unmerged
                    raise
        # The swap ends after the gate has opened: a thread that waits for the end may close the gate again immediately.
        except BaseException as error:  # noqa: BLE001 - `wait` raises it
            swap.fail(error, base_restored=base_restored)
        else:
            swap.finish()

    def _report(self, adapter: Adapter) -> AdapterReport:
        ref = adapter.ref
        return AdapterReport(
            path=ref.path,
            sha256=ref.sha256,
            multiplier=ref.multiplier,
            kind=adapter.layout.kind,
            ranks=adapter.layout.ranks,
            scale_range=adapter.layout.scale_range,
            scale_sources=adapter.layout.scale_sources,
            layers_touched=len(adapter.layout.layers),
            # An adapter may name every linear layer of the transformer; AI Toolkit's default trains those in blocks.
            layers_total=len(self.components.layers),
            ignored=dict(adapter.layout.ignored),
        )


def _renamed(reports: Sequence[AdapterReport], refs: Sequence[AdapterRef]) -> tuple[AdapterReport, ...]:
    """Return the reports with this request's paths."""
    # A swap is reused by `adapter_key`, and files at several paths may have the same bytes.
    return tuple(report.model_copy(update={"path": ref.path}) for report, ref in zip(reports, refs, strict=True))


def _kind(*, restored: bool, merged: bool) -> SwapKind:
    if restored:
        return "swapped" if merged else "restored"
    return "merged" if merged else "none"
