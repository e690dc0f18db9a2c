"""GET /v1/models: the models that jobs can name, and the workers that serve them now."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from fastapi import APIRouter

from api.deps import ServicesDep
from api.doors.roles import Reader
from api.limits import most_values
from api.schemas.inventory import Limits, ModelLine, ModelList, OpenAIModel
from shared.catalog import MODELS
from shared.job import ENGINES, Engine

router = APIRouter(prefix="/v1", tags=["models"])


@router.get("/models", summary="List the models")
def list_models(services: ServicesDep, _caller: Reader) -> ModelList:
    """Return every model with its defaults, licence and number of live workers."""
    workers = services.ledger.workers
    kinds = services.ledger.slot_kinds.count()
    slots, offered = Counter[str](), Counter[tuple[str, Engine]]()
    for kind, count in kinds.items():
        slots[kind.model] += count
        offered.update({(kind.model, engine): count for engine in kind.engines})
    lines = []
    for model in MODELS.values():
        base = workers.base_model(model.id, kinds)
        # The catalogue's other fields name the weights' files, which concern only workers.
        catalog_fields = {name: value for name, value in asdict(model).items() if name in ModelLine.model_fields}
        lines.append(
            ModelLine(
                **catalog_fields,
                slots=slots[model.id],
                engines={engine: offered[model.id, engine] for engine in ENGINES},
                base_revision=base.revision if base else None,
            )
        )
    limits, references = services.settings.api, services.settings.references
    # A client splits by this number; a job that exceeds the cap of the queue is refused too.
    cap = services.settings.queue.cap
    return ModelList(
        models=lines,
        data=[OpenAIModel(id=line.id, owned_by=line.base_model.partition("/")[0]) for line in lines],
        limits=Limits(
            max_prompts=min(limits.max_prompts, cap),
            max_sweep_images=min(limits.max_sweep_images, cap),
            max_sweep_jobs=limits.max_sweep_jobs,
            max_body_bytes=limits.max_body_bytes,
            max_values=most_values(limits.max_prompts),
            max_reference_images=references.max_images,
            max_reference_bytes=references.max_bytes,
        ),
    )
