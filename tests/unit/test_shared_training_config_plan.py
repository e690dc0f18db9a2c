"""Training configs become requests by the trainer's rules."""

import json
import tracemalloc

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from shared.errors import ConfigRefused, InvalidRequest, ReferencesNeeded
from shared.request import InferenceRequest
from shared.training_config import plan


def config(sample, *, trigger="ohwx", arch="flux2", **model):
    process = {"type": "sd_trainer", "trigger_word": trigger, "model": {"arch": arch, **model}, "sample": sample}
    return yaml.safe_dump({"job": "extension", "config": {"name": "my_lora", "process": [process]}})


def plan_replay(text, *, max_samples=1000, max_text_bytes=4 * 1024**2, **options):
    return plan.plan_replay(text, max_samples=max_samples, max_text_bytes=max_text_bytes, **options)


def prompts(text):
    replay = plan_replay(text)
    return [replay.requests[request]["prompts"][index] for request, index in replay.positions]


def test_a_field_missing_in_a_sample_comes_from_the_section_then_from_the_trainers_defaults():
    [first, second] = prompts(config({"samples": [{"prompt": "a"}, {"prompt": "b", "width": 768}], "height": 640}))

    assert first == {
        "prompt": "a",
        "neg": "",
        "width": 512,
        "height": 640,
        "seed": 0,
        "sample_steps": 20,
        "guidance_scale": 7.0,
    }
    assert (second["width"], second["height"]) == (768, 640)


def test_prompts_in_the_older_form_are_samples_too():
    assert [prompt["prompt"] for prompt in prompts(config({"prompts": ["a", "b"]}))] == ["a", "b"]


def test_walking_seeds_count_up_and_a_samples_own_seed_counts_for_itself_only():
    section = {"seed": 42, "walk_seed": True, "samples": [{"prompt": "a"}, {"prompt": "b", "seed": 7}, {"prompt": "c"}]}

    assert [prompt["seed"] for prompt in prompts(config(section))] == [42, 7, 44]


def test_without_walking_a_samples_own_seed_persists_for_the_samples_after_it():
    section = {"seed": 42, "samples": [{"prompt": "a"}, {"prompt": "b", "seed": 7}, {"prompt": "c"}]}

    assert [prompt["seed"] for prompt in prompts(config(section))] == [42, 7, 7]


def test_flags_in_a_prompt_override_everything_and_are_cut_from_it():
    text = "  a red fox  --w 768 --h 1024 --d 5 --s 12 --l 3.5 --n blurry, dark --unknown 3 "

    [prompt] = prompts(config({"samples": [{"prompt": text, "width": 64, "seed": 1}]}))

    assert prompt == {
        "prompt": "a red fox",
        "neg": "blurry, dark",
        "width": 768,
        "height": 1024,
        "seed": 5,
        "sample_steps": 12,
        "guidance_scale": 3.5,
    }


def test_long_flag_names_mean_the_same():
    [prompt] = prompts(config({"prompts": ["a --seed 3 --steps 4 --cfg 2"]}))

    assert (prompt["seed"], prompt["sample_steps"], prompt["guidance_scale"]) == (3, 4, 2.0)


def test_trigger_and_name_are_filled_in():
    [prompt] = prompts(config({"prompts": ["[trigger] by [name]"]}))

    assert prompt["prompt"] == "ohwx by my_lora"


def test_without_a_trigger_word_the_placeholder_stays_as_typed():
    [prompt] = prompts(config({"prompts": ["[trigger] a cat"]}, trigger=None))

    assert prompt["prompt"] == "[trigger] a cat"


def test_samples_with_different_multipliers_become_one_request_each_in_the_samples_order():
    section = {"samples": [{"prompt": "a"}, {"prompt": "b --m 0.5"}, {"prompt": "c", "network_multiplier": "1.0"}]}

    replay = plan_replay(config(section))

    assert replay.positions == ((0, 0), (1, 0), (0, 1))
    assert [request["loras"] for request in replay.requests] == [
        [{"path": "my_lora/my_lora.safetensors", "network_multiplier": 1.0}],
        [{"path": "my_lora/my_lora.safetensors", "network_multiplier": 0.5}],
    ]


