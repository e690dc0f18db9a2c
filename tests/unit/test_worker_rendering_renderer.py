"""One item from prompt to pixels, held to the trainer's, and everything that may stop it."""

import threading
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from shared.errors import InvalidRequest, ItemCanceled, NotFinite, OutOfMemory
from shared.job import Progress
from worker.lora.hot_swap import AdapterSwapper
from worker.lora.merge import weight_delta
from worker.rendering.decode import decode, tiled_decoding, to_image
from worker.rendering.renderer import Renderer
from worker.rendering.sigmas import sigmas


@pytest.fixture
def renderer(components):
    """A renderer in a precision, `bf16` unless said."""

    def make(precision="bf16"):
        return Renderer(components(precision), prompt_cache=4)

    return make


def ignore(progress):
    pass


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_prompt_becomes_the_trainers_pixels(precision, renderer, item, goldens):
    golden = load_file(goldens / "text/e2e.safetensors")[f"image_u8_{precision}"].numpy().astype(int)

    rendered = renderer(precision).render(item(), [], on_progress=ignore)

    difference = np.abs(pixels(rendered.image) - golden)
    assert rendered.image.mode == "RGB"
    if precision == "fp32":
        assert difference.max() <= 1
    else:
        assert difference.mean() <= 2.0


def test_a_preview_with_an_adapter_is_the_trainers(components, goldens, cases, sample, adapter_ref):
    (case,) = cases(type="preview")
    golden, path = load_file(goldens / case["file"]), goldens / case["adapter"]
    model = components("bf16")
    swapper = AdapterSwapper(model)

    for index, preview in enumerate(case["samples"]):
        size = {side: preview[f"{side}_requested"] // 16 * 16 for side in ("width", "height")}
        swapper.activate([(adapter_ref(path, preview["network_multiplier"]), path)])
        latents = sample(model.transformer, golden["prompt_embeds"], preview | size)
        with torch.no_grad():
            image = pixels(to_image(decode(model.autoencoder, latents)[0]))

        difference = np.abs(image - golden[f"image_{index}"].numpy().astype(int))
        assert difference.mean() <= case["tolerance"]["image_u8"]["mean_diff"]
        assert difference.max() <= case["tolerance"]["image_u8"]["max_diff"]


def test_the_same_item_gives_the_same_pixels_whatever_came_before(renderer, item, goldens, adapter_ref):
    path = goldens / "adapters/lora_r4_bf16.safetensors"
    used = renderer()
    first = used.render(item(), [], on_progress=ignore)
    used.render(item(adapters=(adapter_ref(path),), seed=1), [path], on_progress=ignore)

    again = used.render(item(), [], on_progress=ignore)

    assert first.image.tobytes() == again.image.tobytes()
    assert again.pipeline.change == "restored"


def test_an_adapter_and_its_multiplier_change_the_image(renderer, item, goldens, adapter_ref):
    path = goldens / "adapters/lora_r4_bf16.safetensors"
    used = renderer()
    base = used.render(item(), [], on_progress=ignore)

    images = [
        used.render(item(adapters=(adapter_ref(path, multiplier),)), [path], on_progress=ignore).image.tobytes()
        for multiplier in (1.0, 0.5, 0.0)
    ]

    assert len({base.image.tobytes(), *images[:2]}) == 3
    assert images[2] == base.image.tobytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_trainers_own_noise_levels_give_the_pixels_of_that_many_steps(precision, renderer, item):
    used = renderer(precision)
    own = sigmas(5, 16)[:-1]  # 64x64 pixels have 16 tokens
    written = [float(f"{level:.9g}") for level in own]
    assert written != own

    by_steps = used.render(item(num_inference_steps=5), [], on_progress=ignore)
    found = [
        used.render(item(num_inference_steps=5, sigmas=tuple(levels)), [], on_progress=ignore).image.tobytes()
        for levels in (own, written, [*own[:-1], own[-1] + 0.01])
    ]

    assert found[:2] == [by_steps.image.tobytes()] * 2
    assert found[2] != found[0]


def test_noise_levels_are_used_as_they_are(renderer, item):
    progress = []

    rendered = [
        renderer("fp32").render(item(num_inference_steps=len(levels), sigmas=levels), [], on_progress=progress.append)
        for levels in ((1.0,), (1.0, 0.5), (0.25,))
    ]

    assert len({image.image.tobytes() for image in rendered}) == 3
    assert [(report.step, report.steps) for report in progress if report.stage == "denoise"] == [
        (0, 1), (1, 1), (0, 2), (1, 2), (2, 2), (0, 1), (1, 1),
    ]  # fmt: skip


def test_noise_levels_that_are_not_one_for_each_step_are_refused(renderer, item):
    with pytest.raises(InvalidRequest, match="2 noise levels for 3 steps") as refused:
        renderer().render(item(num_inference_steps=3, sigmas=(1.0, 0.5)), [], on_progress=ignore)

    assert refused.value.field == "sigmas"


def test_the_result_says_how_it_was_made(renderer, item, goldens, adapter_ref):
    path = goldens / "adapters/lora_r4_bf16.safetensors"
    used, spec = renderer(), item(width=96, adapters=(adapter_ref(path),))

    rendered = used.render(spec, [path], on_progress=ignore)

    assert rendered.image.size == (96, 64)
    assert rendered.timings.keys() == {"adapter", "encode_prompt", "denoise", "decode"}
    assert all(seconds >= 0 for seconds in rendered.timings.values())
    assert rendered.adapters[0].layers_touched == 20
    assert (rendered.pipeline.engine, rendered.pipeline.precision, rendered.pipeline.device) == ("exact", "bf16", "cpu")
    assert rendered.pipeline.change == "merged"
    assert rendered.pipeline.versions.keys() == {"torch", "diffusers", "transformers"}
    assert used.warm_key == spec.adapter_key


def test_stages_and_steps_are_reported_in_order(renderer, item):
    seen = []

    renderer().render(item(num_inference_steps=3), [], on_progress=seen.append)

    stages = [
        ("encode", 0),
        ("adapter", 0),
        ("denoise", 0),
        ("denoise", 1),
        ("denoise", 2),
        ("denoise", 3),
        ("decode", 3),
    ]
    assert seen == [Progress(stage=stage, step=step, steps=3) for stage, step in stages]


@pytest.mark.parametrize("at", [("adapter", 0), ("encode", 0), ("denoise", 1), ("decode", 2)])
def test_a_canceled_item_stops_and_leaves_the_renderer_usable(at, renderer, item, goldens, adapter_ref):
    path = goldens / "adapters/lora_r4_bf16.safetensors"
    used, spec = renderer(), item(adapters=(adapter_ref(path),))

    def cancel(progress):
        if (progress.stage, progress.step) == at:
            raise ItemCanceled("the caller canceled")

    with pytest.raises(ItemCanceled):
        used.render(spec, [path], on_progress=cancel)

    fresh = renderer().render(spec, [path], on_progress=ignore)
    assert used.render(spec, [path], on_progress=ignore).image.tobytes() == fresh.image.tobytes()


def test_a_full_device_is_reported_with_the_size_and_the_next_item_runs(components, item):
    model = components("bf16")
    used = Renderer(model, prompt_cache=4)

    def full(*_):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB")

    handle = model.transformer.register_forward_pre_hook(full)
    with pytest.raises(OutOfMemory, match=r"96x64 does not fit on cpu: Tried to allocate 20\.00 GiB; request"):
        used.render(item(width=96), [], on_progress=ignore)
    handle.remove()

    assert used.render(item(), [], on_progress=ignore).image.size == (64, 64)


def test_an_item_that_did_not_fit_is_tried_once_more_in_tiles_and_says_so(components, item):
    model = components("fp32")
    used = Renderer(model, prompt_cache=4)
    whole = used.render(item(), [], on_progress=ignore)
    calls = []

    def full_the_first_time(*_):
        calls.append(model.autoencoder.use_tiling)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB")

    handle = model.autoencoder.decoder.register_forward_pre_hook(full_the_first_time)
    again = used.render(item(), [], on_progress=ignore)
    handle.remove()

    assert calls == [False, True]
    assert (whole.pipeline.decode, again.pipeline.decode) == ("whole", "tiled")
    # One tile holds all of 64x64, so the pixels are the same here.
    assert again.image.tobytes() == whole.image.tobytes()
    assert used.render(item(), [], on_progress=ignore).pipeline.decode == "whole"


@pytest.mark.parametrize("place", ["denoise", "decode", "swap"])
def test_memory_is_given_back_after_every_tensor_of_the_failed_attempt_is_gone(
    place, components, item, goldens, adapter_ref, monkeypatch, wait_until
):
    model, path = components("bf16"), goldens / "adapters/lora_alllinear_bf16.safetensors"
    renderer, tensors = Renderer(model, prompt_cache=4), []

    def full_the_first_time(*args, **kwargs):
        if not tensors:
            block = torch.empty(1000)
            tensors.append(weakref.ref(block))
            raise torch.OutOfMemoryError("full")
        return weight_delta(*args, **kwargs) if place == "swap" else None

    # The writing thread passes its error on a moment before it lets go of it.
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: wait_until(lambda: tensors[0]() is None, what="the end of the tensor")
    )
    if place == "swap":
        monkeypatch.setattr("worker.lora.apply.weight_delta", full_the_first_time)
    else:
        module = model.transformer if place == "denoise" else model.autoencoder.decoder
        handle = module.register_forward_pre_hook(full_the_first_time)
    rendered = renderer.render(item(adapters=(adapter_ref(path, 1.0),)), [path], on_progress=ignore)
    if place != "swap":
        handle.remove()

    assert tensors
    assert rendered.image.size == (64, 64)


