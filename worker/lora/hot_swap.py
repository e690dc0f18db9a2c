"""Keep one list of adapters merged, and change it without reloading the model.

Clean weights come back by copying, never by subtracting: bfloat16 does not undo an addition (6 % of the entries would
differ after one round trip). Only parameters that some adapter has touched are put back; where from is decided by
`worker.lora.base_weights`, when they are first touched: they are clean then, because every change begins by restoring.

A change goes through the blocks in the order in which they run, in a thread and a stream of its own, and a step may
start meanwhile: each block waits for its own weights (`worker.lora.block_gate`).

Several adapters are merged in the order of the request, each in float32 and rounded once to the model's dtype, so
merging [a, b] equals merging b into a model that carries a. A DoRA scales the rows that it finds, so it belongs first:
what is added after it keeps its own size.

Adapters can also run beside the weights, in each step, as in previews that AI Toolkit does not merge; the weights of
`qfloat8` leave no other way. See `worker.lora.unmerged_update`.

A multiplier of 0 is the base model to the bit, for every kind. DoRA's formula says otherwise, its rows keep their
trained lengths at any multiplier; callers ask for 0 to see the base.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from shared.adapters.kinds import LayerUpdate
from shared.adapters.names import WHOLE
from shared.errors import AdapterRefused, InvalidRequest, WeightsLost
from shared.job import AdapterMode, AdapterRef, AdapterReport, adapter_key
from worker.checkpoint.pinned import device_thread_pool, side_stream
from worker.checkpoint.reader import Reader, already_complete
from worker.checkpoint.tensor_names import LayerPart, Origin, layer_parts
from worker.kernels.checksum import checksum
from worker.kernels.distance import rel_l2
from worker.kernels.low_rank import fits
from worker.lora.base_weights import BaseWeights
from worker.lora.block_gate import BlockGate
from worker.lora.load import Adapter, AdapterReader
from worker.lora.merge import weight_delta, write
from worker.lora.unmerged import UnmergedAdapters
from worker.model.compile import uncompiled
from worker.model.components import Components
from worker.model.fp8 import dense_weights, fp8_layers

logger = logging.getLogger("flux2.worker.lora")

Change = Literal["none", "restored", "merged", "swapped"]
Member = TypeVar("Member")


class _Piece(NamedTuple):
    """One update of an adapter, and the parameters that hold its layer's rows."""

    adapter: Adapter
    update: LayerUpdate
    parts: tuple[LayerPart, ...]


class _Ahead(NamedTuple):
    """A change that was begun before its item."""

    key: str
    change: Change
    reports: tuple[AdapterReport, ...]


