"""GET /v1/models: what can be asked for, and who serves it now."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from fastapi import APIRouter

from api.deps import ServicesDep
from api.schemas import ModelLine, ModelList
from shared.catalog import MODELS
from shared.job import ENGINES

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models")
def list_models(services: ServicesDep) -> ModelList:
    """The catalogue, with defaults, licences and live workers."""
    slots = services.ledger.workers.live_slots()
    offered = Counter((slot.model, engine) for slot in slots for engine in slot.engines)
    lines = []
    for model in MODELS.values():
        base = services.ledger.workers.base_model(model.id, slots)
        facts = {name: value for name, value in asdict(model).items() if name in ModelLine.model_fields}
        lines.append(
            ModelLine(
                **facts,
                slots=sum(slot.model == model.id for slot in slots),
                engines={engine: offered[model.id, engine] for engine in ENGINES},
                base_revision=base.revision if base else None,
            )
        )
    return ModelList(models=lines)
