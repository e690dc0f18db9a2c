"""Schedule, noise, positions, denoising and decoding, compared with the results of ai-toolkit's own code."""

import copy
import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from worker.model.precision import PRECISIONS
from worker.rendering.decode import decode, to_image, unpatchify
from worker.rendering.denoise import denoise
from worker.rendering.latents import image_ids, noise, pack, text_ids, unpack
from worker.rendering.sigmas import given_sigmas, shift, sigmas

SAMPLING = [
    "dev_s64_4st_fp32",
    "dev_s128x96_4st_g1_fp32",
    "dev_s256x192_25st_fp32",
    "dev_s64_1st_fp32",
    "dev_s100x70_floor16_fp32",
    "dev_s64_txt512_fp32",
    "dev_s64_4st_bf16",
    "dev_s128x96_4st_g1_bf16",
    "dev_s256x192_25st_bf16",
]


def test_the_schedule_equals_ai_toolkits(goldens):
    entries = json.loads((goldens / "schedule.json").read_text())["entries"]

    for entry in entries:
        assert sigmas(entry["num_steps"], entry["image_seq_len"]) == pytest.approx(entry["timesteps"], abs=1e-7)


def test_two_steps_at_256_tokens_match_a_hand_worked_schedule():
    # mu = 0.5 at 256 tokens; halfway, t = 1/2 and 1/t - 1 = 1, so s = e^0.5 / (e^0.5 + 1) = 1.648721 / 2.648721
    assert sigmas(2, 256) == pytest.approx([1.0, 0.6224593, 0.0], abs=1e-7)


def test_given_noise_levels_are_rounded_like_the_schedule_and_end_at_zero():
    # 0.1 in single precision is 0x3DCCCCCD = 13421773 / 2^27.
    assert given_sigmas([1, 0.5, 0.1]) == [1.0, 0.5, 13421773 / 2**27, 0.0]
    assert given_sigmas(sigmas(8, 4096)[:-1]) == sigmas(8, 4096)


def test_the_shift_keeps_growing_beyond_4096_tokens():
    # 0.5 + (9216 - 256) * 0.65 / 3840 = 0.5 + 1.516667
    assert shift(9216) == pytest.approx(2.0166667)


def test_noise_has_the_bytes_that_ai_toolkit_draws(goldens):
    entries = json.loads((goldens / "noise.json").read_text())["entries"]

    for entry in entries:
        _, channels, rows, columns = entry["shape"]
        drawn = noise(
            entry["seed"],
            channels=channels,
            height=16 * rows,
            width=16 * columns,
            dtype=PRECISIONS[entry["dtype"]].dtype,
        )

        raw = drawn.view(torch.uint8).numpy().tobytes()
        assert hashlib.sha256(raw).hexdigest() == entry["sha256_le_bytes"]


def test_tokens_run_along_the_rows_first():
    latents = torch.arange(12).view(1, 2, 2, 3)  # 2 channels of 2 rows and 3 columns

    tokens = pack(latents)

    assert tokens.tolist() == [[[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]]
    assert torch.equal(unpack(tokens, rows=2, columns=3), latents)


def test_ids_are_time_row_column_and_text_position():
    assert image_ids(2, 2).tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 1, 0]]
    assert text_ids(3).tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]]


def test_a_patch_of_four_channels_becomes_two_by_two_pixels():
    packed = torch.tensor([1, 2, 3, 4]).view(1, 4, 1, 1)

    assert unpatchify(packed).tolist() == [[[[1, 2], [3, 4]]]]


def test_latents_are_denormalised_with_the_variance_and_its_epsilon(components):
    autoencoder = copy.deepcopy(components("fp32").autoencoder)
    autoencoder.bn.running_mean.fill_(1.0)
    autoencoder.bn.running_var.fill_(0.0224)
    seen = []
    autoencoder.post_quant_conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))

    with torch.no_grad():
        decode(autoencoder, torch.full((1, 128, 2, 2), 2.0))

    # 2 * sqrt(0.0224 + 0.0001) + 1 = 2 * 0.15 + 1
    torch.testing.assert_close(seen[0], torch.full((1, 32, 4, 4), 1.3))


