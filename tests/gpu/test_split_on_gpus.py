"""On two or four CUDA devices: a pass that they divide has the bits of one device, at every size, compiled or not."""

import multiprocessing
from collections import Counter

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices"),
]

# Rows and columns of latents: 256x256 pixels, which one device renders, then 512x512, 768x768, 1216x832, 1024x1024,
# 1040x1040 and 2048x1024.
SIZES = [(16, 16), (32, 32), (48, 48), (76, 52), (64, 64), (65, 65), (128, 64)]


SINGLE_BLOCKS = 3


def build(device, *, fp8=False):
    """Two double and three single blocks of klein 4B's width, with weights that let roundings show."""
    from diffusers import Flux2Transformer2DModel

    from worker.model import rounding
    from worker.model.fp8 import convert_to_fp8

    with torch.device("meta"):
        model = Flux2Transformer2DModel(
            num_layers=2, num_single_layers=SINGLE_BLOCKS, num_attention_heads=24, joint_attention_dim=7680,
            guidance_embeds=True,
        )  # fmt: skip
    rounding.match_transformer_rounding(model)
    model.to_empty(device=device).to(torch.bfloat16).requires_grad_(False).eval()
    random = torch.Generator(device).manual_seed(1)
    for weight in model.parameters():
        weight.fill_(1) if weight.ndim == 1 else weight.normal_(0, 0.03, generator=random)
    if fp8:
        convert_to_fp8(model)
    else:
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


def member(rank, devices, folder, mode, answers):
    """One process of a group: report the elements that differ from passes without a group, alone and together."""
    from worker.model.compile import compile_blocks
    from worker.model.device_group import DeviceGroup
    from worker.model.split_transformer import split_forward

    torch.set_grad_enabled(False)
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    model = build(device, fp8=mode == "fast")
    if mode == "fast":
        # Uncompiled float8 blocks round elsewhere.
        compile_blocks(model, exact=False)
    expected = [run(model, device, *size) for size in SIZES]
    if mode == "exact":
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


def profiled_member(rank, devices, folder, mode, answers):
    """One process of a group: report how many copies run in other streams, and the share of their time that products
    of the main stream hide."""
    from torch.profiler import ProfilerActivity, profile

    from worker.model.compile import compile_blocks
    from worker.model.device_group import DeviceGroup
    from worker.model.split_transformer import split_forward

    torch.set_grad_enabled(False)
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    model = build(device, fp8=mode == "fast")
    compile_blocks(model, exact=mode == "exact")
    group = DeviceGroup(folder / "group", rank=rank, devices=devices, device=device)
    split_forward(model, group)
    group.open(model)
    run(model, device, 64, 64)
    with group.dividing(True):
        for _ in range(2):
            run(model, device, 64, 64)
        torch.cuda.synchronize(device)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            run(model, device, 64, 64)
            torch.cuda.synchronize(device)
    spans = [
        (event.device_resource_id, event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    main = Counter(stream for stream, *_ in spans).most_common(1)[0][0]
    copies = [times for stream, name, *times in spans if stream != main and name.startswith("Memcpy")]
    busy = [times for stream, _, *times in spans if stream == main]
    hidden = sum(max(0, min(end, until) - max(start, since)) for start, end in copies for since, until in busy)
    answers.put((rank, (len(copies), hidden / sum(end - start for start, end in copies))))
    group.close()


def answers_of(target, devices, *given):
    """Return what each process of a group reports, by rank."""
    if torch.cuda.device_count() < devices:
        pytest.skip(f"fewer than {devices} CUDA devices")
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    members = [context.Process(target=target, args=(rank, devices, *given, answers)) for rank in range(devices)]
    for process in members:
        process.start()
    found = dict(answers.get(timeout=300) for _ in members)
    for process in members:
        process.join(60)
    return found


@pytest.mark.parametrize("mode", ["modules", "exact", "fast"])
@pytest.mark.parametrize("devices", [2, 4])
def test_no_bit_depends_on_the_number_of_devices(tmp_path, devices, mode):
    found = answers_of(member, devices, tmp_path, mode)

    # The first device has all images; the others have no result of those that need fewer.
    assert found[0] == [[0] * len(SIZES)] * 2


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_the_sending_of_single_blocks_is_hidden_by_a_product(tmp_path, mode):
    found = answers_of(profiled_member, 2, tmp_path, mode)

    # Queries, keys and values, each of text and image.
    assert [count for count, _ in found.values()] == [SINGLE_BLOCKS * 3 * 2] * 2
    assert min(share for _, share in found.values()) > 0.5
