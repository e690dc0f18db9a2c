"""What a job keeps of an adapter when it is accepted: parts to leave out, PEFT's config, and checked alphas."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from api.submission import hash_body
from shared.adapters import alphas as alphas_module
from shared.adapters import validate as module
from shared.adapters.header import read_open_header
from shared.adapters.inspection import inspect_adapter
from shared.adapters.inspection_text import describe_rows
from shared.adapters.peft_folder import compact_config
from shared.adapters.validate import validate_adapters
from shared.catalog import MODELS
from shared.errors import AdapterRefused
from shared.job import AdapterRef, adapter_key
from shared.recipe import request_fields
from shared.request import InferenceRequest, LoraItem
from shared.safetensors_header import read_frame
from shared.settings import AdaptersSettings

MODULE = "transformer.transformer_blocks.0.attn.to_out.0"
BFL = "double_blocks.0.img_attn.proj"
LAYERS = {BFL: (64, 64)}
MAX = 2**30
# One layer of a text encoder, as each trainer spells it.
TEXT_ENCODERS = [
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    "lora_te1_layers_0_mlp_fc1",
    "te1.model.layers.0.self_attn.q_proj",
    "text_encoder.model.layers.0.self_attn.q_proj",
    "text_encoders.qwen3_8b.transformer.model.layers.0.self_attn.q_proj",
    "base_model.model.text_model.layers.0.q_proj",
]


def pair(module=MODULE, *, rank=4, size=64):
    return {
        f"{module}.lora_A.weight": torch.ones(rank, size),
        f"{module}.lora_B.weight": torch.ones(size, rank),
    }


def submit(file: Path, **fields):
    lora = LoraItem(path=file.name, **fields)
    [valid] = validate_adapters([lora], MODELS["flux2"], layers=LAYERS, settings=AdaptersSettings(root=file.parent))
    return valid


@pytest.fixture
def peft(tmp_path):
    """Write PEFT's two files, and return the path of the adapter."""

    def write(config, metadata=None):
        file = tmp_path / "adapter_model.safetensors"
        save_file(pair(), file, metadata)
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        return file

    return write


@pytest.mark.parametrize("module", TEXT_ENCODERS)
def test_text_encoder_layers_are_left_out_if_the_request_ignores_them(module, written):
    file = written(pair() | pair(module, size=8) | pair(module.replace("0", "1", 1), size=8))
    message = r'text-encoder tensor, one of 4 .*; to use the rest of the file, add "ignore": \["text_encoder"\] to its'

    with pytest.raises(AdapterRefused, match=message):
        submit(file)
    ref, warnings = submit(file, ignore=["text_encoder"])

    assert ref.ignore == ("text_encoder",)
    assert [warning.partition(";")[0] for warning in warnings] == [
        "source.safetensors: 2 text-encoder layers are left out, as its ignore says"
    ]


def test_a_file_without_text_encoder_layers_is_accepted_with_a_warning(written):
    ref, warnings = submit(written(pair()), ignore=["text_encoder", "text_encoder"])

    assert ref.ignore == ("text_encoder",)
    assert warnings == ("source.safetensors has no text-encoder layers, so its ignore has no effect; leave it out",)


def test_a_file_that_holds_only_a_text_encoder_is_refused_in_any_case(written):
    file = written(pair(TEXT_ENCODERS[0], size=8))

    with pytest.raises(AdapterRefused, match="updates no layer of the transformer, so it cannot be used here"):
        submit(file, ignore=["text_encoder"])


def test_a_layer_that_fits_no_layer_is_refused_although_a_part_is_ignored(written):
    with pytest.raises(AdapterRefused, match=r"matches no layer of FLUX\.2"):
        submit(written(pair() | pair("transformer.other") | pair(TEXT_ENCODERS[0])), ignore=["text_encoder"])


