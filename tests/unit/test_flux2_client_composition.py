"""Options become requests, requests are split to the API's limits, and names stay inside their folder."""

import os
from pathlib import Path

import pytest

from flux2_client.composition import (
    compose_prompts,
    draw_seeds,
    fill_seeds,
    parse_lora,
    parse_seeds,
    parse_sigmas,
    parse_size,
    read_prompts,
    split_request,
)
from flux2_client.destination import Destination
from flux2_client.file_names import DEFAULT_TEMPLATE, check_template, name_image, name_images
from flux2_client.models import ImageInfo, Limits
from flux2_client.profiles import Target, find_target
from shared.errors import ClientConfigRefused, OutputRefused


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("7", [7]), ("1..4", [1, 2, 3, 4]), ("1,2,9", [1, 2, 9]), ("1..3,7", [1, 2, 3, 7]), ("-1", [-1])],
)
def test_seeds_are_numbers_and_ranges(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1..", "4..1", "1..1000000000", "1,,2"])
def test_other_seeds_are_refused(text):
    with pytest.raises(ValueError, match=r"seed|counts down"):
        parse_seeds(text)


def test_sizes_and_adapters_are_parsed():
    assert parse_size("640x480") == (640, 480)
    assert parse_size("128") == (128, 128)
    assert parse_lora("a/b.safetensors@0.5") == {"path": "a/b.safetensors", "network_multiplier": 0.5}
    assert parse_lora("a@b.safetensors") == {"path": "a@b.safetensors"}
    assert parse_lora("x@1.safetensors@-1") == {"path": "x@1.safetensors", "network_multiplier": -1.0}
    with pytest.raises(ValueError, match="'640x' is not a size"):
        parse_size("640x")


def test_noise_levels_are_numbers_with_commas():
    assert parse_sigmas("1, 0.5,1e-3") == [1.0, 0.5, 0.001]
    with pytest.raises(ValueError, match="is not a list of noise levels"):
        parse_sigmas("1;0.5")


@pytest.mark.parametrize("own", [{"sample_steps": 4}, {"sigmas": [1.0, 0.5]}])
@pytest.mark.parametrize("option", [{"sample_steps": 25}, {"sigmas": [1.0]}])
def test_a_prompts_own_steps_or_noise_levels_replace_those_of_the_options(own, option):
    plain, special = compose_prompts(
        [{"prompt": "a"}, {"prompt": "b", **own}], seeds=[], fields={"width": 64, **option}
    )

    assert plain == {"prompt": "a", "width": 64, **option}
    assert special == {"prompt": "b", "width": 64, **own}


def test_a_prompts_file_holds_text_and_json_objects():
    assert read_prompts('a cat\n\n {"prompt": "a dog", "seed": 3}\n') == [
        {"prompt": "a cat"},
        {"prompt": "a dog", "seed": 3},
    ]
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_prompts("a\n{b\n")
    with pytest.raises(ValueError, match='line 1 has no "prompt"'):
        read_prompts('{"text": "a"}')


def test_only_the_end_of_a_line_ends_a_prompt():
    assert read_prompts('a\u2028b\r\n{"prompt": "c\x85d"}\r\n') == [{"prompt": "a\u2028b"}, {"prompt": "c\x85d"}]


def test_each_prompt_gets_each_seed_and_keeps_its_own_fields():
    prompts = [{"prompt": "a"}, {"prompt": "b", "seed": 9, "width": 64}]

    entries = compose_prompts(prompts, seeds=[1, 2], fields={"width": 128})

    assert entries == [
        {"prompt": "a", "seed": 1, "width": 128},
        {"prompt": "a", "seed": 2, "width": 128},
        {"prompt": "b", "seed": 9, "width": 64},
    ]
    with pytest.raises(ValueError, match="more than 100,000 images"):
        compose_prompts([{"prompt": "a"}] * 2, seeds=range(60_000), fields={})


def test_a_large_request_is_split_by_count_and_by_size_in_order():
    request = {"model": "flux2", "loras": [], "prompts": [{"prompt": f"{n:04d}" + "x" * 500} for n in range(25)]}

    by_count = list(split_request(request, Limits(max_prompts=10)))
    by_size = list(split_request(request, Limits(max_body_bytes=10_000)))

    assert [len(part["prompts"]) for part in by_count] == [10, 10, 5]
    assert len(by_size) == 3
    for parts in (by_count, by_size):
        assert [prompt for part in parts for prompt in part["prompts"]] == request["prompts"]
        assert all(part["model"] == "flux2" for part in parts)


def test_a_request_is_split_by_the_number_of_its_values():
    prompts = [{"prompt": "a", "sigmas": [1 - step / 150 for step in range(150)]}] * 10

    parts = list(split_request({"prompts": prompts}, Limits(max_values=1000 + 4 * 152)))

    assert [len(part["prompts"]) for part in parts] == [4, 4, 2]


def test_a_request_is_split_by_the_number_of_different_reference_images():
    texts = ["a", "b", "a", "c", None, "d", "d", "c"]
    prompts = [{"prompt": f"{n}", "ctrl_img": text, "ctrl_img_2": "b"} for n, text in enumerate(texts)]

    parts = list(split_request({"prompts": prompts}, Limits(max_reference_images=3)))

    assert [[prompt["ctrl_img"] for prompt in part["prompts"]] for part in parts] == [
        ["a", "b", "a", "c", None],
        ["d", "d", "c"],
    ]


def test_seeds_that_the_api_would_choose_do_not_depend_on_the_split():
    prompts = [{"prompt": "a"}, {"prompt": "b", "seed": 7}, {"prompt": "c"}, {"prompt": "d", "seed": None}]

    filled = fill_seeds({"prompts": prompts}, first=42)

    assert [prompt["seed"] for prompt in filled["prompts"]] == [42, 7, 44, 45]


def test_a_random_seed_is_drawn_before_a_request_is_submitted_twice():
    given = {"prompts": [{"prompt": "a", "seed": -1}, {"prompt": "b", "seed": -1}, {"prompt": "c", "seed": 7}]}

    one, other, kept = (prompt["seed"] for prompt in draw_seeds(given)["prompts"])

    assert one != other
    assert 0 <= min(one, other) <= max(one, other) < 2**32
    assert kept == 7
    assert draw_seeds({"prompts": [{"prompt": "d"}]}) == {"prompts": [{"prompt": "d"}]}


def image(**changes):
    fields = {
        "index": 3,
        "format": "png",
        "width": 64,
        "height": 64,
        "seed": 42,
        "prompt": "a cat",
        "url": "",
        "url_expires_at": "",
        "sha256": "ab",
        "size_bytes": 1,
        "pipeline": {"engine": "exact", "precision": "bf16", "device": "cpu", "change": "none"},
    }
    made = ImageInfo.model_validate({**fields, **changes})
    made.bind(None, request_id="job-1")
    return made


def test_a_template_names_files_by_the_images_values():
    assert str(name_image(image(), DEFAULT_TEMPLATE)) == "job-1-3-42.png"
    assert str(name_image(image(), "{width}x{height}/{index:04d} {prompt}.{format}")) == "64x64/0003 a_cat.png"
    assert str(name_image(image(seed=None), DEFAULT_TEMPLATE)) == "job-1-3-none.png"


@pytest.mark.parametrize("letter", ["a", "\N{CYRILLIC SMALL LETTER ZHE}", "\N{CJK UNIFIED IDEOGRAPH-732B}"])
def test_a_long_prompt_of_any_language_gives_a_name_that_file_systems_take(letter):
    path = name_image(image(prompt=f"{letter * 1000}"), "{prompt}-{request_id}.{format}")

    assert 100 < len(os.fsencode(path)) < 140
    assert path.name.startswith(letter * 40)


@pytest.mark.parametrize("value", ["../../etc/passwd", "/etc/passwd", "..", "a/../../b", "\\..\\x", "\0", ""])
def test_no_value_of_an_answer_leads_out_of_the_folder(value):
    path = name_image(image(prompt=value, format=value), "{prompt}.{format}")

    assert len(path.parts) == 1
    assert not path.is_absolute()
    assert ".." not in path.parts


@pytest.mark.parametrize(
    "template",
    ["../{index}", "/tmp/{index}", "a/../../{index}", "{index.__class__}", "{0}", "{other}", "{", "fixed.png"],
)
def test_a_template_that_leads_out_or_is_unknown_is_refused(template):
    with pytest.raises(ValueError, match=r"template|unknown|below the output folder"):
        check_template(template)


def test_a_template_that_gives_two_images_one_name_is_refused():
    with pytest.raises(OutputRefused, match=r"two images the name 42\.png"):
        name_images([image(index=0), image(index=1)], "{seed}.{format}")
    with pytest.raises(OutputRefused, match="cannot name image 3"):
        name_image(image(), "{prompt:04d}")


def test_a_destination_names_the_options_that_save_the_same_files():
    assert Destination(Path("a b"), DEFAULT_TEMPLATE, 8).options() == " --output 'a b'"
    kept = Destination(Path("out"), "{seed}.png", 8, overwrite=True).options()
    assert kept == " --output out --name '{seed}.png' --overwrite"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "flux2" / "config.toml"
    file.parent.mkdir()
    return file


def test_the_address_comes_from_options_then_environment_then_the_default_profile(config, monkeypatch):
    assert find_target(None, None).url == "http://127.0.0.1:8000"
    config.write_text('default = "a"\n[profiles.a]\nurl = "http://a"\n[profiles.b]\nurl = "http://b"\n')
    assert find_target(None, None).url == "http://a"
    config.write_text(config.read_text(), encoding="utf-8-sig")
    assert find_target(None, None).url == "http://a"
    monkeypatch.setenv("FLUX2_CLIENT_PROFILE", "b")
    assert find_target(None, None).url == "http://b"
    monkeypatch.setenv("FLUX2_CLIENT_URL", "http://c")
    assert find_target(None, None).url == "http://c"
    assert find_target(None, "a").url == "http://a"
    assert find_target("http://d", "a").url == "http://d"


def test_the_key_goes_with_the_address_that_it_is_for(config, monkeypatch):
    config.write_text(
        'default = "a"\n[profiles.a]\nurl = "http://a"\napi_key = "key-a"\n[profiles.b]\nurl = "http://b"\n'
    )

    assert find_target(None, None) == Target("http://a", "key-a", "a")
    assert find_target(None, "b") == Target("http://b", None)
    assert find_target("http://c", "a") == Target("http://c", None)
    assert find_target("http://c", None, "given") == Target("http://c", "given")
    monkeypatch.setenv("FLUX2_API_KEY", "from-env")
    assert find_target(None, None) == Target("http://a", "from-env")
    # The profile that a person names has its own key.
    assert find_target(None, "a") == Target("http://a", "key-a", "a")
    assert find_target(None, "b") == Target("http://b", "from-env")
    assert find_target(None, "a", "given") == Target("http://a", "given")
    assert "key-a" not in repr(Target("http://a", "key-a"))


def test_a_key_that_no_header_can_hold_is_refused(config, monkeypatch):
    monkeypatch.setenv("FLUX2_API_KEY", "flux2_a\n")
    with pytest.raises(ClientConfigRefused, match="copy it again"):
        find_target(None, None)
    config.write_text('[profiles.a]\nurl = "http://a"\napi_key = 1\n')
    with pytest.raises(ClientConfigRefused, match="api_key of the profile 'a'"):
        find_target(None, "a")


def test_an_unknown_profile_and_an_unsound_file_are_named(config):
    config.write_text("[profiles.a]\nurl = 1\n")
    with pytest.raises(ClientConfigRefused, match=r"config\.toml has no url for the profile 'a'"):
        find_target(None, "a")
    config.write_text("[[[")
    with pytest.raises(ClientConfigRefused, match="cannot be read"):
        find_target(None, None)
