"""Render a request from a file, without queue and storage.

This shows whether a wrong image comes from the renderer or from the queue.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from shared.adapters.locate import locate_adapter, naming_root
from shared.adapters.remote import RemoteAdapters, call_deadline
from shared.adapters.validate import validate_adapters
from shared.catalog import Model, find_model
from shared.errors import InvalidRequest
from shared.job import Engine
from shared.model_places import check_model_places
from shared.outputs import make_output_folder
from shared.provenance.signer import ImageSigner, open_signer
from shared.references import LoadReference
from shared.request import InferenceRequest
from shared.request_references import RequestReferences
from shared.resolve import check_prompts, collect_warnings, reject_unsupported_fields, resolve_items
from shared.settings import Settings
from shared.sources.source import LocalFile, parse_source
from shared.sources.sources import Sources
from worker.checkpoint.hub_cache import require_cached_model
from worker.consumer import image_file, signing
from worker.consumer.adapter_files import ItemFiles, open_adapter_files
from worker.offline_references import OfflineIntake

if TYPE_CHECKING:
    from worker.rendering.attempt import RenderedImage
    from worker.rendering.renderer import Renderer

logger = logging.getLogger("flux2.worker.offline")


@dataclass(frozen=True)
class SavedImage:
    """One image on disk and its report."""

    file: Path
    report: dict[str, Any]


def render_request(text: bytes, output: Path, settings: Settings) -> Iterator[SavedImage]:
    """Render each prompt of a request, as a worker with these settings would, into `output`.

    Everything that can be checked without the model is checked before it is loaded.

    Args:
        text: the request's JSON.

    Raises:
        OutputRefused: `output` cannot be created.
        MissingExtra, SignerUnusable: see `open_signer`.
        RequestError: the API would refuse the request too.
        RunError, CheckpointError: see `worker.rendering.renderer` and `worker.model.load`.
    """
    request = _parse(text)
    model = _check_model(request, settings)
    reject_unsupported_fields(request, model)
    root, allow_symlinks = settings.adapters.root, settings.adapters.allow_symlinks
    with naming_root(root):
        for lora in request.loras:
            if isinstance(parse_source(lora.path), LocalFile):
                locate_adapter(lora.path, root=root, allow_symlinks=allow_symlinks)
    sources, deadline = Sources(settings), call_deadline()
    remote = RemoteAdapters(sources, max_bytes=settings.adapters.max_bytes)
    # The adapters' headers alone, until the model's layers are known.
    checked = validate_adapters(request.loras, model, layers=None, settings=settings.adapters, remote=remote)
    check_prompts(resolve_items(request, model, [adapter.ref for adapter in checked]))
    intake = OfflineIntake(settings, sources)
    references, of_references = RequestReferences(intake, deadline=deadline).take(request.prompts)
    check_model_places(settings.model)
    require_cached_model(settings.model)
    signer = open_signer(settings.provenance)
    make_output_folder(output)
    renderer, layers = _load(settings, request.engine, intake.load)
    # Against the layers of the loaded model, as the API does with the layers that a worker reports.
    adapters = validate_adapters(request.loras, model, layers=layers, settings=settings.adapters, remote=remote)
    items = resolve_items(request, model, [adapter.ref for adapter in adapters])
    items = [item.model_copy(update={"references": refs}) for item, refs in zip(items, references, strict=True)]
    of_adapters = (warning for adapter in adapters for warning in adapter.warnings)
    for warning in (*collect_warnings(request, items, model), *of_adapters, *of_references):
        logger.warning("the request has a warning", extra={"warning": warning})
    renderer.warm_up()
    adapter_files = open_adapter_files(settings)
    for index, accepted in enumerate(items):
        with adapter_files.open(accepted, on_fetch=lambda: None) as files:
            rendered = renderer.render(files.spec, files.paths, on_progress=lambda progress: None)
        for warning in rendered.warnings:
            logger.warning("the image has a warning", extra={"index": index, "warning": warning})
        yield _save(rendered, files, index, output, signer)


def _load(
    settings: Settings, engine: Engine, load_reference: LoadReference
) -> tuple[Renderer, Mapping[str, tuple[int, int]]]:
    """Load the model; return its renderer, and (out, in) of its linear layers."""
    # Imported here: torch and diffusers take 5 s, and most refusals need neither.
    from worker.device import pick_devices
    from worker.model.load import load_components
    from worker.model.precision import PRECISIONS
    from worker.rendering.renderer import ENGINE_REQUIREMENTS, Renderer
    from worker.rendering.toolkit_checkout import load_toolkit

    offered = PRECISIONS[settings.model.precision].engines(has_toolkit=settings.ai_toolkit_path is not None)
    if engine not in offered:
        raise InvalidRequest(f"the engine {engine!r} cannot run: {ENGINE_REQUIREMENTS[engine]}", field="engine")
    device = pick_devices(settings.worker.device)[0]
    toolkit = load_toolkit(settings.ai_toolkit_path) if settings.ai_toolkit_path else None
    components = load_components(settings.model, device=device, hf_token=settings.hub_token())
    renderer = Renderer(
        components, prompt_cache=settings.worker.prompt_cache, toolkit=toolkit, load_reference=load_reference
    )
    return renderer, components.layers


def _parse(text: bytes) -> InferenceRequest:
    try:
        return InferenceRequest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{field or 'the request'}: {first['msg']}") from error


def _check_model(request: InferenceRequest, settings: Settings) -> Model:
    model = find_model(request.model)
    if model.id != settings.model.id:
        raise InvalidRequest(
            f"the request is for {model.id!r}, but FLUX2_MODEL_ID is {settings.model.id!r}; set FLUX2_MODEL_ID to match"
        )
    return model


def _save(
    rendered: RenderedImage, files: ItemFiles, index: int, output: Path, signer: ImageSigner | None
) -> SavedImage:
    spec = files.spec
    timings = {**files.timings, **rendered.timings}
    # The same parameters as in an image that a worker stores.
    report = image_file.image_parameters(
        spec, rendered.pipeline, adapters=rendered.adapters, references=rendered.references, index=index
    )
    file = output / f"{index}.{spec.output_format}"
    data, warnings = signing.sign(signer, image_file.encode(rendered.image, spec.output_format, report), spec)
    file.write_bytes(data)
    adapters = [adapter.model_dump(mode="json") for adapter in rendered.adapters]
    tokens = rendered.tokens.model_dump(mode="json")
    about = {"adapters": adapters, "timings": timings, "tokens": tokens, "warnings": [*rendered.warnings, *warnings]}
    return SavedImage(file, {**report, **about})