def test_inspect_says_that_a_file_can_be_used_without_its_text_encoder(written):
    found = inspect_adapter(
        written(pair() | pair(TEXT_ENCODERS[0], size=8)), max_bytes=MAX, layers=LAYERS, model="flux2"
    )
    unusable = inspect_adapter(
        written(pair(size=32) | pair(TEXT_ENCODERS[0], size=8)), max_bytes=MAX, layers=LAYERS, model="flux2"
    )

    assert '"ignore": ["text_encoder"]' in found.refused
    assert (found.must_ignore, found.kind, found.layers) == (("text_encoder",), "lora", 1)
    assert dict(describe_rows(asdict(found)))["must ignore"] == "text_encoder"
    assert (unusable.must_ignore, unusable.kind) == ((), None)
    assert "must ignore" not in dict(describe_rows(asdict(unusable)))


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"r": 4, "lora_alpha": 8}, {"r": 4, "lora_alpha": 8}),
        (
            {"peft_type": "LORA", "task_type": None, "r": 16, "lora_alpha": 16, "use_rslora": True,
             "use_dora": False,
             "init_lora_weights": True, "rank_pattern": {"to_out.0": 4}, "alpha_pattern": {},
             "target_modules": ["to_out.0"]},
            {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "rank_pattern": {"to_out.0": 4}, "use_rslora": True},
        ),
        ({"transformer.r": 4, "transformer.lora_alpha": 0}, {"r": 4, "lora_alpha": 0}),
        ({"peft_type": "LOHA", "r": 4, "alpha": 2}, {"peft_type": "LOHA", "r": 4, "alpha": 2}),
        # The first pattern that matches counts, so their order stays.
        (
            {"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_out.0": 2, "attn.to_out.0": 3}},
            {"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_out.0": 2, "attn.to_out.0": 3}},
        ),
    ],
)  # fmt: skip
def test_a_job_keeps_what_the_config_next_to_the_file_decides(config, kept, peft):
    ref, warnings = submit(peft(config))

    assert ref.peft_config == json.dumps(kept, separators=(",", ":"))
    assert warnings == ()


@pytest.mark.parametrize(
    ("config", "metadata"),
    [
        ({"r": 4, "lora_alpha": 4}, None),
        ({"target_modules": ["to_out.0"]}, None),
        ({}, None),
        ({"r": 4, "lora_alpha": 8}, {"lora_alpha": "8"}),
    ],
)
def test_a_config_that_changes_nothing_leaves_no_trace_in_the_job(config, metadata, peft):
    ref, _ = submit(peft(config, metadata))

    assert ref.model_dump().keys() == {"path", "sha256", "size_bytes", "multiplier"}


@pytest.mark.parametrize(
    ("config", "metadata", "reason"),
    [
        ({"r": 4, "lora_alpha": 8}, {"lora_alpha": "4"}, "lora_alpha gives the scale 1, but adapter_config.json .* 2"),
        ({"r": 8, "lora_alpha": 8}, None, "has rank 4, but adapter_config.json says 8"),
        ({"r": 4, "lora_alpha": 8, "peft_type": "LOKR"}, None, "a PEFT adapter of type 'LOKR'"),
        ({"r": 4, "lora_alpha": 8, "use_dora": True}, None, "no layer has a magnitude"),
        (
            {
                "r": 4,
                "lora_alpha": 8,
                "alpha_pattern": {"to_out.0": 8} | dict.fromkeys(map("m{:0250}".format, range(400)), 1),
            },
            None,
            "more than 65536 bytes of ranks and alphas; save the adapter with its config in the header",
        ),
    ],
)
def test_a_config_that_contradicts_its_file_is_refused(config, metadata, reason, peft):
    with pytest.raises(AdapterRefused, match=reason):
        submit(peft(config, metadata))


def test_a_config_is_written_the_same_way_however_it_is_formatted():
    one = compact_config('{"lora_alpha": 8, "r": 4, "base_model_name_or_path": "x"}')

    assert one == compact_config('{\n  "r": 4,\n  "lora_alpha": 8\n}') == '{"r":4,"lora_alpha":8}'
    assert compact_config(one) == one


@pytest.mark.parametrize("metadata", [{"lora_alpha": "4"}, {"lora_adapter_metadata": '{"r": 4, "lora_alpha": 4}'}])
def test_an_alpha_tensor_that_contradicts_the_header_is_refused_at_submit(metadata, written):
    file = written(pair() | {f"{MODULE}.alpha": torch.tensor(2.0)}, metadata)

    with pytest.raises(
        AdapterRefused, match=r"its alpha tensor gives the scale 0.5, but \w+ gives 1; remove the wrong"
    ):
        submit(file)


def test_an_alpha_tensor_that_contradicts_the_config_next_to_the_file_is_refused_at_submit(peft):
    file = peft({"r": 4, "lora_alpha": 8})
    save_file(pair() | {f"{MODULE}.alpha": torch.tensor(2.0)}, file)

    with pytest.raises(AdapterRefused, match=r"its alpha tensor gives the scale 0.5, but adapter_config.json gives 2"):
        submit(file)