def test_adapters_run_as_the_trainer_ran_them():
    # It merges if all samples share one multiplier, and never a DoRA.
    dora = config({"prompts": ["a"]}).replace("trigger_word", "network: {type: DoRA}\n    trigger_word")

    modes = [
        [request.get("adapter_mode") for request in plan_replay(text).requests]
        for text in (config({"prompts": ["a", "b"]}), config({"prompts": ["a", "b --m 0.5"]}), dora)
    ]

    assert modes == [[None], ["live", "live"], ["live"]]


def test_another_adapter_can_be_named():
    replay = plan_replay(config({"prompts": ["a"]}), lora="other/step_500.safetensors")

    assert replay.requests[0]["loras"][0]["path"] == "other/step_500.safetensors"


def test_a_negative_prompt_of_false_is_empty():
    [prompt] = prompts(config({"prompts": ["a"], "neg": False}))

    assert prompt["neg"] == ""


A, B, C, D = "/data/a.png", "images/b.jpg", "C:\\c.webp", "d.bmp"


@pytest.mark.parametrize(
    ("sample", "found"),
    [
        ({"ctrl_img": A}, {"ctrl_img": A}),
        ({"ctrl_img_1": A}, {"ctrl_img": A}),
        ({"ctrl_img_2": A}, {"ctrl_img_2": A}),
        ({"ctrl_img_3": A}, {"ctrl_img_3": A}),
        ({"ctrl_img_1": A, "ctrl_img_2": B, "ctrl_img_3": C}, {"ctrl_img": A, "ctrl_img_2": B, "ctrl_img_3": C}),
        ({"ctrl_img": A, "ctrl_img_2": A}, {"ctrl_img": A, "ctrl_img_2": A}),
        # ctrl_img takes the place of ctrl_img_1.
        ({"ctrl_img": A, "ctrl_img_1": B}, {"ctrl_img": A}),
        ({"ctrl_img": None, "ctrl_img_1": B}, {"ctrl_img": B}),
        ({"ctrl_img": A, "ctrl_img_1": None}, {"ctrl_img": A}),
        # The flag takes the place of both; the last one counts.
        ({"prompt": f"p --ctrl_img {A}"}, {"ctrl_img": A}),
        ({"prompt": f"p --ctrl_img {A}", "ctrl_img": B, "ctrl_img_2": C}, {"ctrl_img": A, "ctrl_img_2": C}),
        ({"prompt": f"p --ctrl_img {A}", "ctrl_img_1": B}, {"ctrl_img": A}),
        ({"prompt": f"p --ctrl_img {A} --ctrl_img  {B} "}, {"ctrl_img": B}),
        ({"prompt": "p --ctrl_img /a file.png --w 64"}, {"ctrl_img": "/a file.png"}),
        # Two dashes in a path begin another flag.
        ({"prompt": "p --ctrl_img /a--b.png"}, {"ctrl_img": "/a"}),
        # Slots 2 and 3 have no flag.
        ({"prompt": f"p --ctrl_img_2 {A} --ctrl_idx 1"}, {}),
        # Placeholders are filled in before flags are read; in a key, [trigger] stays.
        ({"prompt": "p --ctrl_img /[name]/[trigger].png"}, {"ctrl_img": "/my_lora/ohwx.png"}),
        ({"ctrl_img": "/[name]/[trigger].png"}, {"ctrl_img": "/my_lora/[trigger].png"}),
    ],
)
def test_a_samples_reference_images_are_those_that_the_trainer_opens(sample, found):
    text = config({"samples": [{"prompt": "p", **sample}]})

    [prompt] = plan_replay(text, images={image: f"upload:{image}" for image in found.values()}).requests[0]["prompts"]

    assert prompt["prompt"] == "p"
    fields = {field: value for field, value in prompt.items() if field.startswith("ctrl")}
    assert fields == {field: f"upload:{image}" for field, image in found.items()}


