"""Merge adapters into the weights and restore the base weights, one block after the other.

Only parameters that an adapter has changed are restored. A checksum shows whether a restored parameter has the bits
that were loaded; if it has not, the process renders nothing more.

Several adapters are merged in the order of the request, each in float32 and rounded once to the model's dtype, so
merging [a, b] equals merging b into a model that has a merged. A DoRA scales the rows or columns that it finds, so it
belongs first: it does not scale an adapter that is merged after it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from shared.adapters.kinds import LayerUpdate
from shared.errors import AdapterRefused, WeightsLost
from shared.layer_names import WHOLE
from worker.checkpoint.reader import Reader, already_complete
from worker.checkpoint.tensor_names import WrittenRows, layer_parts, written_rows
from worker.kernels.checksum import checksum
from worker.kernels.distance import rel_l2
from worker.kernels.low_rank import can_add_low_rank
from worker.lora.base_weights import BaseWeights
from worker.lora.block_gate import BlockGate
from worker.lora.load import Adapter
from worker.lora.merge import NO_DIRECTION, DenseDelta, LowRankDelta, weight_delta, write_merged
from worker.model.compile import uncompiled
from worker.model.components import Components
from worker.model.fp8 import attends_in_float8, attention_in_bfloat16, dense_weights, fp8_layers

Member = TypeVar("Member")


class Merge(NamedTuple):
    """One update of an adapter, and the parameters that hold its layer's rows."""

    adapter: Adapter
    update: LayerUpdate
    targets: tuple[WrittenRows, ...]


class Fp8Error(NamedTuple):
    """The relative L2 distance of a step in float8 from the same step in bfloat16.

    Attributes:
        whole: the distance.
        of_attention: by how much attention in float8 makes it larger; None if attention is in bfloat16.
    """

    whole: float
    of_attention: float | None


