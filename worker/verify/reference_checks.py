"""Compare runs with reference images with the goldens.

Tokens and coordinates are compared as they reach the transformer. In bfloat16 a wrong time coordinate can pass the
tolerance of the latents, so coordinates must be equal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.errors import ReferenceRefused
from shared.job import ReferenceRef
from shared.reference_image import prepare, read_rgb
from worker.model.components import Components
from worker.rendering.engine import Engine
from worker.rendering.reference_encoder import ReferenceEncoder, References
from worker.verify.golden_models import GoldenModels, adapter_ref
from worker.verify.goldens import Case, Goldens
from worker.verify.measures import Measure, equal, measure
from worker.verify.sampling import TransformerCalls
from worker.verify.sampling_checks import compare_image, compare_inputs, compare_steps, run_recorded


def check_references(case: Case, models: GoldenModels) -> Iterator[Measure]:
    """Run one case of type reference."""
    entry = case.entry
    if entry.get("expected_error"):
        yield refusal(models.goldens, entry)
        return
    golden, (components, engine) = models.goldens.tensors(entry["file"]), engine_for(case, models)
    yield from _prepared(models.goldens, entry)
    yield from compare_inputs(entry, golden, components, models)
    references = load_references(models.goldens, entry, components, engine)
    latents, calls = run_recorded(entry, golden, components, engine, references=references)
    image_tokens = golden["img_ids"].shape[1]
    yield from _reference_rows(calls, golden, image_tokens, entry["tolerance"]["ref_tokens"])
    calls.inputs[:], calls.outputs[:] = (
        [rows[:, :image_tokens] for rows in whole] for whole in (calls.inputs, calls.outputs)
    )
    yield from compare_steps(calls, golden, 1 + entry["true_cfg"], entry["tolerance"]["latents"])
    yield from compare_image(entry, golden, engine, latents)


def engine_for(case: Case, models: GoldenModels) -> tuple[Components, Engine]:
    """Return the model of a case and the engine under test over it, with the case's adapter."""
    entry = case.entry
    if "adapter" not in entry:
        components = models.components(entry["model"], case.dtype)
        return components, models.engine(components)
    path = models.goldens.folder / entry["adapter"]
    components = models.mergeable_components(entry["model"], case.dtype, adapter=path)
    engine, swapper = models.engine_with_adapters(components)
    swapper.activate([(adapter_ref(path, entry["network_multiplier"]), path)], mode=entry["adapter_mode"])
    return components, engine


def load_references(goldens: Goldens, entry: Mapping[str, Any], components: Components, engine: Engine) -> References:
    """Read a case's reference images, and encode them unless the engine does that.

    Raises:
        ReferenceRefused: an image has a size that AI Toolkit refuses.
    """
    files = [path.read_bytes() for path in _paths(goldens, entry)]
    by_hash = {hashlib.sha256(data).hexdigest(): data for data in files}
    encoder = ReferenceEncoder(components, load=by_hash.__getitem__)
    refs = [
        ReferenceRef(slot=slot, sha256=hashlib.sha256(data).hexdigest()) for slot, data in enumerate(files, start=1)
    ]
    return encoder.encode(encoder.load(refs, files_only=engine.encodes_references))


def refusal(goldens: Goldens, entry: Mapping[str, Any]) -> Measure:
    """Return a measure that passes if preparing the case's images is refused."""
    try:
        for path in _paths(goldens, entry):
            prepare(read_rgb(path.read_bytes()))
    except ReferenceRefused:
        return Measure("refusal", "wrong", 0.0, 0.0)
    return Measure("the references were accepted but must be refused:", "wrong", 1.0, 0.0)


def _prepared(goldens: Goldens, entry: Mapping[str, Any]) -> Iterator[Measure]:
    """Compare the pixels of each image before it is encoded."""
    for index, (path, wanted) in enumerate(zip(_paths(goldens, entry), entry["references_prepared"], strict=True)):
        image = prepare(read_rgb(path.read_bytes()))
        differs = image.size != (wanted["width"], wanted["height"])
        yield Measure(f"reference {index} size", "differs", float(differs), 0.0)
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        yield Measure(f"reference {index} rgb_sha256", "differs", float(digest != wanted["rgb_sha256"]), 0.0)


def _reference_rows(
    calls: TransformerCalls, golden: Mapping[str, Tensor], image_tokens: int, tolerance: Mapping[str, float]
) -> Iterator[Measure]:
    """Compare the rows behind the image's, and require that each call has the same ones."""
    ids = [whole.reshape(1, *whole.shape[-2:])[:, image_tokens:] for whole in calls.ids]
    # Without loss: they were bfloat16 before a run in float32 widened them.
    rows = [whole[:, image_tokens:].to(golden["ref_tokens"].dtype) for whole in calls.inputs]
    yield equal("ref_ids", ids[0], golden["ref_ids"])
    yield from measure("ref_tokens", rows[0], golden["ref_tokens"], tolerance)
    yield _constant("ref_ids in every call", ids)
    yield _constant("ref_tokens in every call", rows)


def _constant(what: str, values: Sequence[Tensor]) -> Measure:
    return Measure(what, "calls differ", float(sum(not torch.equal(value, values[0]) for value in values)), 0.0)


def _paths(goldens: Goldens, entry: Mapping[str, Any]) -> list[Path]:
    return [goldens.folder / name for name in entry["references"]]