def test_the_images_that_a_replay_needs_are_named_once_each():
    samples = [{"prompt": "a", "ctrl_img": A, "ctrl_img_2": B}, {"prompt": f"b --ctrl_img {B}"}, {"prompt": "c"}]

    with pytest.raises(ReferencesNeeded, match=r"have 2 reference images on the host of the trainer") as refused:
        plan_replay(config({"samples": samples}))
    with pytest.raises(ReferencesNeeded) as still_refused:
        plan_replay(config({"samples": samples}), images={B: "upload:b"})

    assert refused.value.images == (A, B)
    assert still_refused.value.images == (A,)


def test_many_needed_images_are_named_in_full_for_programs_and_shortened_for_people():
    images = [f"/{'x' * 200}/{number}.png" for number in range(5)]

    with pytest.raises(ReferencesNeeded) as refused:
        plan_replay(config({"samples": [{"prompt": "a", "ctrl_img": image} for image in images]}))

    assert refused.value.images == tuple(images)
    assert "xxx/2.png' and 2 more; upload each" in str(refused.value)
    assert len(str(refused.value)) < 700


def test_links_in_a_config_need_no_upload():
    samples = [{"prompt": "a", "ctrl_img": "https://example.com/a.png", "ctrl_img_2": f"upload:{'0' * 64}"}]

    [prompt] = prompts(config({"samples": samples}))

    assert (prompt["ctrl_img"], prompt["ctrl_img_2"]) == ("https://example.com/a.png", f"upload:{'0' * 64}")


def test_an_image_that_no_sample_has_is_refused():
    samples = [{"prompt": "a", "ctrl_img": A}]

    with pytest.raises(InvalidRequest, match=r"no sample of the config has the reference image 'other\.png'"):
        plan_replay(config({"samples": samples}), images={A: "upload:a", "other.png": "upload:b"})


def test_images_that_the_trainer_never_opens_give_a_warning_of_each_kind():
    samples = [{"prompt": "a", "ctrl_img": A, "ctrl_img_1": B}, {"prompt": f"a --ctrl_img {B}", "ctrl_img": A}]
    section = {"format": "png", "ctrl_img": C, "ctrl_img_2": C, "samples": samples}
    flagged = {"format": "png", "samples": samples[1:]}
    same = {"format": "png", "samples": [{"prompt": "a", "ctrl_img": A, "ctrl_img_1": A}, {"prompt": "b"}]}

    found = plan_replay(config(section), images={A: "upload:a", B: "upload:b"}).warnings

    assert [warning.split(",")[0] for warning in found] == [
        "sample.ctrl_img has no effect",
        "sample.samples[0].ctrl_img_1 has no effect",
    ]
    [warning] = plan_replay(config(flagged), images={B: "upload:b"}).warnings
    assert warning == "sample.samples[0].ctrl_img has no effect, as in the trainer: --ctrl_img takes its place"
    assert plan_replay(config(same), images={A: "upload:a"}).warnings == ()


