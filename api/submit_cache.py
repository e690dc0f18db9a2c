"""Read workers, base models, adapter files and reference images once for a call, however many jobs it has.

A replay makes one job for each adapter strength: 1,000 of them read workers and adapter headers 1,000 times, which took
1.8 s of CPU for a small adapter.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from functools import cached_property

from shared.adapters.remote import RemoteAdapters, call_deadline
from shared.adapters.validate import ValidAdapter, naming_lora, validate_adapter
from shared.catalog import Model
from shared.ledger import Ledger
from shared.ledger.slot_kinds import SlotKind
from shared.ledger.workers import BaseModelInfo
from shared.request import LoraItem
from shared.request_references import Intake, RequestReferences
from shared.settings import AdaptersSettings


class SubmitCache:
    """The kinds of live slots, loaded base models and files of one call, read when its first job needs them.

    Attributes:
        references: the reference images of the call.
    """

    def __init__(self, ledger: Ledger, settings: AdaptersSettings, remote: RemoteAdapters, *, intake: Intake) -> None:
        self._ledger = ledger
        self._settings = settings
        self._remote = remote
        self._remote_until = call_deadline()
        self.references = RequestReferences(intake, deadline=self._remote_until)
        self._bases: dict[str, BaseModelInfo | None] = {}
        self._adapters: dict[tuple[Hashable, ...], ValidAdapter] = {}

    @cached_property
    def slot_kinds(self) -> Collection[SlotKind]:
        return self._ledger.slot_kinds.count()

    def base_model(self, model: Model) -> BaseModelInfo | None:
        if model.id not in self._bases:
            self._bases[model.id] = self._ledger.workers.base_model(model.id, self.slot_kinds)
        return self._bases[model.id]

    def adapters(self, loras: Sequence[LoraItem], model: Model) -> list[ValidAdapter]:
        """Validate the adapter files of a job, each of which is read once; see `validate_adapters` for its errors."""
        adapters = []
        for index, lora in enumerate(loras):
            with naming_lora(index):
                adapters.append(self._adapter(lora, model))
        return adapters

    def _adapter(self, lora: LoraItem, model: Model) -> ValidAdapter:
        key = model.id, lora.path, lora.sha256, lora.ignored_parts
        if key not in self._adapters:
            base = self.base_model(model)
            self._adapters[key] = validate_adapter(
                lora,
                model,
                layers=base.layers if base else None,
                settings=self._settings,
                remote=self._remote,
                deadline=self._remote_until,
            )
        # The file is the same, the multiplier may differ.
        ref, warnings = self._adapters[key]
        return ValidAdapter(ref.model_copy(update={"multiplier": lora.multiplier}), warnings)
