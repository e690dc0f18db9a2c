"""What is read from an image file to render it again."""

import io

import pytest
from PIL import Image

from flux2_client.reproduction import Reproduction, read_image_parameters, request_of
from flux2_client.similarity import compare_images
from shared.errors import ReproductionFailed
from shared.provenance.signature import Signature
from worker.consumer.image_file import encode

PARAMETERS = {
    "prompt": "a cat",
    "neg": "",
    "width": 64,
    "height": 64,
    "seed": 7,
    "sample_steps": 4,
    "guidance_scale": 4.0,
    "ctrl_img": "upload:" + "0" * 64,
    "model": "flux2",
    "loras": [{"path": "a.safetensors", "network_multiplier": 0.5}, {"path": "b.safetensors"}],
    "engine": "exact",
    "adapter_mode": None,
    "output_format": "png",
    "adapters": [{"sha256": "1" * 64}, {}],
    "index": 3,
    "request_id": "job",
}


def test_the_request_has_the_values_of_the_file_and_pins_its_adapters():
    assert request_of(PARAMETERS) == {
        "model": "flux2",
        "engine": "exact",
        "output_format": "png",
        "loras": [
            {"path": "a.safetensors", "network_multiplier": 0.5, "sha256": "1" * 64},
            {"path": "b.safetensors"},
        ],
        "prompts": [
            {
                "prompt": "a cat",
                "width": 64,
                "height": 64,
                "seed": 7,
                "sample_steps": 4,
                "guidance_scale": 4.0,
                "ctrl_img": "upload:" + "0" * 64,
            }
        ],
    }


def test_an_empty_prompt_is_kept():
    assert request_of({**PARAMETERS, "prompt": ""})["prompts"][0]["prompt"] == ""


def plain_png():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"text", "not a PNG, JPEG or WebP image; use a file as this service stored it"),
        (plain_png(), "holds no flux2 parameters; use a file as this service stored it"),
        (
            encode(Image.new("RGB", (8, 8)), "jpeg", {**PARAMETERS, "prompt": "x" * 70_000}),
            "lacks prompt: a JPEG has no room for long prompts or lists; render the image as PNG or WebP",
        ),
        (
            encode(
                Image.new("RGB", (8, 8)),
                "jpeg",
                {**PARAMETERS, "neg": "x" * 70_000, "loras": [{"path": "a" * 600}], "adapters": []},
            ),
            "lacks loras: a JPEG has no room",
        ),
        (
            encode(Image.new("RGB", (8, 8)), "jpeg", {**PARAMETERS, "neg": "x" * 70_000}),
            "lacks long values: a JPEG has no room",
        ),
    ],
)
def test_a_file_without_all_parameters_says_why(data, message, tmp_path):
    (tmp_path / "a.png").write_bytes(data)

    with pytest.raises(ReproductionFailed, match=message):
        read_image_parameters(tmp_path / "a.png")


def test_a_file_that_is_missing_says_so(tmp_path):
    with pytest.raises(ReproductionFailed, match="cannot be read: No such file or directory; name an image file"):
        read_image_parameters(tmp_path / "none.png")


def test_each_cause_of_a_difference_and_the_signature_are_lines_of_their_own():
    one, other = (Image.new("RGB", (8, 8), color) for color in ("#000000", "#010203"))
    found = Reproduction(
        "job",
        b"",
        compare_images(one, other),
        ("device: NVIDIA H200 in the file, cpu now", "engine: exact in the file, fast now"),
        Signature("broken", signer="Ann", organization="Studio", problems=("the file was changed",)),
    )

    first, *rest = found.describe()

    assert first.startswith("different: 192 of 192 pixel values differ, by at most 3 of 255; PSNR ")
    assert rest == [
        "  device: NVIDIA H200 in the file, cpu now",
        "  engine: exact in the file, fast now",
        "signature: broken, was signed by Ann (Studio): the file was changed",
    ]
