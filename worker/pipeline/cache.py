"""Keep one list of adapters merged, and change it without reloading the model.

Clean weights come back by copying, never by subtracting: bfloat16 does not undo an addition (6 % of the entries would
differ after one round trip). Only parameters that some adapter has touched are copied, to host memory, at first touch;
they are clean then, because every change begins by restoring.

Several adapters are merged in the order of the request, each added in float32 and rounded once to the model's dtype, so
merging [a, b] equals merging b into a model that carries a.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from shared.job import AdapterRef, AdapterReport, adapter_key
from worker.lora.merge import add, layer_delta
from worker.lora.read import Adapter, read_adapter
from worker.pipeline.bfl import layer_parts
from worker.pipeline.components import Components

logger = logging.getLogger("flux2.worker.pipeline")

Change = Literal["none", "restored", "merged", "swapped"]


class WarmPipeline:
    """The components and what is merged into them.

    The warm key is (base revision, precision, ordered sha256 and multiplier of the adapters). The first two are fixed
    for a process, so `adapter_key` alone tells whether an item needs a change.
    """

    def __init__(self, components: Components) -> None:
        self.components = components
        self._parts = layer_parts(components.transformer)
        self._weights: dict[str, Tensor] = dict(components.transformer.named_parameters())
        self._clean: dict[str, Tensor] = {}  # host copies, by parameter; kept for the life of the process
        self._dirty: set[str] = set()  # parameters that differ from their clean values now
        self._key: str | None = adapter_key(())  # None while weights are being written
        self._reports: tuple[AdapterReport, ...] = ()

    @property
    def adapter_key(self) -> str:
        """What is merged now, as `ItemSpec.adapter_key` names it."""
        return self._key or adapter_key(())

    def use(self, adapters: Sequence[tuple[AdapterRef, Path]]) -> tuple[Change, tuple[AdapterReport, ...]]:
        """Make exactly these adapters current, in this order; an empty list is the base model.

        Everything that can be wrong with the files is found before the first write. If the change fails all the same,
        the clean weights are put back and the base model is current.

        Raises:
            AdapterNotFound, AdapterRefused, AdapterMismatch: see `worker.lora.read.read_adapter`.
        """
        refs = [ref for ref, _ in adapters]
        key = adapter_key((ref.sha256, ref.multiplier) for ref in refs)
        if key == self._key:
            return "none", self._named(refs)
        loaded = [self._read(ref, path) for ref, path in adapters]
        restored = self._restore()
        with ExitStack() as undo:
            undo.callback(self._restore)
            self._key = None
            for adapter in loaded:
                self._merge(adapter)
            undo.pop_all()
        self._key = key
        self._reports = tuple(self._report(adapter) for adapter in loaded)
        change = _change(restored=restored, merged=bool(self._dirty))
        logger.info("adapters changed", extra={"change": change, "adapter_key": key, "parameters": len(self._dirty)})
        return change, self._reports

    def _read(self, ref: AdapterRef, path: Path) -> Adapter:
        components = self.components
        return read_adapter(ref, path, model=components.model, layers=components.layers, device=components.device)

    def _merge(self, adapter: Adapter) -> None:
        multiplier = adapter.ref.multiplier
        if multiplier == 0:
            return
        for update in adapter.layout.updates:
            delta = layer_delta(update, adapter.tensors, multiplier=multiplier)
            for name, origin in self._parts[update.layer]:
                self._save(name)
                add(self._weights[name], origin.take(delta), layer=update.layer)

    def _save(self, name: str) -> None:
        """Copy a parameter to the host before it is first written."""
        if name not in self._clean:
            self._clean[name] = _host_copy(self._weights[name])
        self._dirty.add(name)

    @torch.no_grad()
    def _restore(self) -> bool:
        """Put clean weights back; return whether any had changed."""
        self._key = None
        dirty = sorted(self._dirty)
        for name in dirty:
            self._weights[name].copy_(self._clean[name], non_blocking=True)
            self._dirty.remove(name)
        self._key, self._reports = adapter_key(()), ()
        return bool(dirty)

    def _report(self, adapter: Adapter) -> AdapterReport:
        ref, updates = adapter.ref, adapter.layout.updates
        return AdapterReport(
            path=ref.path,
            sha256=ref.sha256,
            multiplier=ref.multiplier,
            kind=adapter.layout.kind,
            ranks=tuple(sorted({update.rank for update in updates})),
            layers_touched=len(updates),
            # An adapter may name every linear layer of the transformer; AI Toolkit's default trains those in blocks.
            layers_total=len(self.components.layers),
        )

    def _named(self, refs: Sequence[AdapterRef]) -> tuple[AdapterReport, ...]:
        """Return the current reports under the names of this request: equal bytes may lie at several paths."""
        pairs = zip(self._reports, refs, strict=True)
        return tuple(report.model_copy(update={"path": ref.path}) for report, ref in pairs)


def _host_copy(weight: Tensor) -> Tensor:
    """Copy a weight to the host, page-locked beside a GPU: it then comes back at 54 GB/s instead of 8.

    Pages are touched by all cores, locked, then filled: 0.12 s a GB on an H100's host. A plain copy took 0.8 s a GB,
    nearly all of it page faults, and torch's own locked memory 0.4 s with sizes rounded up to powers of two.
    """
    copy = torch.empty_like(weight, device="cpu")
    if weight.is_cuda:
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        torch.cuda.check_error(runtime.cudaHostRegister(copy.zero_().data_ptr(), copy.nbytes, 0))
        weakref.finalize(copy, runtime.cudaHostUnregister, copy.data_ptr()).atexit = False
    return copy.copy_(weight)


def _change(*, restored: bool, merged: bool) -> Change:
    if restored:
        return "swapped" if merged else "restored"
    return "merged" if merged else "none"
