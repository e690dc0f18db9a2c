"""Requests with reference images over every process: the pixels are those of the engine used directly."""

import base64
import hashlib
import io

import pytest
import torch
from PIL import Image

from shared.errors import ApiError
from shared.job import ReferenceRef
from shared.settings import ModelSettings
from worker.model.load import load_components
from worker.rendering.renderer import Renderer

SIZE = {"width": 64, "height": 64, "seed": 7, "sample_steps": 2}
# As the API has it by default.
GUIDANCE = 4.0


def drawn(color, size, kind):
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, kind)
    ground = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
    file = io.BytesIO()
    Image.blend(ground, Image.new("RGB", size, color), 0.5).save(file, kind)
    return file.getvalue()


RED, GREEN = drawn((200, 30, 40), (101, 87), "PNG"), drawn((20, 220, 40), (96, 64), "JPEG")
# Above a megapixel: it is scaled down.
BLUE = drawn((20, 40, 220), (1400, 900), "WEBP")


@pytest.fixture(scope="module")
def render(stack, item):
    """Render an item with the stack's model in this process, on as many threads as its workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = stack.demo_checkpoint
    settings = ModelSettings(path=str(folder), text_encoder=str(folder / "text_encoder"), precision="fp32")
    files = {hashlib.sha256(data).hexdigest(): data for data in (RED, GREEN, BLUE)}
    components = load_components(settings, device=torch.device("cpu"), hf_token=None)
    renderer = Renderer(components, prompt_cache=4, load_reference=files.__getitem__)

    def render(images):
        references = tuple(
            ReferenceRef(slot=slot, sha256=hashlib.sha256(data).hexdigest()) for slot, data in images.items()
        )
        spec = item(prompt="a robot", seed=7, guidance_scale=GUIDANCE, references=references)
        return renderer.render(spec, [], on_progress=lambda progress: None).image.tobytes()

    yield render
    torch.set_num_threads(threads)


def rendered(client, *prompts):
    """Submit a job, wait for it, and return the pixels of its images and what the result says of them."""
    job = client.submit(
        {"model": "flux2", "loras": [], "prompts": [{"prompt": "a robot", **SIZE, **prompt} for prompt in prompts]}
    )
    assert client.wait(job.request_id, timeout_s=120).status == "succeeded"
    images = client.result(job.request_id).images
    return [Image.open(io.BytesIO(image.bytes())).convert("RGB").tobytes() for image in images], images


def base64_of(data):
    return base64.b64encode(data).decode()


def test_one_two_and_three_references_give_the_pixels_of_the_engine(client, web, render):
    web.files["/blue.webp"] = BLUE

    pixels, images = rendered(
        client,
        {},
        {"ctrl_img": base64_of(RED)},
        {"ctrl_img_1": f"data:image/png;base64,{base64_of(RED)}", "ctrl_img_2": base64_of(GREEN)},
        {
            "ctrl_img": base64_of(GREEN),
            "ctrl_img_2": f"http://{web.place}/blue.webp",
            "ctrl_img_3": base64_of(RED),
        },
        {"ctrl_img_3": base64_of(GREEN)},
    )

    used = [{}, {1: RED}, {1: RED, 2: GREEN}, {1: GREEN, 2: BLUE, 3: RED}, {3: GREEN}]
    assert [ours == render(images) for ours, images in zip(pixels, used, strict=True)] == [True] * 5
    assert len(set(pixels)) == 5
    assert [[reference.slot for reference in image.references] for image in images] == [list(each) for each in used]
    sizes = [(reference.width, reference.height) for reference in images[3].references]
    assert sizes == [(96, 64), (1264, 816), (96, 80)]


def test_an_image_whose_address_is_gone_gives_the_same_picture_again(client, web, render):
    web.files["/here.png"] = RED
    url = f"http://{web.place}/here.png"
    [first], [image] = rendered(client, {"ctrl_img": url})
    # Another picture has its place now, and then none.
    web.files["/here.png"] = GREEN
    [reference] = image.references

    [again], _ = rendered(client, {"ctrl_img": f"upload:{reference.sha256}"})
    [other], _ = rendered(client, {"ctrl_img": url})
    del web.files["/here.png"]
    with pytest.raises(ApiError, match=r"prompts\[0\]\.ctrl_img: .*answered 404; check the link"):
        rendered(client, {"ctrl_img": url})

    assert first == again == render({1: RED})
    assert other == render({1: GREEN}) != first