class WeightWriter:
    """Merges updates into a transformer's parameters and restores them.

    Args:
        gate: opened for each block as soon as the block's weights are complete.

    Attributes:
        corrupted: number of restored parameters so far whose bits differ from the loaded ones.
    """

    def __init__(self, components: Components, *, gate: BlockGate) -> None:
        self.corrupted = 0
        self._components = components
        self._gate = gate
        self._parts = layer_parts(components.transformer)
        self._weights: dict[str, Tensor] = dict(components.transformer.named_parameters())
        self._fp8 = fp8_layers(components.transformer)
        place = components.placement.base_weights
        # Float8 weights cannot be restored from a copy of themselves: they are quantised again from the file.
        regions = components.regions if place == "file" or self._fp8 else {}
        self._base = BaseWeights(
            device=components.device,
            place=place,
            regions=regions,
            reader=components.reader or Reader(components.device),
            device_bytes=components.placement.device_backup_bytes,
        )
        self._checksums: dict[str, Tensor] = {}  # of the base weights on the device, by parameter
        self._dense_checksums: dict[str, Tensor] = {}  # of the bfloat16 values that float8 weights are made from
        self._changed: set[str] = set()  # parameters that differ from their base values now

    @property
    def is_base(self) -> bool:
        """Whether no parameter carries an adapter."""
        return not self._changed

    def targets(self, update: LayerUpdate) -> tuple[WrittenRows, ...]:
        """Return the parameters that an update writes, each with its rows of the update."""
        return written_rows(self._parts[update.layer], update.rows)

    def write(self, merges: Sequence[Merge]) -> None:
        """Restore all changed parameters and merge these updates, one block after the other.

        Raises:
            WeightsLost: base weights cannot be read, or differ from those that were loaded.
            AdapterRefused: a merged weight is not finite; names its layer.
        """
        touched = {part.parameter for merge in merges for part in merge.targets}
        size = self._components.dtype.itemsize
        self._base.plan_backups({name: size * self._weights[name].numel() for name in touched})
        # Adapters are merged into a float8 weight's bfloat16 values, so those are read even if the weight is base now.
        names = self._by_group(self._changed | (touched & self._fp8.keys()), lambda name: name)
        members = self._by_group(enumerate(merges), lambda member: member[1].targets[0].parameter)
        checks: list[tuple[Tensor, Tensor]] = []
        first_read: dict[str, Tensor] = {}
        non_finite = torch.zeros(len(merges), dtype=torch.int32, device=self._components.device)
        written = [bool(names[group] or members[group]) for group in range(self._gate.group_count)]
        for group, values in enumerate(self._restored_groups(names, written, changed=touched)):
            # Before the merge: afterwards the base values are gone.
            for name, dense in values.items():
                checks += self._checks(name, dense, first_read=first_read)
            for number, merge in members[group]:
                self._merge(merge, values, non_finite=non_finite[number])
            for name in self._fp8.keys() & values.keys():
                self._fp8[name].quantize_from(values[name])
            self._gate.open_group(group)
            # Float8 weights have their dense values in new memory; keeping them while the next group but one arrives
            # would take 1 to 2 GB more at full size.
            values.clear()
        # One transfer for all checks, after every block may run: reading a verdict makes this thread wait.
        self.corrupted += _count_different(checks)
        self.refuse_corrupted()
        self._dense_checksums |= first_read
        self._changed = touched
        _refuse_non_finite(merges, non_finite)

    def restore(self) -> None:
        """Restore all changed parameters after `write` has failed.

        Raises:
            WeightsLost: see `write`.
        """
        self._base.finish_reads()
        if self._components.device.type == "cuda":
            # Merges may still run on this stream, and read memory that is freed after this.
            torch.cuda.current_stream(self._components.device).synchronize()
        self.write(())

    def refuse_corrupted(self) -> None:
        """Raise WeightsLost if a restored parameter differed from the loaded one."""
        if self.corrupted:
            raise WeightsLost(f"{self.corrupted} restored weights differ from those that were loaded")

    def count_corrupted(self) -> int:
        """Count the parameters that should have their base values now but do not.

        Covers every parameter that an adapter ever changed, except those that carry an adapter now. Costs one pass over
        those weights on their device, and one transfer of the verdict; backups on the host are not read.
        """
        return _count_different(
            [(self._checksum(name), self._checksums[name]) for name in self._checksums.keys() - self._changed]
        )

    def fp8_error(self, step: Callable[[], Tensor]) -> Fp8Error:
        """Return the distance of a step in float8 from the same step in bfloat16.

        Args:
            step: runs the transformer once. It is called as for an item, and uncompiled with bfloat16 base weights,
                which are read layer by layer; twice more if attention is in float8 too.
        """

        def fetch(name: str) -> Tensor:
            values, wait = self._begin_restore([name], changed=())
            wait()
            return values[name]

        transformer = self._components.transformer
        with torch.no_grad():
            fast = step()
            # Uncompiled: compiled code ignores the hooks by which `dense_weights` replaces the weights.
            with uncompiled(), attention_in_bfloat16(transformer), dense_weights(transformer, fetch):
                exact = step()
            whole = rel_l2(fast, exact)
            if not attends_in_float8(transformer):
                return Fp8Error(whole, None)
            # Both uncompiled, so that they differ in nothing but attention, and nothing is compiled that no item needs.
            with uncompiled():
                both = rel_l2(step(), exact)
                with attention_in_bfloat16(transformer):
                    layers = rel_l2(step(), exact)
        return Fp8Error(whole, both - layers)

    def _restored_groups(
        self, names: Sequence[Collection[str]], written: Sequence[bool], *, changed: Collection[str]
    ) -> Iterator[dict[str, Tensor]]:
        """Yield each group's restored parameters while the next group's are on their way.

        Args:
            names: parameters to restore, by group.
            written: whether a group will be written and must be drained before, by group.
        """

        def begin(group: int) -> tuple[dict[str, Tensor], Callable[[], None]]:
            if group == len(names):
                return {}, already_complete
            if written[group]:
                self._gate.wait_until_drained(group)
            return self._begin_restore(names[group], changed=changed)

        following = begin(0)
        for group in range(len(names)):
            values, wait = following
            following = begin(group + 1)  # its transfer runs while this group is verified and merged
            wait()
            yield values

    def _begin_restore(
        self, names: Collection[str], *, changed: Collection[str]
    ) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """Begin to restore parameters; return their values, and a function that waits until the values have arrived.

        Values arrive in the parameters themselves, or for float8 in new memory.

        Args:
            changed: parameters that a merge overwrites afterwards.
        """
        values, waits = {}, []
        for name in names:
            copy, weight = self._base.copy_on_device(name), self._weights[name]
            # The merge reads a copy on the device in place, so restoring the parameter first would be wasted.
            if copy is not None and (name in self._fp8 or name in changed):
                values[name] = copy
                continue
            values[name] = torch.empty_like(weight, dtype=self._components.dtype) if name in self._fp8 else weight
            waits.append(self._base.restore(name, values[name]))

        def wait_for_all() -> None:
            for wait in waits:
                wait()

        return values, wait_for_all

    def _checks(self, name: str, dense: Tensor, *, first_read: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return pairs of checksums, found and expected, of a restored parameter.

        Args:
            first_read: receives the checksum of bfloat16 values that are read for the first time.
        """
        found = checksum(dense)
        if name not in self._fp8:
            return [(found, self._checksums[name])]
        self._back_up(name, dense)
        if name in self._dense_checksums:
            return [(found, self._dense_checksums[name])]
        # Nothing is known about bfloat16 values on their first read, so the float8 weights made from them are compared;
        # later reads are compared with these values.
        first_read[name] = found
        self._fp8[name].quantize_from(dense)
        return [(self._checksum(name), self._checksums[name])]

    def _merge(self, merge: Merge, values: dict[str, Tensor], *, non_finite: Tensor) -> None:
        """Merge one update into its parameters.

        Args:
            values: restored values of this group, by parameter; replaced by the merged ones. A parameter that is not
                among them has its base values.
            non_finite: see `worker.lora.merge.write_merged`.
        """
        adapter, update, targets = merge
        olds = [values.get(target.parameter, self._weights[target.parameter]) for target in targets]
        factored = all(can_add_low_rank(target.select(old)) for target, old in zip(targets, olds, strict=True))
        whole = weight_delta(update, adapter.tensors, multiplier=adapter.ref.multiplier, factored=factored)
        deltas: Sequence[DenseDelta | LowRankDelta] = whole.split(
            [target.source.select_rows for target in targets],
            olds=[target.select(old) for target, old in zip(targets, olds, strict=True)],
        )
        for target, old, delta in zip(targets, olds, deltas, strict=True):
            name = target.parameter
            self._back_up(name, old)
            weight = self._weights[name]
            if name in self._fp8:
                # A copy on the device is the backup and must not change.
                weight = torch.empty_like(old) if old is self._base.copy_on_device(name) else old
            if target.part != WHOLE and old is not weight:
                # The merge writes its own rows only.
                weight.copy_(old)
            write_merged(target.select(weight), delta, old=target.select(old), non_finite=non_finite)
            values[name] = weight

    def _back_up(self, name: str, base: Tensor) -> None:
        """Back a parameter up before its first change."""
        # Until then it has its base values, so they are also the ones to compute the checksum from.
        if name not in self._changed:
            self._base.back_up(name, base)
            if name not in self._checksums:
                self._checksums[name] = self._checksum(name)
            self._changed.add(name)

    def _checksum(self, name: str) -> Tensor:
        """Sum a parameter's bits, and with float8 those of its scales."""
        bits = checksum(self._weights[name])
        if name not in self._fp8:
            return bits
        scale: Any = self._fp8[name].scale
        return bits + 3 * checksum(scale)

    def _by_group(self, members: Iterable[Member], parameter: Callable[[Member], str]) -> list[list[Member]]:
        """Sort members by the group of the gate that holds their parameter."""
        found: list[list[Member]] = [[] for _ in range(self._gate.group_count)]
        for member in members:
            found[self._gate.group_of[parameter(member)]].append(member)
        return found


def _refuse_non_finite(merges: Sequence[Merge], non_finite: Tensor) -> None:
    for merge, verdict in zip(merges, non_finite.tolist(), strict=True):
        if verdict & NO_DIRECTION:
            raise AdapterRefused(
                f"{merge.update.layer}: the merged weight is not finite, because a row of weight plus update is all "
                f"zeros and cannot be scaled to its length in {merge.update.tensors['magnitude']!r}; change the "
                "multiplier, or export the adapter without this layer"
            )
        if verdict:
            raise AdapterRefused(
                f"{merge.update.layer}: the adapter's values are so large that the merged weight is not finite; lower "
                "its multiplier"
            )


def _count_different(pairs: Sequence[tuple[Tensor, Tensor]]) -> int:
    """Count the pairs that are not equal, with one transfer from the device for all of them."""
    if not pairs:
        return 0
    found, expected = (torch.stack(column) for column in zip(*pairs, strict=True))
    return int((found != expected).sum())