class AdapterSwapper:
    """The components and what is merged into them.

    The warm key is (base revision, precision, ordered sha256 and multiplier of the adapters). The first two are fixed
    for a process, so `warm_key` alone tells whether an item needs a change.

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
        self._fast = fp8_layers(components.transformer)
        self.unmerged = UnmergedAdapters(components.transformer)
        place = components.placement.base_weights
        # Float8 weights cannot be copied from: what they were made from is read.
        regions = components.regions if place == "file" or self._fast else {}
        self._base = BaseWeights(
            device=components.device,
            place=place,
            regions=regions,
            reader=components.reader or Reader(components.device),
            device_bytes=components.placement.device_backup_bytes,
        )
        self._gate = BlockGate(components.transformer, device=components.device)
        self._writer = device_thread_pool(components.device, 1, "flux2-weights")
        self._change: Future[None] | None = None  # the one that nobody has waited for
        self._stream = side_stream(components.device)
        self._checksums: dict[str, Tensor] = {}  # of the clean weights, by parameter
        self._dense: dict[str, Tensor] = {}  # of what float8 weights are made from
        self._dirty: set[str] = set()  # parameters that differ from their clean values now
        self._key: str | None = adapter_key(())  # None while weights are being written
        self._reports: tuple[AdapterReport, ...] = ()
        self._ahead: _Ahead | None = None
        #: Restored parameters that were not clean; with anything but 0 nothing is rendered any more.
        self.corrupted = 0

    @property
    def warm_key(self) -> str:
        """What is merged now, or is going to be for an item to come, as `ItemSpec.adapter_key` names it."""
        return self._key or (self._ahead.key if self._ahead else adapter_key(()))

    @property
    def only_live(self) -> bool:
        """Whether the weights cannot take an adapter: float8 would round it away."""
        return not self.components.precision.can_merge

    def activate(
        self, adapters: Sequence[tuple[AdapterRef, Path]], *, mode: AdapterMode | None = None, wait: bool = True
    ) -> tuple[Change, tuple[AdapterReport, ...]]:
        """Make exactly these adapters current, in this order; an empty list is the base model.

        Everything that can be wrong with the files is found before the first write. If the change fails all the same,
        the clean weights are put back and the base model is current, after live adapters with the next change.

        Args:
            mode: see `ItemSpec.adapter_mode`.
            wait: if not, return when the change has begun. The transformer of `components` may then take steps, which
                count for nothing until `wait` has returned.

        Raises:
            WeightsLost: what was put back is not what was loaded; the process must end.
            InvalidRequest: the weights cannot take an adapter, and `mode` asks for that.
            AdapterNotFound, AdapterRefused, AdapterMismatch: see `worker.lora.load.read_adapter`; AdapterRefused too
                if a merged weight is not finite.
        """
        self._check_mode(mode)
        self._gate.skip_remaining()
        refs = [ref for ref, _ in adapters]
        key = adapter_key(refs, mode)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.key == key:
            if wait:
                self.wait()
            return ahead.change, _named(ahead.reports, refs)
        self._abandon()
        self._refuse_drift()
        if key == self._key:
            return "none", _named(self._reports, refs)
        change, reports = self._start(adapters, mode, key=key)
        if wait:
            self.wait()
        return change, reports

    def begin_next(
        self, adapters: Sequence[tuple[AdapterRef, Path]], *, mode: AdapterMode | None = None, passes: int
    ) -> None:
        """Begin to make adapters current while the last passes still run with what is current now.

        Each block's weights change when the last pass has gone through it. `activate` finds a swap to the same adapters
        begun, and swaps again for others. Adapters that run beside the weights, now or then, are left to `activate`.

        Args:
            passes: through the transformer that are to come with what is current; if they do not, `abandon_passes` must
                be called, and `activate` does.

        Raises:
            InvalidRequest, AdapterNotFound, AdapterRefused, AdapterMismatch: see `activate`; nothing has changed.
        """
        self._check_mode(mode)
        key = adapter_key([ref for ref, _ in adapters], mode)
        self.wait()
        beside = self.unmerged or self.only_live or mode == "live"
        if beside or self.corrupted or self._key in (None, key):
            return
        self._ahead = _Ahead(key, *self._start(adapters, mode, key=key, passes=passes))

    def abandon_passes(self) -> None:
        """Say that no more passes come with what was current before `begin_next`, whether all of them came or not."""
        self._gate.skip_remaining()

    def _check_mode(self, mode: AdapterMode | None) -> None:
        only = "live" if self.only_live else "merged" if self._fast else mode
        if mode not in (None, only):
            raise InvalidRequest(
                f"{self.components.precision.name} weights take adapters {only} only: leave adapter_mode out",
                field="adapter_mode",
            )

    def _start(
        self, adapters: Sequence[tuple[AdapterRef, Path]], mode: AdapterMode | None, *, key: str, passes: int = 0
    ) -> tuple[Change, tuple[AdapterReport, ...]]:
        """Read the adapters, and begin to change the weights once so many passes are done with them."""
        loaded = [self._reader.read(ref, path) for ref, path in adapters]
        strong = [adapter for adapter in loaded if adapter.ref.multiplier != 0]
        change = _change(restored=bool(self._dirty or self.unmerged), merged=bool(strong))
        self._key = None
        self.unmerged.clear()
        pieces: list[_Piece] = []
        if self.only_live or mode == "live":
            for adapter in strong:
                for update in adapter.layout.updates:
                    self.unmerged.add(adapter, update, self._targets(update))
        else:
            pieces = [_Piece(adapter, one, self._targets(one)) for adapter in strong for one in adapter.felt]
        reports = tuple(self._report(adapter) for adapter in loaded)
        self._begin(pieces, key=key, reports=reports, passes=passes)
        logger.info("adapters change", extra={"change": change, "adapter_key": key})
        return change, reports

    def prepare(self, ref: AdapterRef, path: Path) -> None:
        """Read and check an adapter that will be used, if there is room to remember it; from any thread.

        Raises:
            AdapterNotFound, AdapterRefused, AdapterMismatch: see `worker.lora.load.read_adapter`.
        """
        self._reader.prepare(ref, path)

    def fp8_error(self, step: Callable[[], Tensor]) -> float:
        """Return how far float8 is from bfloat16: of what a step gives, the difference's length by its own.

        Args:
            step: runs the transformer once; called as it serves, and then with its modules as they are written and
                clean bfloat16 weights, which are fetched layer by layer.
        """

        def fetch(name: str) -> Tensor:
            values, arrive = self._put_back([name], changed=())
            arrive()
            return values[name]

        with torch.no_grad():
            fast = step()
            with uncompiled(), dense_weights(self.components.transformer, fetch):
                exact = step()
        return rel_l2(fast, exact)

    def wait(self) -> None:
        """Return when the change that `activate` began is complete; raises what it would have raised."""
        change, self._change = self._change, None
        if change is not None:
            change.result()

    def count_corrupted(self) -> int:
        """Count the parameters that should be clean now and are not: 0, or the process serves wrong images.

        Looks at every parameter that was ever merged into, except those that carry an adapter now; call it with none
        current to look at all of them. The cost is one pass over those weights where they lie, by sums that cannot miss
        a change of one entry, and one transfer of the verdict; the copies on the host are not read.
        """
        return _differing(
            [(self._checksum(name), self._checksums[name]) for name in self._checksums.keys() - self._dirty]
        )

    def _abandon(self) -> None:
        """Wait for a change whose failure nobody wants to know any more: its item has ended.

        What failed is undone by then, or if that failed too, it is by the change that comes.
        """
        try:
            self.wait()
        except WeightsLost:
            raise
        except Exception as error:  # noqa: BLE001 - it was the ended item's
            logger.warning("a change failed", extra={"error": f"{type(error).__name__}: {error}"})

    def _refuse_drift(self) -> None:
        if self.corrupted:
            raise WeightsLost(f"{self.corrupted} restored weights are not those that were loaded")

    def _begin(self, pieces: Sequence[_Piece], *, key: str, reports: tuple[AdapterReport, ...], passes: int) -> None:
        """Change the weights in the other thread; blocks wait from now on, or from after so many passes."""
        if self._stream is not None and not passes:  # what runs now still reads the weights
            torch.cuda.current_stream(self.components.device).synchronize()
        self._gate.begin(passes=passes)
        try:
            self._change = self._writer.submit(self._write, pieces, key=key, reports=reports)
        except RuntimeError:  # no thread could be started
            self._gate.end()
            raise

    @torch.no_grad()
    def _write(self, pieces: Sequence[_Piece], *, key: str, reports: tuple[AdapterReport, ...]) -> None:
        with torch.cuda.stream(self._stream), ExitStack() as held:
            held.callback(self._gate.end)
            undo = held.enter_context(ExitStack())
            undo.callback(self._restore)
            self._rewrite(pieces)
            undo.pop_all()
            self._key, self._reports = key, reports

    def _rewrite(self, pieces: Sequence[_Piece]) -> None:
        """Put back what is dirty and merge, one block after the other.

        Raises:
            WeightsLost: see `activate`.
            AdapterRefused: a merged weight is not finite; names its layer.
        """
        touched = {part.parameter for piece in pieces for part in piece.parts}
        size = self.components.dtype.itemsize
        self._base.plan_backups({name: size * self._weights[name].numel() for name in touched})
        groups = range(self._gate.groups)
        names = self._by_group(self._dirty | (touched & self._fast.keys()), lambda name: name)
        members = self._by_group(enumerate(pieces), lambda member: member[1].parts[0].parameter)
        sums: list[tuple[Tensor, Tensor]] = []
        first: dict[str, Tensor] = {}
        broken = torch.zeros(len(pieces), dtype=torch.int32, device=self.components.device)

        def fetch(group: int) -> tuple[dict[str, Tensor], Callable[[], None]]:
            if group == len(groups):
                return {}, already_complete
            if names[group] or members[group]:
                self._gate.wait_until_drained(group)
            return self._put_back(names[group], changed=touched)

        following = fetch(0)
        for group in groups:
            values, arrive = following
            following = fetch(group + 1)
            arrive()
            for name, dense in values.items():
                sums += self._sums(name, dense, first=first)
            for number, piece in members[group]:
                self._merge(piece, values, broken=broken[number])
            for name in self._fast.keys() & values.keys():
                self._fast[name].quantize_from(values[name])
            self._gate.arrived(group)
        self.corrupted += _differing(sums)
        self._refuse_drift()
        self._dense |= first
        self._dirty = touched
        for piece, is_broken in zip(pieces, broken.tolist(), strict=True):
            if is_broken:
                raise AdapterRefused(
                    f"{piece.update.layer}: the adapter's values are so large that the merged weight is not finite"
                )

    def _sums(self, name: str, dense: Tensor, *, first: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return checksums of what has been put back, and what they must be.

        Float8 weights are compared once with what they are made from now; from then on that is compared.

        Args:
            first: gets the sums of what was read for the first time, which count once these have been compared.
        """
        found = checksum(dense)
        if name not in self._fast:
            return [(found, self._checksums[name])]
        self._save(name, dense)
        if name in self._dense:
            return [(found, self._dense[name])]
        first[name] = found
        self._fast[name].quantize_from(dense)
        return [(self._checksum(name), self._checksums[name])]

    def _by_group(self, members: Iterable[Member], parameter: Callable[[Member], str]) -> list[list[Member]]:
        """Sort what belongs to a parameter by the blocks that hold those."""
        found: list[list[Member]] = [[] for _ in range(self._gate.groups)]
        for member in members:
            found[self._gate.group_of[parameter(member)]].append(member)
        return found

    def _put_back(
        self, names: Sequence[str], *, changed: Collection[str]
    ) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """Begin to fetch clean weights: into the weights, or for float8 beside them; return what waits for them.

        Copies on the device are read where they lie, for float8 and for what is about to be `changed`.
        """
        values, waits = {}, []
        for name in names:
            copy, weight = self._base.copy_on_device(name), self._weights[name]
            if copy is not None and (name in self._fast or name in changed):
                values[name] = copy
                continue
            values[name] = torch.empty_like(weight, dtype=self.components.dtype) if name in self._fast else weight
            waits.append(self._base.restore(name, values[name]))

        def arrive() -> None:
            for wait in waits:
                wait()

        return values, arrive

    def _merge(self, piece: _Piece, values: dict[str, Tensor], *, broken: Tensor) -> None:
        """Merge one update into what `values` has of its parameters, or else into the weights, and leave it there.

        Args:
            broken: see `worker.lora.merge.write`.
        """
        adapter, update, parts = piece
        found = [values.get(name, self._weights[name]) for name, _ in parts]
        in_parts = all(fits(old) for old in found)
        change = weight_delta(update, adapter.tensors, multiplier=adapter.ref.multiplier, in_parts=in_parts)
        for (name, rows), old in zip(parts, found, strict=True):
            self._save(name, old)
            target = self._weights[name]
            if name in self._fast:
                target = torch.empty_like(old) if old is self._base.copy_on_device(name) else old
            write(target, change.take(rows.select_rows), old=old, broken=broken)
            values[name] = target

    def _targets(self, update: LayerUpdate) -> tuple[LayerPart, ...]:
        """Return the parameters that an update writes, and which of the update's rows each of them takes."""
        parts = self._parts[update.layer]
        if update.rows == WHOLE:
            return parts
        # The file names one parameter by its diffusers name, so the update's rows are already that parameter's.
        (named,) = (part for part in parts if (part.origin.parts, part.origin.of) == update.rows)
        return (LayerPart(named.parameter, Origin(named.origin.tensor)),)

    def _save(self, name: str, clean: Tensor) -> None:
        """Remember what a parameter is before it is first changed."""
        if name not in self._dirty:
            self._base.back_up(name, clean)
            if name not in self._checksums:
                self._checksums[name] = self._checksum(name)
            self._dirty.add(name)

    def _restore(self) -> None:
        """Put all clean weights back after a change has failed.

        Raises:
            WeightsLost: see `activate`.
        """
        self._base.wait()
        if self._stream is not None:  # merges may still be under way, and read what is freed after this
            self._stream.synchronize()
        self._rewrite(())
        # Hooks of live adapters are still on, and another thread may be running them: the next change takes them off.
        self._key, self._reports = None if self.unmerged else adapter_key(()), ()

    def _checksum(self, name: str) -> Tensor:
        """Sum a parameter's bits, and with float8 those of its scales."""
        bits = checksum(self._weights[name])
        if name not in self._fast:
            return bits
        scale: Any = self._fast[name].scale
        return bits + 3 * checksum(scale)

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


def _named(reports: Sequence[AdapterReport], refs: Sequence[AdapterRef]) -> tuple[AdapterReport, ...]:
    """Return reports under the names of this request: equal bytes may lie at several paths."""
    return tuple(report.model_copy(update={"path": ref.path}) for report, ref in zip(reports, refs, strict=True))


def _differing(sums: Sequence[tuple[Tensor, Tensor]]) -> int:
    """Count the pairs that are not equal: all of them are read from the device at once."""
    if not sums:
        return 0
    found, expected = (torch.stack(column) for column in zip(*sums, strict=True))
    return int((found != expected).sum())


def _change(*, restored: bool, merged: bool) -> Change:
    if restored:
        return "swapped" if merged else "restored"
    return "merged" if merged else "none"