def test_alpha_tensors_are_read_only_if_something_else_states_alpha(written, monkeypatch):
    read = []
    monkeypatch.setattr(module, "read_alphas", lambda file, header: read.append(file.name) or {})
    tensors = pair() | {f"{MODULE}.alpha": torch.tensor(4.0)}

    submit(written(tensors))
    assert read == []
    submit(written(tensors, {"lora_alpha": "4"}))
    assert len(read) == 1


def test_an_alpha_tensor_that_was_not_read_is_left_for_the_worker_to_compare(peft, monkeypatch):
    file = peft({"r": 4, "lora_alpha": 8})
    save_file(pair() | {f"{MODULE}.alpha": torch.tensor(2.0)}, file)
    monkeypatch.setattr(module, "read_alphas", lambda file, header: {})

    assert submit(file).ref.peft_config == '{"r":4,"lora_alpha":8}'


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_alpha_in_float8_is_read_as_torch_reads_it(dtype):
    name = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}[dtype]
    expected = torch.arange(256, dtype=torch.uint8).view(dtype).float().tolist()

    read = [alphas_module._decode(bytes([byte]), name) for byte in range(256)]

    assert [math.isnan(value) for value in read] == [math.isnan(value) for value in expected]
    assert [value for value in read if value == value] == [value for value in expected if value == value]


class CountingFile:
    """An open file that counts the bytes read after its header."""

    def __init__(self, file):
        self._file = file
        self._data_start = read_frame(file, file_bytes=2**40).data_start
        self.data_bytes = 0

    def read(self, size):
        start = self._file.tell()
        data = self._file.read(size)
        self.data_bytes += max(0, start + len(data) - max(start, self._data_start))
        return data

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_only_the_bytes_of_alphas_are_read_and_of_too_many_none(written):
    def read(tensors):
        with written(tensors).open("rb") as opened:
            file = CountingFile(opened)
            return alphas_module.read_alphas(file, read_open_header(file, max_bytes=MAX)), file.data_bytes

    assert read(pair() | {f"{MODULE}.alpha": torch.tensor(2.0)}) == ({f"{MODULE}.alpha": 2.0}, 4)
    assert read({f"{number}.alpha": torch.tensor(2.0) for number in range(4097)}) == ({}, 0)


def test_adapters_that_are_read_in_different_ways_have_different_keys():
    ref = AdapterRef(path="a.safetensors", sha256="ab" * 32, size_bytes=1, multiplier=0.5)
    changes = [{}, {"ignore": ("text_encoder",)}, {"peft_config": '{"r":4}'}, {"peft_config": '{"r":8}'}]
    changes.append(changes[1] | changes[2])

    names = [adapter_key([ref.model_copy(update=change)]) for change in changes]

    assert names[0] == f"{'ab' * 32}@0.5"
    assert len(set(names)) == len(changes)
    assert not any(mark in name for name in names for mark in ",|")


def test_an_ordinary_job_is_stored_and_identified_as_before_these_fields(item):
    ref = AdapterRef(path="a.safetensors", sha256="ab" * 32, size_bytes=1, multiplier=0.5)
    body = {"model": "flux2", "prompts": [{"prompt": "a"}], "loras": [{"path": "a.safetensors"}]}

    stored = json.loads(item(adapters=(ref,)).model_dump_json())
    empty = {**body, "loras": [{"path": "a.safetensors", "ignore": []}]}

    assert stored["adapters"] == [{"path": "a.safetensors", "sha256": "ab" * 32, "size_bytes": 1, "multiplier": 0.5}]
    assert "ignore" not in InferenceRequest.model_validate(body).model_dump()["loras"][0]
    # The sum of the earlier version: a call that is repeated across an upgrade is still the same call.
    assert (
        hash_body(InferenceRequest.model_validate(body))
        == hash_body(InferenceRequest.model_validate(empty))
        == "64c83a53a13dbe9820e3dc6487cefb6e31cb83210c33420c543cec16e8ac7f8c"
    )


def test_a_request_written_from_an_item_ignores_what_the_item_ignores(item):
    ref = AdapterRef(path="a.safetensors", sha256="ab", size_bytes=1, multiplier=1.0, ignore=("text_encoder",))

    [lora] = request_fields(item(adapters=(ref,)))["loras"]

    assert LoraItem.model_validate(lora).ignored_parts == ("text_encoder",)
