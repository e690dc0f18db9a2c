"""Render a request from a file: the same job without queue and storage, to tell a wrong picture from a wrong queue."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.adapters.locate import locate_adapter
from shared.adapters.validate import validate_adapters
from shared.errors import InvalidRequest
from shared.outputs import make_output_folder
from shared.request import InferenceRequest
from shared.resolve import check_prompts, collect_warnings, find_model, reject_unsupported_fields, resolve_items
from shared.settings import Settings
from worker.consumer import image_file
from worker.device import pick_device
from worker.model.load import load_components
from worker.rendering.renderer import Renderer
from worker.rendering.toolkit_checkout import load_toolkit

logger = logging.getLogger("flux2.worker")


@dataclass(frozen=True)
class Saved:
    """One image on disk and how it was made."""

    file: Path
    report: dict[str, Any]


def render_request(text: bytes, output: Path, settings: Settings) -> Iterator[Saved]:
    """Render each prompt of a request, as a worker with these settings would, into `output`.

    Args:
        text: the request's JSON.

    Raises:
        OutputRefused: `output` cannot be made.
        RequestError: what the API would refuse.
        RunError, CheckpointError: see `worker.rendering.renderer` and `worker.model.load`.
    """
    try:
        request = InferenceRequest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{place or 'the request'}: {first['msg']}") from error
    model = find_model(request.model)
    if model.id != settings.model.id:
        raise InvalidRequest(f"the request is for {model.id!r}, and FLUX2_MODEL_ID is {settings.model.id!r}")
    reject_unsupported_fields(request)
    device = pick_device(settings.worker.device)
    toolkit = load_toolkit(settings.ai_toolkit_path) if settings.ai_toolkit_path else None
    components = load_components(settings.model, device=device, hf_token=settings.hub_token())
    adapters = validate_adapters(request.loras, model, layers=components.layers, settings=settings.adapters)
    items = resolve_items(request, model, adapters)
    check_prompts(items)
    for warning in collect_warnings(request, items, model):
        logger.warning("request", extra={"warning": warning})
    renderer = Renderer(components, prompt_cache=settings.worker.prompt_cache, toolkit=toolkit)
    renderer.warm_up()
    paths = [locate_adapter(ref.path, root=settings.adapters.root) for ref in adapters]
    make_output_folder(output)
    for index, spec in enumerate(items):
        rendered = renderer.render(spec, paths, on_progress=lambda progress: None)
        report = {
            **spec.model_dump(mode="json"),
            "index": index,
            "pipeline": rendered.pipeline.model_dump(mode="json"),
        }
        file = output / f"{index}.{spec.output_format}"
        file.write_bytes(image_file.encode(rendered.image, spec.output_format, report))
        adapter_reports = [adapter.model_dump(mode="json") for adapter in rendered.adapters]
        yield Saved(file, {**report, "adapters": adapter_reports, "timings": rendered.timings})
