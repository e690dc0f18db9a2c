"""Whatever stands in a header, a training config or a setting: it is refused in words, and nothing else happens."""

import contextlib
import json
import re

import pytest
import yaml
from fuzzing import HOSTS, examples, urls
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_settings import SettingsError
from starlette.datastructures import Headers

from api.doors.origin_guard import OriginGuard
from api.upload_headers import FileRules, check_upload_name, read_upload_headers
from shared.errors import Flux2Error, RequestError
from shared.keys.secret import KeyText
from shared.setting_problems import describe_problem
from shared.settings import ApiSettings, Settings
from shared.training_config.plan import plan_replay

RULES = FileRules(re.compile("|application/octet-stream"), "as its bytes", 1000, "FLUX2_ADAPTERS_MAX_BYTES")
# Bytes that a server may hand over as a header; it decodes them as Latin-1.
VALUES = st.one_of(
    st.binary(max_size=40).map(lambda raw: raw.decode("latin-1")),
    st.sampled_from(
        [
            *(
                "0" * 64,
                "A" * 64,
                "sha-256=::",
                "sha-256=:" + "A" * 43 + "=:",
                "sha-256=:é:",
                "sha-512=:A:, sha-256=:A==:",
            ),
            *("0", "-1", "1e3", "١", "9" * 30, "gzip", "identity", "application/octet-stream;x"),
        ]
    ),
)
DESCRIBING = ("content-type", "content-encoding", "content-length", "x-content-sha256", "content-digest")
PAGES = st.one_of(urls("https://", "http://"), VALUES)


@examples(100)
@given(
    headers=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(DESCRIBING, VALUES),
    ),
    name=VALUES,
)
def test_the_headers_of_an_upload_are_refused_in_words_or_state_a_size_and_a_digest(headers, name):
    with contextlib.suppress(RequestError):
        check_upload_name(name)
        assert name.isascii()
    with contextlib.suppress(RequestError):
        stated = read_upload_headers(headers, RULES)
        assert 0 <= stated.size_bytes <= RULES.max_bytes
        assert stated.sha256 is None or re.fullmatch("[0-9a-f]{64}", stated.sha256)


# Not a URL for Python: the answer was a server error.
@example(headers=[("host", "localhost"), ("origin", "http://[")], method="POST")
@examples(150)
@given(
    headers=st.lists(
        st.one_of(
            st.tuples(st.just("host"), st.one_of(st.just("localhost"), HOSTS, VALUES)),
            st.tuples(st.just("origin"), PAGES),
            st.tuples(st.just("origin"), st.builds("http://{}".format, HOSTS)),
            st.tuples(st.sampled_from(["sec-fetch-site", "sec-fetch-mode", "content-type"]), VALUES),
        ),
        max_size=4,
    ),
    method=st.sampled_from(["GET", "POST", "PUT"]),
)
def test_without_keys_a_call_of_another_page_or_to_another_name_is_refused_in_words(headers, method):
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]
    sent = Headers(raw=raw)
    guard = OriginGuard(ApiSettings())

    with contextlib.suppress(Flux2Error):
        guard.check_host(sent)
        guard.check_sender(method, "/v1/requests/a/cancel", sent)
        origin = sent.get("origin")
        assert origin is None or origin.lower().endswith(sent.get("host", "").lower()) or "sec-fetch-site" in sent


@examples(100)
@given(text=st.one_of(st.text(max_size=100), st.from_regex(r"flux2_[0-9a-f]{12}_[0-9a-f]{64}.?")))
def test_a_text_is_a_key_in_one_spelling_alone(text):
    key = KeyText.parse(text)

    assert key is None or str(key) == text


SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.dates(), st.binary(max_size=5)),
    *(st.text(max_size=20), st.sampled_from(["flux2", "[trigger]", "a --m 0.5 --d 7 --ctrl_img /a.png", "--w", "1_0"])),
)
VALUE = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.one_of(st.text(max_size=8), SCALARS), inner, max_size=3)
    ),
    max_leaves=4,
)
NAMES = (
    "width",
    "height",
    "seed",
    "walk_seed",
    "neg",
    "prompts",
    "samples",
    "network_multiplier",
    "ctrl_img_1",
    "sampler",
)


@st.composite
def configs(draw):
    """A config that could be replayed, with odd values at some of its places; or a text that is no config."""
    sample = {
        "samples": [
            {"prompt": "a"},
            {"prompt": "b", **draw(st.dictionaries(st.sampled_from(NAMES), VALUE, max_size=2))},
        ]
    }
    sample |= draw(st.dictionaries(st.sampled_from(NAMES), VALUE, max_size=2))
    process = {"type": "sd_trainer", "model": {"arch": "flux2"}, "sample": sample}
    places = st.sampled_from(["type", "model", "sample", "trigger_word", "network", "train", "save"])
    process |= draw(st.dictionaries(places, VALUE, max_size=1))
    config = {"job": "extension", "config": {"name": "my_lora", "process": [process]}}
    config |= draw(st.dictionaries(st.sampled_from(["job", "config", "meta"]), VALUE, max_size=1) | st.just({}))
    text = yaml.safe_dump(config, allow_unicode=draw(st.booleans()))
    cut = draw(st.integers(0, len(text)))
    return draw(st.sampled_from([text, text, text, text[:cut], text[:cut] + draw(st.text(max_size=9)) + text[cut:]]))


@examples(60)
@given(text=st.one_of(configs(), configs(), st.text(max_size=80), VALUE.map(yaml.safe_dump)))
def test_a_training_config_becomes_requests_or_is_refused_in_words(text):
    with contextlib.suppress(RequestError):
        plan = plan_replay(text, max_samples=1000, max_text_bytes=100_000)
        json.dumps(plan.requests, allow_nan=False)
        assert plan.positions


SETTINGS = sorted(
    f"FLUX2_{section}_{name}".upper()
    for section, field in Settings.model_fields.items()
    for name in getattr(field.annotation, "model_fields", ())
)
SETTING_VALUES = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30),
    urls("https://", "redis://", "unix://").filter(lambda text: "\0" not in text and text.isprintable()),
    st.sampled_from(
        ["", " ", "0", "-1", "nan", "inf", "1e400", "1_000", "true", "null", "{}", "[]", '{"a": 1}', "~", "~a", "*"]
    ),
    st.integers(-(2**70), 2**70).map(str),
)


@pytest.mark.parametrize("source", ["environment", "dotenv"])
@examples(60)
@given(values=st.dictionaries(st.sampled_from(SETTINGS), SETTING_VALUES, max_size=3), noise=st.text(max_size=30))
def test_settings_are_read_or_refused_in_one_line(source, values, noise, tmp_path, monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    dotenv = tmp_path / ".env"
    lines = [f"{name}={value}" for name, value in values.items()] if source == "dotenv" else []
    dotenv.write_text("\n".join([*lines, noise]), encoding="utf-8", errors="replace")
    if source == "environment":
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    try:
        settings = Settings(_env_file=dotenv)
    except (ValidationError, SettingsError) as error:
        problem = describe_problem(error)
    else:
        problem = "none"
        assert settings.model_dump_json()

    assert problem
    assert "\n" not in problem
