"""The values of a JSON body are counted without parsing it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.json_size import has_more_values

TEXTS = st.text(st.sampled_from(',"\\{}[]:a\nü狐'), max_size=6)
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


def commas(value):
    """Count the commas that separate values, by walking the value."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return max(0, len(inner) - 1) + sum(commas(entry) for entry in inner)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(VALUES, st.booleans())
def test_the_count_is_exact_for_every_json_text(value, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    exact = commas(value)

    assert not has_more_values(body, exact)
    assert exact == 0 or has_more_values(body, exact - 1)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le"])
def test_no_encoding_of_json_hides_values(encoding):
    # In UTF-16 an escaped quote looks like the end of a string, so the commas after it could pass as text.
    body = ('["\\"", ' + "0," * 50 + "0]").encode(encoding)

    assert json.loads(body)[1:] == [0] * 51
    assert has_more_values(body, 50)


def test_a_text_of_many_strings_without_commas_between_them_is_refused():
    assert has_more_values(b'["' + b"," * 20 + b'"' + b'""' * 10_000, 10)


def test_commas_and_escaped_quotes_in_a_text_do_not_count():
    assert not has_more_values(b'["' + b',\\"\\\\' * 1_000_000 + b'"]', 10)
