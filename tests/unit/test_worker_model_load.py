"""Checkpoints: their layouts, the configuration that their shapes give, and the errors of bad files."""

import hashlib
import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import load_file, save_file

from shared.errors import CheckpointError
from shared.safetensors_header import read_frame
from shared.settings import ModelSettings
from worker.checkpoint import revision, tensor_files, tensor_names
from worker.checkpoint.locate import ModuleFiles, locate_checkpoint
from worker.checkpoint.revision import revision_of
from worker.model import architecture
from worker.model.load import load_components
from worker.model.modules import load_autoencoder, load_transformer
from worker.model.part_loader import PartLoader

CPU = torch.device("cpu")


@pytest.fixture
def load(checkpoint, tmp_path):
    """Load the goldens' checkpoint with changes: file name to a function of its tensors."""

    def run(**changes):
        folder = tmp_path / "changed"
        shutil.copytree(checkpoint, folder)
        for stem, change in changes.items():
            file = folder / f"{stem.replace('_', '-')}.safetensors"
            save_file(change(load_file(file)), file)
        settings = ModelSettings(path=str(folder), text_encoder=str(folder / "text_encoder"))
        return load_components(settings, device=CPU, hf_token=None)

    return run


@pytest.fixture
def diffusers_folder(components, tmp_path):
    """The goldens' weights as diffusers would save them, in shards where asked."""

    def write(precision="bf16", max_shard_size="10GB"):
        model = components(precision)
        for name, module in (("transformer", model.transformer), ("vae", model.autoencoder)):
            module.save_pretrained(tmp_path / name, max_shard_size=max_shard_size)
        return tmp_path

    return write


