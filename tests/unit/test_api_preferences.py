"""The header `Prefer` is read as RFC 7240 writes it, and never refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.preferences import preferred_wait_s, prefers_no_wait


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], 0),
        (["wait=5"], 5),
        (["WAIT = 5"], 5),
        (['wait="5"'], 5),
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=10"], 10),
        (["wait=7; foo=bar"], 7),
        (['foo="a, wait=9", wait=3'], 3),
        (["wait=3, wait=9"], 3),
        (["wait=100000"], 60),
        (["wait=99999999999999999999"], 0),
        (["wait"], 0),
        (["wait=-1"], 0),
        (["wait=1.5"], 0),
        (["wait=\u0665"], 0),
        (["waiting=5"], 0),
    ],
)
def test_the_seconds_that_a_caller_prefers_to_wait(headers, seconds):
    assert preferred_wait_s(headers, longest_s=60.5) == seconds


@settings(max_examples=50)
@given(st.lists(st.text(alphabet=',;="\\ wait0159', max_size=20), max_size=3))
def test_no_header_is_an_error(headers):
    assert 0 <= preferred_wait_s(headers, longest_s=60) <= 60


def test_a_server_that_does_not_wait_ignores_the_preference():
    assert preferred_wait_s(["wait=5"], longest_s=0) == 0


@pytest.mark.parametrize(
    ("headers", "is_preferred"),
    [
        ([], False),
        (["wait=5"], False),
        (["respond-async"], True),
        (["wait=5, Respond-Async"], True),
        (["wait=5", "respond-async; foo=1"], True),
        (['foo="respond-async"'], False),
    ],
)
def test_a_caller_may_prefer_not_to_wait(headers, is_preferred):
    assert prefers_no_wait(headers) is is_preferred