def test_settings_that_prevent_an_equal_replay_give_a_warning():
    quantised = plan_replay(config({"prompts": ["a"], "seed": -1}, quantize=True))
    plain = plan_replay(config({"prompts": ["a"], "format": "png"}))

    assert [warning.split(":")[0] for warning in quantised.warnings] == [
        "model.quantize is on",
        "sample.format is jpg",
        "sample.seed is -1",
    ]
    assert plain.warnings == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "not YAML"),
        ("just text", "the file is missing or not a mapping"),
        ("config: {}", r"config\.name is missing"),
        ("config: {name: x}", r"config\.process is not a list"),
        (config({"prompts": ["a"]}, arch="sdxl"), "arch is 'sdxl', which is not served; use one of: flux2"),
        (config({}), "no prompts and no samples"),
        (config({"samples": [{"prompt": 5}]}), r"samples\[0\]\.prompt is 5"),
        (config({"prompts": ["a", "b --w wide"]}), r"samples\[1\]\.width is 'wide', not a whole number"),
        (config({"samples": [{"prompt": "a", "ctrl_img_2": 5}]}), r"samples\[0\]\.ctrl_img_2 is 5, not text"),
        (
            config({"samples": [{"prompt": "a", "ctrl_img": ["b.png"]}]}),
            r"samples\[0\]\.ctrl_img is \['b\.png'\], not text",
        ),
        (
            config({"samples": [{"prompt": "a", "ctrl_img": ""}]}),
            r"samples\[0\]\.ctrl_img is empty, and the trainer fails",
        ),
        (
            config({"prompts": ["a --ctrl_img"]}),
            r"--ctrl_img in config\.process\[0\]\.sample\.samples\[0\]\.prompt is empty",
        ),
        (config({"samples": [{"prompt": "a", "ctrl_img": "x" * 4097}]}), r"ctrl_img is 'x+\.\.\.x+', which is no path"),
        (config({"prompts": 5}), r"sample\.prompts is 5, not a list"),
        (config({"prompts": "a cat"}), r"sample\.prompts is 'a cat', not a list"),
        (config({"prompts": [None]}), r"samples\[0\]\.prompt is None, not text"),
        (config({"samples": None}), r"sample\.samples is None, not a list"),
        (config({"samples": [None]}), r"samples\[0\] is missing or not a mapping"),
        (config({"prompts": ["a"]}, trigger=5), r"trigger_word is 5, not text"),
        (config({"prompts": ["a"]}, trigger="x" * 1001), r"trigger_word has 1001 characters; use at most 1000"),
        # No model of the trainer's.
        (
            config({"prompts": ["a"]}, arch="flux2_klein_4b_distilled"),
            "flux2_klein_4b_distilled', which is not served; use one of: flux2, flux2_klein_4b, flux2_klein_9b$",
        ),
        (config({"prompts": ["a"]}, arch=["flux2"]), r"arch is \['flux2'\], which is not served; use one of"),
        (config({"prompts": ["a"], "width": float("inf")}), r"sample\.width is inf, not a whole number"),
        (config({"prompts": ["a"], "guidance_scale": float("nan")}), r"sample\.guidance_scale is nan, not a finite"),
        (config({"prompts": ["a --m 1e999"]}), r"samples\[0\]\.network_multiplier is '1e999', not a finite number"),
        (config({"prompts": ["a --d " + "9" * 5000]}), r"samples\[0\]\.seed is '9+\.\.\.9+', not a whole number"),
        (config({"prompts": ["a"], "walk_seed": True, "seed": "abc"}), r"sample\.seed is 'abc', not a whole number"),
        (config({"prompts": ["a"], "neg": ["blurry"]}), r"sample\.neg is \['blurry'\], not text"),
        (
            config({"prompts": ["a"], "width": 5}).replace("width: 5", "width: 2024-13-45"),
            r"line \d+: '2024-13-45' cannot be read as timestamp",
        ),
        ("config: {name: " + "x" * 256 + "}", r"config\.name is 'x+\.\.\.x+'; use at most 255 characters"),
    ],
)
def test_a_config_that_cannot_be_replayed_is_refused_with_the_key_at_fault(text, reason):
    with pytest.raises(ConfigRefused, match=reason):
        plan_replay(text)


