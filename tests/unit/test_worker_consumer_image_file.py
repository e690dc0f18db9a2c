"""Image files: the pixels that were rendered, and everything needed to render them again."""

import io
import json
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from shared.image_parameters import read_parameters
from worker.consumer.image_file import content_type, encode

FORMATS = ["png", "jpeg", "webp"]
FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)

PARAMETERS = {
    "model": "flux2",
    "prompt": 'a fox 狐 \U0001f98a, "quoted"\nساحل é',
    "neg": "blurry",
    "width": 1024,
    "height": 768,
    "seed": 42,
    "sample_steps": 25,
    "guidance_scale": 4.0,
    "adapters": [{"path": "people/ann.safetensors", "sha256": "ab12cd34ef" + "0" * 54, "multiplier": 0.8}],
}
READABLE = (
    'a fox 狐 \U0001f98a, "quoted"\nساحل é\n'
    "Negative prompt: blurry\n"
    "Steps: 25, Sampler: Euler, CFG scale: 4.0, Seed: 42, Model: flux2, Size: 1024x768, "
    'Loras: ann 0.8, Hashes: {"lora:ann": "ab12cd34ef"}'
)


@pytest.fixture
def gradient():
    """A smooth 64x48 image with colour in it, as lossy formats expect."""
    red = Image.linear_gradient("L").resize((64, 48))
    return Image.merge("RGB", (red, red.transpose(Image.Transpose.ROTATE_180), red.point(lambda value: value // 2)))


def opened(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize(
    ("fmt", "name", "media"),
    [("png", "PNG", "image/png"), ("jpeg", "JPEG", "image/jpeg"), ("webp", "WEBP", "image/webp")],
)
def test_each_format_has_its_own_bytes_and_media_type(gradient, fmt, name, media):
    image = opened(encode(gradient, fmt, PARAMETERS))

    assert (image.format, image.mode, image.size) == (name, "RGB", (64, 48))
    assert content_type(fmt) == media


def test_png_keeps_every_pixel(gradient):
    assert opened(encode(gradient, "png", {})).tobytes() == gradient.tobytes()


@pytest.mark.parametrize("fmt", ["jpeg", "webp"])
def test_lossy_formats_stay_close_to_the_pixels(gradient, fmt):
    lossy = opened(encode(gradient, fmt, {})).tobytes()

    differences = [abs(got - was) for got, was in zip(lossy, gradient.tobytes(), strict=True)]

    assert sum(differences) / len(differences) < 2


def test_jpeg_keeps_full_colour_resolution(gradient):
    image = opened(encode(gradient, "jpeg", {}))

    # (horizontal, vertical) sampling of each component: all 1 is 4:4:4.
    assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_parameters_can_be_read_from_every_format(gradient, fmt):
    assert read_parameters(encode(gradient, fmt, PARAMETERS)) == PARAMETERS


@FUZZ
@given(
    st.sampled_from(FORMATS),
    st.dictionaries(
        st.sampled_from(["prompt", "neg", "seed", "width", "adapters", "other"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
            max_leaves=6,
        ),
    ),
)
def test_any_json_value_can_be_read_back(fmt, parameters):
    assert read_parameters(encode(Image.new("RGB", (16, 16)), fmt, parameters)) == parameters


def test_png_carries_the_text_that_image_browsers_show(gradient):
    image = opened(encode(gradient, "png", PARAMETERS))

    assert image.text["parameters"] == READABLE
    assert json.loads(image.text["flux2"]) == PARAMETERS


@pytest.mark.parametrize("fmt", ["jpeg", "webp"])
def test_exif_carries_the_text_that_image_browsers_show(gradient, fmt):
    exif = opened(encode(gradient, fmt, PARAMETERS)).getexif()

    comment = exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == READABLE
    # EXIF 2.32, section 4.6.5: tag 0x9286 has the type 7, "undefined"; other libraries take no other for text.
    assert struct.pack(">HHL", 0x9286, 7, len(comment)) in encode(gradient, fmt, PARAMETERS)
    assert json.loads(exif[ExifTags.Base.ImageDescription]) == PARAMETERS


def test_values_that_hold_separators_are_quoted(gradient):
    several = [{"path": "a/x.safetensors", "multiplier": 1.0}, {"path": "y.safetensors", "multiplier": -0.5}]

    image = opened(encode(gradient, "png", {"prompt": "p", "model": "a, b: c", "adapters": several}))

    assert image.text["parameters"].splitlines()[1] == (
        'Model: "a, b: c", Loras: "x 1.0, y -0.5", Hashes: {"lora:x": "", "lora:y": ""}'
    )


def test_a_prompt_with_nul_and_a_lone_surrogate_survives_in_the_json(gradient):
    parameters = {"prompt": "a\0b\ud83e"}

    for fmt in FORMATS:
        assert read_parameters(encode(gradient, fmt, parameters)) == parameters


@pytest.mark.parametrize("fmt", ["png", "webp"])
def test_a_very_long_prompt_fits_into_png_and_webp(gradient, fmt):
    parameters = {**PARAMETERS, "prompt": "狐" * 100_000}

    assert read_parameters(encode(gradient, fmt, parameters)) == parameters


def test_a_very_long_prompt_is_left_out_of_a_jpeg_and_the_file_says_so(gradient):
    parameters = read_parameters(encode(gradient, "jpeg", {**PARAMETERS, "prompt": "狐" * 100_000}))

    assert parameters == {**{name: PARAMETERS[name] for name in PARAMETERS if name != "prompt"}, "truncated": True}


def test_a_parameter_that_json_cannot_hold_is_an_error(gradient):
    with pytest.raises(TypeError):
        encode(gradient, "png", {"prompt": object()})


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP"])
def test_an_image_of_another_program_has_no_parameters(gradient, fmt):
    file = io.BytesIO()
    gradient.save(file, fmt)

    with pytest.raises(ValueError, match="holds no flux2 parameters"):
        read_parameters(file.getvalue())


@pytest.mark.parametrize("data", [b"", b"GIF89a" + bytes(20), b"<svg/>", b"%PDF-1.7"])
def test_data_that_is_not_an_image_with_parameters_is_refused(data):
    with pytest.raises(ValueError, match="not a PNG, JPEG or WebP image"):
        read_parameters(data)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's word about damaged EXIF
@FUZZ
@given(st.sampled_from(FORMATS), st.data())
def test_a_damaged_file_gives_its_parameters_or_a_value_error(fmt, data):
    content = bytearray(encode(Image.new("RGB", (16, 16)), fmt, PARAMETERS))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]

    try:
        parameters = read_parameters(bytes(content))
    except ValueError:
        return
    assert isinstance(parameters, dict)