def test_euler_steps_match_a_hand_worked_example():
    seen = []

    def velocity(latents, timestep):
        seen.append(timestep.tolist())
        return 2 * latents

    done = denoise(velocity, torch.ones(1, 1, 1), [1.0, 0.5, 0.0], on_step=lambda step, steps: None)

    # 1 + (0.5 - 1) * 2 = 0, then 0 + (0 - 0.5) * 0 = 0
    assert done.item() == 0.0
    assert seen == [[1.0], [0.5]]


def test_every_step_is_reported_once_it_is_done():
    reported = []

    denoise(
        lambda latents, _: latents,
        torch.ones(1, 1, 1),
        [1.0, 0.5, 0.0],
        on_step=lambda step, steps: reported.append((step, steps)),
    )

    assert reported == [(1, 2), (2, 2)]


def test_each_step_can_estimate_the_final_latents():
    final, noise = torch.full((1, 1, 1), 3.0), torch.full((1, 1, 1), -1.0)
    estimates = []

    denoise(
        # The velocity of a straight line from the noise to the final latents.
        lambda latents, _: noise - final,
        noise,
        [1.0, 0.75, 0.25, 0.0],
        on_step=lambda *_: None,
        on_estimate=lambda step, estimate: estimates.append((step, estimate().item())),
    )

    assert estimates == [(1, 3.0), (2, 3.0), (3, 3.0)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_forward_pass_equals_ai_toolkits(precision, components, goldens, cases, assert_close):
    (case,) = cases(type="forward", model="dev", dtype=precision)
    golden = load_file(goldens / case["file"])

    with torch.no_grad():
        prediction = components(precision).transformer(
            hidden_states=golden["x"],
            encoder_hidden_states=golden["ctx"],
            timestep=golden["timesteps"],
            img_ids=golden["x_ids"],
            txt_ids=golden["ctx_ids"],
            guidance=golden["guidance"],
            return_dict=False,
        )[0]

    assert_close(prediction, golden["pred"], case["tolerance"])


@pytest.mark.parametrize("name", SAMPLING)
def test_a_rendering_equals_ai_toolkits(name, components, goldens, cases, sample, assert_close):
    (case,) = cases(type="sampling", name=name)
    golden = load_file(goldens / case["file"])
    model, timesteps = components(case["dtype"]), []

    def recorded(velocity):
        return lambda latents, timestep: timesteps.append(timestep) or velocity(latents, timestep)

    latents = sample(model.transformer, golden["prompt_embeds"], case, wrap=recorded)
    with torch.no_grad():
        decoded = decode(model.autoencoder, latents)

    assert torch.equal(torch.stack(timesteps), golden["timesteps_model"])
    assert_close(latents, golden["latents"], case["tolerance"]["latents"])
    if "decoded" in golden:
        assert_close(decoded, golden["decoded"].float(), case["tolerance"]["decoded"])
    difference = np.abs(np.asarray(to_image(decoded[0])).astype(int) - golden["image_u8"].numpy().astype(int))
    tolerance = case["tolerance"]["image_u8"]
    assert difference.max() <= tolerance.get("max_diff", 255)
    assert difference.mean() <= tolerance.get("mean_diff", 255)


def test_two_images_in_one_batch_equal_the_two_rendered_alone(components, goldens, cases, sample, assert_close):
    (case,) = cases(type="sampling", name="dev_s64_batch2_fp32")
    golden = load_file(goldens / case["file"])
    transformer = components("fp32").transformer

    latents = sample(transformer, golden["prompt_embeds"], case, start=golden["initial_latents"])

    assert_close(latents, golden["latents"], case["tolerance"]["latents"])
