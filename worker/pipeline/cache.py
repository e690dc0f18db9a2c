"""Keep one list of adapters merged, and change it without reloading the model.

Clean weights come back by copying, never by subtracting: bfloat16 does not undo an addition (6 % of the entries would
differ after one round trip). Only parameters that some adapter has touched are put back; where from is decided by
`worker.pipeline.clean`, when they are first touched: they are clean then, because every change begins by restoring.

Several adapters are merged in the order of the request, each in float32 and rounded once to the model's dtype, so
merging [a, b] equals merging b into a model that carries a. A DoRA scales the rows that it finds, so it belongs first:
what is added after it keeps its own size.

Adapters can also run beside the weights, in each step, as in previews that AI Toolkit does not merge; float8 weights
leave no other way. See `worker.lora.live`.

A multiplier of 0 is the base model to the bit, for every kind. DoRA's formula says otherwise, its rows keep their
trained lengths at any multiplier; callers ask for 0 to see the base.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from shared.adapters.kinds import LayerUpdate
from shared.adapters.names import WHOLE
from shared.errors import InvalidRequest, WeightsLost
from shared.job import AdapterMode, AdapterRef, AdapterReport, adapter_key
from worker.lora.merge import layer_change, write
from worker.lora.read import Adapter, AdapterReader
from worker.pipeline.bfl import LayerPart, Origin, layer_parts
from worker.pipeline.clean import CleanWeights
from worker.pipeline.components import Components
from worker.pipeline.live import LiveAdapters

logger = logging.getLogger("flux2.worker.pipeline")

_WORDS = (torch.int64, torch.int32, torch.int16, torch.int8)

Change = Literal["none", "restored", "merged", "swapped"]


class WarmPipeline:
    """The components and what is merged into them.

    The warm key is (base revision, precision, ordered sha256 and multiplier of the adapters). The first two are fixed
    for a process, so `adapter_key` alone tells whether an item needs a change.

    Args:
        adapter_cache_bytes: of adapter files that are remembered on the host.
    """

    def __init__(self, components: Components, *, adapter_cache_bytes: int = 0) -> None:
        self.components = components
        self._reader = AdapterReader(
            model=components.model,
            layers=components.layers,
            device=components.device,
            cache_bytes=adapter_cache_bytes,
        )
        self._parts = layer_parts(components.transformer)
        self._weights: dict[str, Tensor] = dict(components.transformer.named_parameters())
        self.live = LiveAdapters(components.transformer)
        self._clean = CleanWeights(self._weights, place=components.placement.clean, regions=components.regions)
        self._checksums: dict[str, Tensor] = {}  # of the clean weights, by parameter
        self._dirty: set[str] = set()  # parameters that differ from their clean values now
        self._key: str | None = adapter_key(())  # None while weights are being written
        self._reports: tuple[AdapterReport, ...] = ()
        #: What `drift` counted after the last restore; with anything but 0 nothing is rendered any more.
        self.base_drift = 0

    @property
    def adapter_key(self) -> str:
        """What is merged now, as `ItemSpec.adapter_key` names it."""
        return self._key or adapter_key(())

    @property
    def only_live(self) -> bool:
        """Whether the weights cannot take an adapter: float8 would round it away."""
        return self.components.precision == "qfloat8"

    def use(
        self, adapters: Sequence[tuple[AdapterRef, Path]], *, mode: AdapterMode | None = None
    ) -> tuple[Change, tuple[AdapterReport, ...]]:
        """Make exactly these adapters current, in this order; an empty list is the base model.

        Everything that can be wrong with the files is found before the first write. If the change fails all the same,
        the clean weights are put back and the base model is current.

        Args:
            mode: see `ItemSpec.adapter_mode`.

        Raises:
            WeightsLost: what was put back is not what was loaded; the process must end.
            InvalidRequest: the weights cannot take an adapter, and `mode` asks for that.
            AdapterNotFound, AdapterRefused, AdapterMismatch: see `worker.lora.read.read_adapter`.
        """
        if mode == "merged" and self.only_live:
            raise InvalidRequest(
                f"{self.components.precision} weights cannot take an adapter: leave adapter_mode out or ask for 'live'",
                field="adapter_mode",
            )
        self._refuse_drift()
        refs = [ref for ref, _ in adapters]
        key = adapter_key(refs, mode)
        if key == self._key:
            return "none", self._named(refs)
        loaded = [self._reader.read(ref, path) for ref, path in adapters]
        restored = self._restore()
        with ExitStack() as undo:
            undo.callback(self._restore)
            self._key = None
            for adapter in loaded:
                if adapter.ref.multiplier != 0:
                    self._put_in(adapter, live=self.only_live or mode == "live")
            undo.pop_all()
        self._key = key
        self._reports = tuple(self._report(adapter) for adapter in loaded)
        touched = len(self._dirty) + len(self.live)
        change = _change(restored=restored, merged=bool(touched))
        logger.info("adapters changed", extra={"change": change, "adapter_key": key, "parameters": touched})
        return change, self._reports

    def drift(self) -> int:
        """Count the parameters that should be clean now and are not: 0, or the process serves wrong images.

        Looks at every parameter that was ever merged into, except those that carry an adapter now; call it with none
        current to look at all of them. The cost is one pass over those weights where they lie, by sums that cannot miss
        a change of one entry, and one transfer of the verdict; the copies on the host are not read.
        """
        names = sorted(self._checksums.keys() - self._dirty)
        if not names:
            return 0
        live = torch.stack([_checksum(self._weights[name]) for name in names])
        return int((live != torch.stack([self._checksums[name] for name in names])).sum().item())

    def _refuse_drift(self) -> None:
        if self.base_drift:
            raise WeightsLost(f"{self.base_drift} restored weights are not those that were loaded")

    def _put_in(self, adapter: Adapter, *, live: bool) -> None:
        for update in adapter.layout.updates:
            parts = self._targets(update)
            if live:
                self.live.add(adapter, update, parts)
                continue
            change = layer_change(update, adapter.tensors, multiplier=adapter.ref.multiplier)
            for name, rows in parts:
                self._save(name)
                write(self._weights[name], change.take(rows.take), layer=update.layer)

    def _targets(self, update: LayerUpdate) -> tuple[LayerPart, ...]:
        """Return the parameters that an update writes, and which of the update's rows each of them takes."""
        parts = self._parts[update.layer]
        if update.rows == WHOLE:
            return parts
        # The file names one parameter by its diffusers name, so the update's rows are already that parameter's.
        (named,) = (part for part in parts if (part.origin.parts, part.origin.of) == update.rows)
        return (LayerPart(named.parameter, Origin(named.origin.tensor)),)

    def _save(self, name: str) -> None:
        """Remember what a parameter is before it is first written."""
        if name not in self._checksums:
            self._clean.keep(name)
            self._checksums[name] = _checksum(self._weights[name])
        self._dirty.add(name)

    @torch.no_grad()
    def _restore(self) -> bool:
        """Put clean weights back; return whether any had changed.

        Raises:
            WeightsLost: see `use`.
        """
        self._key = None
        dirty, had_live = sorted(self._dirty), bool(self.live)
        self.live.clear()
        self._clean.put_back(dirty)
        self._dirty.clear()
        if dirty:
            self.base_drift = self.drift()
            self._refuse_drift()
        self._key, self._reports = adapter_key(()), ()
        return had_live or bool(dirty)

    def _report(self, adapter: Adapter) -> AdapterReport:
        ref = adapter.ref
        return AdapterReport(
            path=ref.path,
            sha256=ref.sha256,
            multiplier=ref.multiplier,
            kind=adapter.layout.kind,
            ranks=adapter.layout.ranks,
            layers_touched=len(adapter.layout.layers),
            # An adapter may name every linear layer of the transformer; AI Toolkit's default trains those in blocks.
            layers_total=len(self.components.layers),
        )

    def _named(self, refs: Sequence[AdapterRef]) -> tuple[AdapterReport, ...]:
        """Return the current reports under the names of this request: equal bytes may lie at several paths."""
        pairs = zip(self._reports, refs, strict=True)
        return tuple(report.model_copy(update={"path": ref.path}) for report, ref in pairs)


@torch.no_grad()
def _checksum(weight: Tensor) -> Tensor:
    """Sum a matrix's bits as integers, each row times an odd number of its own, into one int64 on its device.

    Integers add up in any order to the same sum, modulo 2**64, and odd factors keep the change of one entry in it.
    On one core of a CPU this reads 12 GB/s; torch.equal with a copy reads 1.3 GB/s of each.
    """
    row_bytes = weight.shape[1] * weight.element_size()
    words = weight.view(next(dtype for dtype in _WORDS if row_bytes % dtype.itemsize == 0))
    numbers = torch.arange(1, 2 * len(words), 2, device=weight.device)
    return (words.sum(1, dtype=torch.int64) * numbers).sum()


def _change(*, restored: bool, merged: bool) -> Change:
    if restored:
        return "swapped" if merged else "restored"
    return "merged" if merged else "none"