def test_tiles_are_decoded_one_by_one_and_the_autoencoder_is_left_as_it_was(components):
    autoencoder = components("fp32").autoencoder
    latents = torch.randn(1, autoencoder.config.latent_channels, 32, 32, generator=torch.Generator().manual_seed(1))
    sizes = []
    handle = autoencoder.decoder.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape[-2:]))

    with torch.no_grad():
        whole = autoencoder.decode(latents, return_dict=False)[0]
        scale = whole.shape[-1] // 32
        with tiled_decoding(autoencoder, pixels=16 * scale):
            in_tiles = autoencoder.decode(latents, return_dict=False)[0]
        autoencoder.decode(latents, return_dict=False)
    handle.remove()

    assert in_tiles.shape == whole.shape
    assert len(sizes) > 4
    assert all(max(size) <= 16 for size in sizes[1:-1])
    assert sizes[-1] == (32, 32)


def test_a_decoded_image_that_is_not_finite_is_an_error(components, item):
    model = components("fp32")
    # All tests share the autoencoder, so the hook must be removed again.
    handle = model.autoencoder.decoder.register_forward_hook(lambda module, inputs, output: output * float("inf"))

    with pytest.raises(NotFinite, match="decoded image of seed"):
        Renderer(model, prompt_cache=4).render(item(), [], on_progress=ignore)
    handle.remove()