def same(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_shapes_of_the_real_model_give_its_architecture():
    hidden = 6144
    shapes = {
        "img_in.weight": (hidden, 128),
        "txt_in.weight": (hidden, 15_360),
        "time_in.in_layer.weight": (hidden, 256),
        "guidance_in.in_layer.weight": (hidden, 256),
        "final_layer.linear.weight": (128, hidden),
        "single_blocks.0.norm.query_norm.scale": (128,),
        "single_blocks.0.linear2.weight": (hidden, 4 * hidden),
    }
    shapes |= {f"double_blocks.{block}.img_attn.proj.weight": (hidden, hidden) for block in range(8)}
    shapes |= {f"single_blocks.{block}.linear1.weight": (9 * hidden, hidden) for block in range(48)}

    config = architecture.transformer_config(shapes, file="flux2-dev.safetensors")

    defaults = {name: value.default for name, value in inspect.signature(Flux2Transformer2DModel).parameters.items()}
    assert config == {name: defaults[name] for name in config} | {"out_channels": 128}


def test_a_model_without_a_guidance_embedder_is_recognised(goldens):
    files = ModuleFiles("bfl", (goldens / "weights/flux2_klein_tiny.safetensors",))

    transformer = load_transformer(files, device=CPU, dtype=torch.float32)

    assert transformer.config.guidance_embeds is False
    assert "guidance_in.in_layer" not in tensor_names.layer_shapes(transformer)


def test_a_decoder_may_have_another_width_than_its_encoder(checkpoint, tmp_path):
    tensors = load_file(checkpoint / "ae.safetensors")
    for name, tensor in tensors.items():
        if name.startswith("decoder.") and "post_quant" not in name:
            out = 64 if tensor.shape[0] == 32 else tensor.shape[0]
            wide = tensor.ndim > 1 and tensor.shape[1] == 32 and name != "decoder.conv_in.weight"
            rest = (64, *tensor.shape[2:]) if wide else tensor.shape[1:]
            tensors[name] = torch.zeros(out, *rest, dtype=tensor.dtype)
    save_file(tensors, tmp_path / "ae.safetensors")

    autoencoder = load_autoencoder(ModuleFiles("bfl", (tmp_path / "ae.safetensors",)), device=CPU, dtype=torch.float32)

    assert tuple(autoencoder.config.block_out_channels) == (32, 32, 32, 32)
    assert tuple(autoencoder.config.decoder_block_out_channels) == (64, 64, 64, 64)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_every_weight_and_statistic_has_the_precision(precision, dtype, components):
    model = components(precision)

    for module in (model.transformer, model.autoencoder, model.text_encoder):
        tensors = dict(module.state_dict())
        tensors.pop("bn.num_batches_tracked", None)
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_fused_rows_become_queries_keys_and_values(components, checkpoint):
    weights = load_file(checkpoint / "flux2-dev.safetensors")

    attention = components("bf16").transformer.transformer_blocks[1].attn

    fused = weights["double_blocks.1.txt_attn.qkv.weight"]
    assert torch.equal(
        torch.cat([attention.add_q_proj.weight, attention.add_k_proj.weight, attention.add_v_proj.weight]), fused
    )


def test_shift_and_scale_of_the_last_layer_are_swapped(components, checkpoint):
    shift, scale = load_file(checkpoint / "flux2-dev.safetensors")["final_layer.adaLN_modulation.1.weight"].chunk(2)

    weight = components("bf16").transformer.norm_out.linear.weight

    assert torch.equal(weight, torch.cat([scale, shift]))


def test_every_linear_layer_can_be_named_by_an_adapter(components, checkpoint):
    weights = load_file(checkpoint / "flux2-dev.safetensors")

    layers = components("bf16").layers

    assert layers == {
        name.removesuffix(".weight"): tuple(weight.shape) for name, weight in weights.items() if weight.ndim == 2
    }
    assert len(layers) == 31


@pytest.mark.parametrize("max_shard_size", ["10GB", "100KB"])
def test_diffusers_layout_gives_the_same_parameters_as_single_files(
    max_shard_size, components, checkpoint, diffusers_folder
):
    folder = diffusers_folder(max_shard_size=max_shard_size)
    settings = ModelSettings(path=str(folder), text_encoder=str(checkpoint / "text_encoder"))

    loaded = load_components(settings, device=CPU, hf_token=None)

    expected = components("bf16")
    assert same(loaded.transformer, expected.transformer)
    assert same(loaded.autoencoder, expected.autoencoder)
    assert loaded.layers == expected.layers
    assert type(loaded.transformer.pos_embed) is type(expected.transformer.pos_embed)


def test_a_missing_tensor_is_named(load):
    with pytest.raises(
        CheckpointError, match=r"flux2-dev\.safetensors: tensor 'double_blocks\.1\.img_mlp\.2\.weight' is missing"
    ):
        load(flux2_dev=lambda tensors: {k: v for k, v in tensors.items() if k != "double_blocks.1.img_mlp.2.weight"})


def test_an_unexpected_tensor_is_named(load):
    with pytest.raises(CheckpointError, match=r"ae\.safetensors: tensor 'decoder\.extra' is unexpected"):
        load(ae=lambda tensors: tensors | {"decoder.extra": torch.zeros(1)})


def test_a_tensor_of_another_shape_is_named(load):
    with pytest.raises(CheckpointError, match=r"'txt_in\.weight'|'single_blocks\.1\.linear1\.weight'"):
        load(flux2_dev=lambda tensors: tensors | {"single_blocks.1.linear1.weight": torch.zeros(9, 64)})


def test_a_quantised_tensor_is_named(load):
    def quantise(tensors):
        return tensors | {"img_in.weight": tensors["img_in.weight"].to(torch.float8_e4m3fn)}

    with pytest.raises(CheckpointError, match=r"'img_in\.weight' holds F8_E4M3"):
        load(flux2_dev=quantise)


def test_another_models_file_is_refused(load):
    with pytest.raises(CheckpointError, match=r"no tensor 'img_in\.weight'"):
        load(flux2_dev=lambda tensors: {"model.embed_tokens.weight": torch.zeros(4, 4)})


def test_a_file_cut_off_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "flux2-dev.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    settings = ModelSettings(path=str(tmp_path), text_encoder=str(checkpoint / "text_encoder"))

    with pytest.raises(CheckpointError, match=r"flux2-dev\.safetensors"):
        load_components(settings, device=CPU, hf_token=None)


def test_models_that_do_not_belong_together_are_refused(load):
    with pytest.raises(CheckpointError, match="reads prompts 96 wide and the text encoder gives 48"):
        load(flux2_dev=lambda tensors: tensors | {"txt_in.weight": torch.zeros(64, 96)})


def test_a_training_counter_may_be_left_out(load):
    loaded = load(ae=lambda tensors: {k: v for k, v in tensors.items() if k != "bn.num_batches_tracked"})

    assert loaded.autoencoder.bn.num_batches_tracked == 0


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has neither flux2-dev\.safetensors nor transformer/config\.json"):
        locate_checkpoint(ModelSettings(path=str(tmp_path)), hf_token=None)


def test_an_index_whose_shard_is_gone_is_refused(diffusers_folder):
    folder = diffusers_folder(max_shard_size="100KB")
    index = json.loads((folder / "transformer/diffusion_pytorch_model.safetensors.index.json").read_text())
    shard = sorted(index["weight_map"].values())[0]
    (folder / "transformer" / shard).unlink()

    with pytest.raises(CheckpointError, match=shard):
        locate_checkpoint(ModelSettings(path=str(folder)), hf_token=None)


def test_a_repository_that_cannot_be_reached_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(CheckpointError, match=r"black-forest-labs/FLUX\.2-dev"):
        locate_checkpoint(ModelSettings(), hf_token=None)


def test_the_revision_survives_copying_and_notices_other_weights(checkpoint, tmp_path):
    def revision(folder):
        settings = ModelSettings(path=str(folder), text_encoder=str(folder / "text_encoder"))
        return revision_of(locate_checkpoint(settings, hf_token=None).files(), commit=None)

    copy = shutil.copytree(checkpoint, tmp_path / "copy", copy_function=shutil.copyfile)
    before = revision(copy)
    tensors = load_file(copy / "ae.safetensors")
    tensors["bn.running_mean"] += 1
    save_file(tensors, copy / "ae.safetensors")

    assert before == revision(checkpoint)
    assert before != revision(copy)


def test_the_revision_names_the_hubs_commit(checkpoint):
    files = {"transformer/flux2-dev.safetensors": checkpoint / "flux2-dev.safetensors"}

    assert revision_of(files, commit="0123456789abcdef").endswith("@0123456789ab")


def test_the_revision_is_a_hash_of_names_sizes_headers_and_evenly_spread_blocks(checkpoint):
    settings = ModelSettings(path=str(checkpoint), text_encoder=str(checkpoint / "text_encoder"))
    located = locate_checkpoint(settings, hf_token=None)
    digest = hashlib.sha256()
    for name, file in sorted(located.files().items()):
        content = file.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        if file.suffix != ".safetensors":
            digest.update(content)
            continue
        data = 8 + int.from_bytes(content[:8], "little")
        last = max(len(content) - 4096, data)
        digest.update(content[:data])
        for index in range(64):
            start = data + (last - data) * index // 63
            digest.update(content[start : start + 4096])

    assert located.revision() == digest.hexdigest()[:16]
    assert revision_of(located.files(), commit=None) == located.revision()  # headers read anew give the same


def test_the_header_of_each_file_is_read_once(checkpoint, monkeypatch):
    read = []
    for module in (tensor_files, revision):
        monkeypatch.setattr(
            module, "read_frame", lambda file, **size: read.append(file.name) or read_frame(file, **size)
        )
    settings = ModelSettings(path=str(checkpoint), text_encoder=str(checkpoint / "text_encoder"))

    load_components(settings, device=CPU, hf_token=None)

    assert sorted(Path(name).name for name in read) == [
        "ae.safetensors", "flux2-dev.safetensors", "model.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_a_file_that_changes_while_the_model_loads_is_refused(change, checkpoint, tmp_path, monkeypatch):
    folder = shutil.copytree(checkpoint, tmp_path / "own")
    file = folder / "ae.safetensors"
    tensors = load_file(file)
    load = PartLoader.load_autoencoder

    def load_autoencoder(self, *args):
        # The header was read for the placement: a longer one moves every tensor.
        file.unlink()
        save_file(tensors, file, metadata={"note": "x" * 64})
        loaded = load(self, *args)
        if change == "removed":
            file.unlink()
        return loaded

    monkeypatch.setattr(PartLoader, "load_autoencoder", load_autoencoder)

    reason = "has changed since loading began" if change == "replaced" else "No such file"
    with pytest.raises(CheckpointError, match=rf"ae\.safetensors: .*{reason}"):
        load_components(
            ModelSettings(path=str(folder), text_encoder=str(folder / "text_encoder")), device=CPU, hf_token=None
        )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[1, 2]", "not a safetensors file"),
        (b'{"a": {"dtype": "F32", "shape": [1]}}', "'a' is not described by dtype, shape and data_offsets"),
        (b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}', "unknown dtype"),
        (b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}', "'a' is not described by dtype"),
        (b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}', "unknown dtype 'F99'"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "takes 8 bytes, but data_offsets give it 4"),
        (b'{"a": {"dtype": "F32", "shape": [], "data_offsets": [4, 8]}}', "starts at 4, after a gap"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', "the data is cut off at 4"),
        (b"{}", "4 bytes follow the last tensor"),
        (b'{"a": ', "not a readable safetensors file"),
    ],
)
def test_an_unsound_header_is_refused_with_the_file_and_the_reason(text, problem, tmp_path):
    file = tmp_path / "flux2-dev.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))

    with pytest.raises(CheckpointError, match=r"flux2-dev\.safetensors: .*" + re.escape(problem)):
        tensor_files.TensorFiles([file])


@pytest.mark.timeout(10)
def test_the_revision_of_64_gb_is_computed_without_reading_the_whole_file(tmp_path):
    header = b'{"a":{"dtype":"BF16","shape":[32000000000],"data_offsets":[0,64000000000]}}'
    file = tmp_path / "flux2-dev.safetensors"
    with file.open("wb") as handle:
        handle.write(len(header).to_bytes(8, "little") + header)
        handle.truncate(8 + len(header) + 64_000_000_000)  # sparse: takes no room

    assert len(revision_of({"transformer/flux2-dev.safetensors": file}, commit=None)) == 16
