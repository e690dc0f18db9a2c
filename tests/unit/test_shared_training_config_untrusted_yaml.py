"""YAML from strangers is read, or refused with one kind of error, whatever it contains."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.training_config.untrusted_yaml import load_yaml


def levels(count, *, first, each):
    """Return lines of anchors, each made of the previous one."""
    return "\n".join([f"a0: &a0 {first}", *(f"a{n}: &a{n} {each.format(f'*a{n - 1}')}" for n in range(1, count))])


@pytest.fixture(params=["libyaml", "PyYAML alone"], autouse=True)
def parser(request, monkeypatch):
    """Every test runs with libyaml, and as on an installation without it."""
    monkeypatch.setattr(yaml, "__with_libyaml__", request.param == "libyaml")
    return request.param


def test_anchors_aliases_and_merged_mappings_are_read():
    found = load_yaml("base: &base {w: 1, h: 2}\nwide: {<<: *base, w: 3}\nboth: [*base, *base]")

    assert found == {"base": {"w": 1, "h": 2}, "wide": {"w": 3, "h": 2}, "both": [{"w": 1, "h": 2}] * 2}


@settings(deadline=None)
@given(st.text(st.sampled_from('\\"/ud83e😀𝄞é')))
def test_json_that_escapes_every_special_character_is_read(prompt):
    text = json.dumps({"prompt": prompt})

    assert load_yaml(text) == {"prompt": prompt}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (levels(9, first="[x]", each="[" + ",".join(["{0}"] * 10) + "]"), "more than 1000000 nodes"),
        (levels(9, first="{x: 1}", each="{{<<: [" + ",".join(["{0}"] * 10) + "]}}"), "more than 1000000 nodes"),
        (f"[&a {'x' * 2000}{', *a' * 500}]", "more than 1000000 nodes"),
        (levels(200, first="[x]", each="[{0}]"), "more than 100 levels"),
        ("a: &a [*a]", "within itself"),
        ("a: &a {b: *a}", "within itself"),
        ("a: &a {<<: *a}", "within itself"),
        ("[" * 5000, "more than 100 levels"),
        ("- " * 5000, "more than 100 levels"),
        ("- 1\n- 2024-13-45", "'2024-13-45' cannot be read as timestamp"),
        ("- !!timestamp x", "'x' cannot be read as timestamp"),
        ("- !!int ''", "'' cannot be read as int"),
        ("- !!bool x", "'x' cannot be read as bool"),
        ("- " + "9" * 5000, r"'9+\.\.\.9+' cannot be read as int"),
        ("- 0x" + "f" * 5000, "cannot be read as int"),
        ("- 1" + ":1" * 5000 + ".5", "cannot be read as float"),
        # libyaml's words, and those of PyYAML's own parser.
        (r'- "\ud800"', "invalid Unicode character|cannot be read as str"),
        (r'- "\U00110000"', "invalid Unicode character|not in range"),
        (r'- "\UFFFFFFFF"', "invalid Unicode character|too large"),
        ("[" + "a," * 14_000, "did not find expected|expected the node content"),
        ("a: *b", "undefined alias 'b'"),
        ("[&a 1, &a 2]", "duplicate anchor 'a'"),
        ("--- a\n--- b", "found another document"),
    ],
)
def test_yaml_that_is_too_large_or_cannot_be_read_is_a_yaml_error(text, reason):
    with pytest.raises(yaml.YAMLError, match=reason):
        load_yaml(text)


@pytest.mark.parametrize("text", ["", "# only a comment", "---"])
def test_a_text_without_a_value_is_none(text):
    assert load_yaml(text) is None


def test_tags_and_types_are_those_of_pyyamls_own_loader():
    text = "{a: 1, b: 0x1f, c: 1_000, d: 1:30, e: .5, f: yes, g: ~, h: 2024-01-02, i: !!str 5, j: !!set {x, y}, k: '1'}"

    assert load_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["[" * 199_000, "- " * 99_000, "? " * 99_000, "[" + "[]," * 66_000 + "]"])
def test_a_long_text_is_refused_before_it_is_read_to_its_end(text, parser):
    # libyaml's composer overflows the stack on the first three, and its scanner takes 115 s for the first.
    reason = "more than 100 levels|more than 50000 nodes" if parser == "libyaml" else "reads at most 30000, because"

    with pytest.raises(yaml.YAMLError, match=reason):
        load_yaml(text)


def test_an_error_names_its_line():
    with pytest.raises(yaml.MarkedYAMLError) as caught:
        load_yaml("a: 1\nb: 2024-13-45")

    assert caught.value.problem_mark.line == 1


TOKENS = [
    *"&*!|>%@`-?:,[]{}#'\"\\\n ab12.=~_\t",
    "&a",
    "*a",
    "<<: ",
    "- ",
    ": ",
    "!!",
    "int ",
    "set ",
    "omap ",
    "pairs ",
]
TOKENS += [
    "binary ",
    "timestamp ",
    "float ",
    "null ",
    "str ",
    "seq ",
    "map ",
    "2024-1",
    "0x",
    "0b2",
    "1:",
    "1e",
    "\\U00",
]


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(TOKENS), max_size=20).map("".join))
def test_any_text_is_read_or_a_yaml_error(text):
    try:
        load_yaml(text)
    except yaml.YAMLError:
        return