def test_latents_that_are_not_finite_are_an_error_and_no_black_image(components, item):
    model = components("bf16")
    model.transformer.proj_out.register_forward_hook(lambda module, inputs, output: output * float("nan"))

    with pytest.raises(NotFinite, match="not finite"):
        Renderer(model, prompt_cache=4).render(item(), [], on_progress=ignore)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 100},
        {"height": 0},
        {"num_inference_steps": 0},
        {"guidance_scale": float("nan")},
        {"prompt": "[IM[IMG]G]"},
    ],
)
def test_an_item_that_can_only_give_garbage_is_refused_before_any_work(changes, renderer, item):
    seen = []

    with pytest.raises(InvalidRequest):
        renderer().render(item(**changes), [], on_progress=seen.append)

    assert seen == []


def test_the_next_item_is_prepared_by_another_thread_while_one_renders(components, item, goldens, adapter_ref):
    path = goldens / "adapters/lora_r4_bf16.safetensors"
    coming = item(prompt="a blue star", adapters=(adapter_ref(path),))
    expected = Renderer(components("bf16"), prompt_cache=4).render(coming, [path], on_progress=lambda _: None)
    renderer = Renderer(components("bf16"), prompt_cache=4, adapter_cache_bytes=10_000_000)
    renderer.render(item(), [], on_progress=lambda progress: prepare_at(renderer, coming, path, progress))
    encoder, encoded = renderer._components.text_encoder, []
    watching = encoder.register_forward_pre_hook(lambda *_: encoded.append(1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.lora.load._tensors", lambda path: pytest.fail(f"{path} is read again"))
        rendered = renderer.render(coming, [path], on_progress=lambda _: None)
    watching.remove()

    assert encoded == []
    assert rendered.image.tobytes() == expected.image.tobytes()


def prepare_at(renderer, coming, path, progress):
    if (progress.stage, progress.step) == ("denoise", 1):
        thread = threading.Thread(target=renderer.prepare, args=(coming, [path]))
        thread.start()
        thread.join()


def test_a_prepared_items_swap_begins_during_the_last_step_before_it(components, item, goldens, adapter_ref):
    first, second = (goldens / f"adapters/{name}_bf16.safetensors" for name in ("lora_alllinear", "dora"))
    items = [(item(seed=seed, adapters=(adapter_ref(path),)), path) for seed, path in enumerate((first, second, first))]
    plain, renderer = (Renderer(components("bf16"), prompt_cache=4, adapter_cache_bytes=10_000_000) for _ in range(2))
    expected = [plain.render(spec, [path], on_progress=ignore) for spec, path in items]

    for number, (spec, path) in enumerate(items):
        coming = items[(number + 1) % 3]
        rendered = renderer.render(
            spec, [path], on_progress=lambda at, coming=coming: prepare_at(renderer, *coming, at)
        )
        assert renderer.warm_key == coming[0].adapter_key
        assert rendered.image.tobytes() == expected[number].image.tobytes()
        assert rendered.adapters == expected[number].adapters
        assert rendered.pipeline.change == expected[number].pipeline.change

    renderer.swapper.wait()
    assert (renderer.swapper.count_corrupted(), renderer.swapper.corrupted) == (0, 0)


def test_an_item_that_fails_in_its_last_step_leaves_the_next_items_swap_intact(components, item, goldens, adapter_ref):
    path = goldens / "adapters/lora_alllinear_bf16.safetensors"
    coming = item(adapters=(adapter_ref(path),))
    expected = Renderer(components("bf16"), prompt_cache=4).render(coming, [path], on_progress=ignore)
    renderer = Renderer(components("bf16"), prompt_cache=4, adapter_cache_bytes=10_000_000)
    steps = item().num_inference_steps

    def on_progress(progress):
        prepare_at(renderer, coming, path, progress)
        if (progress.stage, progress.step) == ("denoise", steps - 1):
            block = renderer._components.transformer.single_transformer_blocks[0]
            failing.append(block.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("broken"))))

    failing = []
    with pytest.raises(RuntimeError, match="broken"):
        renderer.render(item(), [], on_progress=on_progress)
    failing.pop().remove()

    assert renderer.render(coming, [path], on_progress=ignore).image.tobytes() == expected.image.tobytes()


