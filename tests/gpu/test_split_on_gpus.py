"""On two or four CUDA devices: a pass that they divide has the bits of one device, at every size, compiled or not."""

import multiprocessing

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]

# Rows and columns of latents: 512x512, 768x768, 1216x832, 1024x1024, 1040x1040, 2048x1024 pixels.
SIZES = [(32, 32), (48, 48), (76, 52), (64, 64), (65, 65), (128, 64)]


def build(device):
    """Two double and three single blocks of klein 4B's width, with weights that let roundings show."""
    from diffusers import Flux2Transformer2DModel

    from worker.model import rounding

    with torch.device("meta"):
        model = Flux2Transformer2DModel(
            num_layers=2, num_single_layers=3, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=True
        )
    rounding.match_transformer_rounding(model)
    model.to_empty(device=device).to(torch.bfloat16).requires_grad_(False).eval()
    random = torch.Generator(device).manual_seed(1)
    for weight in model.parameters():
        weight.fill_(1) if weight.ndim == 1 else weight.normal_(0, 0.03, generator=random)
    rounding.fuse_qkv(model)
    return model


def run(model, device, rows, columns):
    from worker.rendering.denoise import TransformerInputs, predict
    from worker.rendering.latents import image_ids, text_ids

    random = torch.Generator(device).manual_seed(rows)

    def draw(*shape):
        return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(generator=random)

    call = TransformerInputs(
        draw(1, rows * columns, model.config.in_channels), draw(1).abs(), draw(1, 512, 7680),
        image_ids(rows, columns).to(device), text_ids(512).to(device), torch.tensor([4.0], device=device).bfloat16(),
    )  # fmt: skip
    return predict(model, call)


def member(rank, devices, folder, compiled, answers):
    from worker.model.compile import compile_blocks
    from worker.model.device_group import DeviceGroup
    from worker.model.split_transformer import split_forward

    torch.set_grad_enabled(False)
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    model = build(device)
    expected = [run(model, device, *size) for size in SIZES]
    if compiled:
        compile_blocks(model, exact=True)
    group = DeviceGroup(folder / "group", rank=rank, devices=devices, device=device)
    split_forward(model, group)
    group.open(model)
    alone = [run(model, device, *size) for size in SIZES]
    with group.dividing(True):
        together = [run(model, device, *size) for size in SIZES]
    torch.cuda.synchronize(device)
    differing = [
        [int((found != wanted).sum()) for found, wanted in zip(values, expected, strict=True)]
        for values in (alone, together)
    ]
    answers.put((rank, differing))
    group.close()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("devices", [2, 4])
def test_no_bit_depends_on_the_number_of_devices(tmp_path, devices, compiled):
    if torch.cuda.device_count() < devices:
        pytest.skip(f"fewer than {devices} CUDA devices")
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    members = [
        context.Process(target=member, args=(rank, devices, tmp_path, compiled, answers)) for rank in range(devices)
    ]
    for process in members:
        process.start()

    found = dict(answers.get(timeout=300) for _ in members)

    for process in members:
        process.join(60)
    # The first device has all images; the others have no result of those that need fewer.
    assert found[0] == [[0] * len(SIZES)] * 2
