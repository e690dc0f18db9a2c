"""The names under which an image states its parameters are those of a request."""

import pytest
from PIL import Image

from shared.catalog import find_model
from shared.image_parameters import read_parameters
from shared.job import AdapterRef, AdapterReport, PipelineReport, ReferenceRef
from shared.request import InferenceRequest, PromptItem
from shared.resolve import resolve_items
from worker.consumer.image_file import encode, image_parameters

ADAPTERS = tuple(
    AdapterRef(path=f"{name}.safetensors", sha256=name * 64, size_bytes=10, multiplier=multiplier)
    for name, multiplier in (("a", 0.8), ("b", -1.5))
)
REFERENCES = tuple(ReferenceRef(slot=slot, sha256=f"{slot:064x}") for slot in (1, 2, 3))
REPORTS = tuple(
    AdapterReport(
        path=ref.path,
        sha256=ref.sha256,
        multiplier=ref.multiplier,
        kind="lora",
        ranks=(4,),
        scale_range=scale_range,
        scale_sources=sources,
        layers_touched=1,
        layers_total=2,
    )
    for ref, scale_range, sources in zip(
        ADAPTERS, ((0.5, 2.0), (1.0, 1.0)), (("lora_alpha", "tensor"), ("none",)), strict=True
    )
)
PIPELINE = PipelineReport(
    engine="exact", precision="bf16", base_revision="r", device="cpu", adapter_mode="live", change="none", versions={}
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": "flux2_klein_4b", "neg": "blurry", "guidance_scale": 0.0, "output_format": "webp"},
        {"adapters": ADAPTERS, "adapter_mode": "live", "seed": 2**63 - 1, "width": 1008, "requested_width": 1010},
        {"engine": "ai-toolkit", "num_inference_steps": 150, "output_format": "jpeg"},
        {"references": REFERENCES},
        {"sigmas": (1.0, 0.7, 0.1 + 0.2), "num_inference_steps": 3},
        {"sigmas": tuple(1 - step / 151 for step in range(150)), "num_inference_steps": 150, "output_format": "jpeg"},
        {"references": REFERENCES[1:], "output_format": "jpeg"},
    ],
)
def test_a_request_with_the_names_and_values_in_an_image_gives_the_same_item(item, changes):
    spec = item(**changes)
    parameters = image_parameters(spec, PIPELINE, adapters=REPORTS, index=3, request_id="j")

    found = read_parameters(encode(Image.new("RGB", (64, 64), "red"), spec.output_format, parameters))
    prompt = {name: found[name] for name in PromptItem.model_fields if name in found}
    fields = {name: found[name] for name in InferenceRequest.model_fields if name in found}
    request = InferenceRequest.model_validate({**fields, "prompts": [prompt]})

    [again] = resolve_items(request, find_model(spec.model), list(spec.adapters))
    named = [(slot, text) for slot, _, text in request.prompts[0].reference_texts]
    assert named == [(ref.slot, f"upload:{ref.sha256}") for ref in spec.references]
    again = again.model_copy(update={"references": spec.references})
    assert again.model_copy(update={"requested_width": spec.requested_width}) == spec
    assert [(lora.path, lora.multiplier) for lora in request.loras] == [
        (ref.path, ref.multiplier) for ref in spec.adapters
    ]
    assert (found["request_id"], found["index"], found["requested_width"]) == ("j", 3, spec.requested_width)
    assert [adapter["sha256"] for adapter in found["adapters"]] == [ref.sha256 for ref in spec.adapters]
    scales = [(adapter["scale_range"], adapter["scale_sources"]) for adapter in found["adapters"]]
    assert scales == ([([0.5, 2.0], ["lora_alpha", "tensor"]), ([1.0, 1.0], ["none"])] if spec.adapters else [])