@pytest.fixture
def changing(components, item, goldens, adapter_ref):
    """A renderer, an item with an adapter, and a function that renders another item while that one is prepared."""
    path = goldens / "adapters/lora_alllinear_bf16.safetensors"
    coming = item(adapters=(adapter_ref(path),))
    renderer = Renderer(components("bf16"), prompt_cache=4, adapter_cache_bytes=10_000_000)

    def render(**changes):
        return renderer.render(
            item(**changes), [], on_progress=lambda progress: prepare_at(renderer, coming, path, progress)
        )

    return renderer, coming, render


def test_an_item_that_the_next_items_swap_leaves_without_memory_is_rendered_again_by_itself(
    changing, item, monkeypatch
):
    renderer, coming, render = changing
    expected = Renderer(renderer._components, prompt_cache=4).render(item(), [], on_progress=ignore)
    engine, failed = renderer._engines["exact"], []
    decode_it = engine.decode

    def once(latents):
        if not failed:
            failed.append(renderer.warm_key)
            raise torch.OutOfMemoryError("full")
        return decode_it(latents)

    monkeypatch.setattr(engine, "decode", once)
    rendered = render()

    assert failed == [coming.adapter_key]
    assert rendered.pipeline.decode == "whole"
    assert rendered.image.tobytes() == expected.image.tobytes()


def test_a_next_swap_that_cannot_begin_does_not_fail_the_item_that_renders(changing, monkeypatch):
    renderer, _, render = changing
    monkeypatch.setattr(
        renderer.swapper, "begin_next", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no threads"))
    )

    assert render().image.size == (64, 64)
    assert renderer.warm_key == "base"


def test_no_swap_begins_for_an_item_that_was_prepared_in_an_earlier_turn(changing, item):
    renderer, _, render = changing
    render(num_inference_steps=1)  # the last step had begun when it was prepared

    renderer.render(item(), [], on_progress=ignore)

    assert renderer.warm_key == "base"


def test_an_adapter_that_does_not_fit_the_cache_is_not_preloaded_but_its_item_is_prepared(
    components, item, goldens, adapter_ref
):
    path = goldens / "adapters/lora_r4_bf16.safetensors"
    coming = item(adapters=(adapter_ref(path),))
    renderer, encoded = Renderer(components("bf16"), prompt_cache=0), []
    renderer._components.text_encoder.register_forward_pre_hook(lambda *_: encoded.append(1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.lora.load._tensors", lambda path: pytest.fail(f"{path} is read"))
        renderer.prepare(coming, [path])
    renderer.render(coming, [path], on_progress=ignore)

    assert encoded == [1]
