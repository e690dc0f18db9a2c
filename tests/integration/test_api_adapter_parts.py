"""A request that leaves out a part of an adapter file, and PEFT's config next to a file, over real HTTP."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from api.submit_cache import SubmitCache
from shared.catalog import MODELS
from shared.errors import AdapterRefused
from shared.job import AdapterReport
from shared.request import LoraItem
from shared.settings import AdaptersSettings


@pytest.fixture
def both(adapter_root, goldens):
    """A LoRA by the trainer that also updates a layer of a text encoder."""
    tensors = load_file(goldens / "adapters" / "lora_r4_bf16.safetensors")
    tensors |= {f"lora_te_mlp.lora_{half}.weight": torch.ones(4, 4) for half in ("down", "up")}
    path = adapter_root / "both.safetensors"
    save_file(tensors, path)
    return path


def post(api, path="both.safetensors", **fields):
    body = {"model": "flux2", "prompts": [{"prompt": "a cat"}], "loras": [{"path": path, **fields}]}
    return api.http.post("/v1/inference", json=body)


def test_a_file_with_a_text_encoder_is_used_if_the_request_ignores_it(api, both, finish):
    refusal = post(api).json()
    unknown = post(api, ignore=["vae"]).json()
    request_id = post(api, ignore=["text_encoder"]).json()["request_id"]
    claimed = api.ledger.claim_next(["flux2"], slot="test", boot="test", warm="base")
    [ref] = claimed.spec.adapters
    effect = {"kind": "lora", "ranks": (4,), "layers_touched": 1, "layers_total": 2, "ignored": {"text_encoder": 1}}
    finish(api, claimed, adapters=(AdapterReport(path=ref.path, sha256=ref.sha256, multiplier=1.0, **effect),))

    assert (refusal["code"], unknown["code"]) == ("INVALID_LORA", "VALIDATION_ERROR")
    assert '"ignore": ["text_encoder"]' in refusal["detail"]
    assert refusal["errors"][0]["path"] == "loras[0].path"
    assert ref.ignore == ("text_encoder",)
    status = api.http.get(f"/v1/requests/{request_id}/status").json()
    assert "1 text-encoder layer is left out" in status["warnings"][0]
    [image] = api.http.get(f"/v1/requests/{request_id}/result").json()["outputs"]["images"]
    assert image["adapters"][0]["ignored"] == {"text_encoder": 1}
    inspected = api.http.get("/v1/adapters", params={"path": "both.safetensors"}).json()
    assert (inspected["must_ignore"], inspected["layers"]) == (["text_encoder"], 20)


def test_jobs_of_one_replay_that_ignore_different_parts_are_checked_apart(api, both):
    cache = SubmitCache(api.ledger, AdaptersSettings(root=both.parent), remote=None, intake=None)
    whole, without = (LoraItem(path="both.safetensors", ignore=parts) for parts in ([], ["text_encoder"]))

    [valid] = cache.adapters([without], MODELS["flux2"])

    assert valid.ref.ignore == ("text_encoder",)
    with pytest.raises(AdapterRefused, match="text-encoder"):
        cache.adapters([whole], MODELS["flux2"])


def test_a_job_keeps_the_config_that_stood_next_to_the_file_when_it_was_accepted(api, adapter_root, goldens):
    folder = adapter_root / "peft"
    folder.mkdir()
    tensors = load_file(goldens / "adapters" / "lora_r4_bf16.safetensors")
    save_file(tensors, folder / "adapter_model.safetensors")
    config = folder / "adapter_config.json"

    accepted, refused = [], []
    for alpha in (4, 8, 16):
        config.write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": alpha}))
        accepted.append(post(api, "peft/adapter_model.safetensors").json()["request_id"])
    config.write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8}))
    refused.append(post(api, "peft/adapter_model.safetensors").json()["detail"])
    config.unlink()

    claims = [api.ledger.claim_next(["flux2"], slot="test", boot="test", warm="base") for _ in accepted]
    kept = {claim.job_id: claim.spec.adapters[0].peft_config for claim in claims}
    assert [kept[job] for job in accepted] == [
        "", '{"peft_type":"LORA","r":4,"lora_alpha":8}', '{"peft_type":"LORA","r":4,"lora_alpha":16}'
    ]  # fmt: skip
    assert len({claim.spec.adapter_key for claim in claims}) == 3
    assert "adapter_config.json says 8" in refused[0]