FOX = "\N{FOX FACE}"
ALIASES = "[&a '{text}'" + ", *a" * 900 + "]"


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        # 6 kB, 100 kB and 7 kB that would become 100, 800 and 150 MB.
        (f"{{prompts: {ALIASES.format(text='[trigger]' * 110)}}}", "the prompts have 396440000 bytes"),
        (f"{{prompts: {ALIASES.format(text='[name]' * 170)}}}", "the prompts have 39058350 bytes"),
        (f"{{prompts: [a]}}\n    x: ['{'[name]' * 9000}', '{'[name]' * 9000} ']", "more than 4194304 bytes of text"),
        (f"{{samples: [&a {{prompt: '[trigger]'}}{', *a' * 20_000}]}}", "20001 samples; use at most 1000"),
    ],
)
def test_texts_that_aliases_and_placeholders_multiply_are_refused_before_they_are_built(sample, reason):
    head = f"config:\n  name: {'n' * 255}\n  process:\n  - model: {{arch: flux2}}\n    trigger_word: {FOX * 1000}\n"
    text = f"{head}    sample: {sample}\n"

    tracemalloc.start()
    try:
        with pytest.raises((ConfigRefused, InvalidRequest), match=reason):
            plan_replay(text)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < 30e6


def test_a_value_that_aliases_share_is_filled_in_once():
    text = """
config:
  name: long
  process:
    - model: {arch: flux2}
      unread: {a: &a "[name][name]", b: [*a, *a, *a]}
      sample: {prompts: [*a, *a, *a]}
"""

    # 8 bytes of name; three times 8 bytes of prompts.
    found = plan_replay(text, max_text_bytes=24).requests[0]["prompts"]

    assert [prompt["prompt"] for prompt in found] == ["longlong"] * 3
    with pytest.raises(InvalidRequest, match="the prompts have 24 bytes"):
        plan_replay(text, max_text_bytes=23)


def test_anchors_in_a_config_are_read():
    text = """
config:
  name: x
  process:
    - model: {arch: flux2}
      sample: {samples: [&first {prompt: "[name] a", width: 64}, {<<: *first, height: 96}, *first]}
"""

    found = [(prompt["prompt"], prompt["width"], prompt["height"]) for prompt in prompts(text)]

    assert found == [("x a", 64, 512), ("x a", 64, 96), ("x a", 64, 512)]


WORDS = st.sampled_from(
    ["flux2", "a --w 9", "a --ctrl_img b", "a --m", "--d 1e9", "[trigger]", "12", "-3.5", "", "\0", "\ud800", "狐"]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**90), 2**63])
JUNK = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS | st.text(max_size=5) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | NUMBERS, inner, max_size=3),
    max_leaves=5,
)
KEYS = (
    *("prompts", "samples", "seed", "walk_seed", "width", "sample_steps", "guidance_scale", "neg", "format"),
    *("ctrl_img", "ctrl_img_1", "ctrl_img_2"),
)


def _plan_with_images(text):
    try:
        return plan_replay(text)
    except ReferencesNeeded as error:
        f"{error}{error.images}".encode()
        return plan_replay(text, images=dict.fromkeys(error.images, "upload:x"))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    section=st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=2),
    entry=st.dictionaries(st.sampled_from(["prompt", "network_multiplier", *KEYS]), JUNK, max_size=2),
    process=st.dictionaries(st.sampled_from(["model", "sample", "trigger_word", "network"]), JUNK, max_size=1),
)
def test_any_values_become_requests_or_are_refused(section, entry, process):
    sample = {"samples": [{"prompt": "a"}, {"prompt": "b --m 0.5", **entry}], **section}
    process = {"model": {"arch": "flux2"}, "sample": sample, **process}
    text = yaml.safe_dump({"config": {"name": "x", "process": [process]}}, allow_unicode=False)

    try:
        requests = _plan_with_images(text).requests
    except ConfigRefused as error:
        str(error).encode()
        return

    json.dumps(requests, allow_nan=False, ensure_ascii=False).encode()
    try:
        TypeAdapter(list[InferenceRequest]).validate_python(requests)
    except ValidationError as error:
        error.errors()
