"""Files of the hub: pinned to a commit, with the hub's sha256, read from the store to which the hub redirects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from hub_server import FIRST, SECOND, HubServer
from huggingface_hub import constants

from shared.errors import AdapterNotFound, AdapterRefused, SourceChanged, SourceUnavailable
from shared.settings import Settings
from shared.sources.remote_file import Pin
from shared.sources.source import HubFile, LocalFile
from shared.sources.sources import Sources

_DATA = bytes(range(256)) * 2000
_ROBOT = HubFile("ann/robots", "v2/my robot.safetensors")


@pytest.fixture
def sources(hub: HubServer, settings: Callable[..., Settings]) -> Sources:
    hub.push("ann/robots", {_ROBOT.path: _DATA})
    return Sources(settings(sources={"private_hosts": hub.store_place}))


def test_a_file_is_pinned_to_the_commit_of_its_branch_and_read_from_the_store(hub: HubServer, sources: Sources) -> None:
    file = sources.open(_ROBOT)

    assert (file.size_bytes, file.pin) == (len(_DATA), Pin("commit", FIRST))
    assert file.sha256 == hashlib.sha256(_DATA).hexdigest()
    assert hub.store_requests == 0
    assert file.read(0, 8) == _DATA[:8]
    assert file.read(100_000, 300_000) == _DATA[100_000:300_000]
    assert b"".join(file.stream(7)) == _DATA[7:]


def test_a_branch_that_moves_on_leaves_the_pinned_file_as_it_was(hub: HubServer, sources: Sources) -> None:
    pin = sources.open(_ROBOT).pin
    hub.push("ann/robots", {_ROBOT.path: b"other"}, commit=SECOND)

    again = sources.open(_ROBOT, pin=pin)
    assert b"".join(again.stream(0)) == _DATA
    assert sources.open(_ROBOT).pin == Pin("commit", SECOND)

    del hub.commits["ann/robots", FIRST]
    with pytest.raises(SourceChanged, match="the commit that the job named was deleted; submit the job again"):
        sources.open(_ROBOT, pin=pin)


def test_the_token_goes_to_the_hub_alone(hub: HubServer, settings: Callable[..., Settings]) -> None:
    hub.push("ann/robots", {_ROBOT.path: _DATA})
    hub.private.add("ann/robots")
    known = Sources(settings(hf_token=hub.token, sources={"private_hosts": hub.store_place}))

    assert b"".join(known.open(_ROBOT).stream(0)) == _DATA
    assert hub.tokens_at_store == []


@pytest.mark.parametrize(
    ("source", "error", "reason"),
    [
        (HubFile("bob/none", "a.safetensors"), AdapterNotFound, "no repository 'bob/none', or it is private; check"),
        (HubFile("ann/robots", "none.safetensors"), AdapterNotFound, "no file 'none.safetensors' at 'main'; check"),
        (HubFile("ann/robots", "a", "v9"), AdapterNotFound, "has no revision 'v9'; use a branch, a tag or a commit"),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    sources: Sources, source: HubFile, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        sources.open(source)


def test_a_gated_repository_says_whose_terms_to_accept(hub: HubServer, sources: Sources) -> None:
    hub.gated.add("ann/robots")
    with pytest.raises(AdapterRefused, match="is gated; accept its terms on the hub with the account of the service's"):
        sources.open(_ROBOT)


def test_a_hub_that_is_away_can_be_asked_again(
    hub: HubServer, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    with pytest.raises(SourceUnavailable, match="the hub does not answer: ConnectError; try again later"):
        sources.open(_ROBOT)


def test_a_store_that_the_operator_did_not_list_is_not_asked(hub: HubServer, settings: Callable[..., Settings]) -> None:
    hub.push("ann/robots", {_ROBOT.path: _DATA})
    file = Sources(settings()).open(_ROBOT)
    with pytest.raises(AdapterRefused):
        file.read(0, 8)
    assert hub.store_requests == 0


def test_a_digest_that_the_caller_states_must_be_the_hubs(sources: Sources) -> None:
    digest = hashlib.sha256(_DATA).hexdigest()
    assert sources.open(_ROBOT, sha256=digest).sha256 == digest
    with pytest.raises(AdapterRefused, match=f"has the sha256 {digest}, and the request states {'0' * 64}"):
        sources.open(_ROBOT, sha256="0" * 64)


def test_an_air_gap_opens_no_remote_file(hub: HubServer, settings: Callable[..., Settings]) -> None:
    local = Sources(settings(sources={"local_only": True}))
    with pytest.raises(AdapterRefused, match="is not on this host, and FLUX2_SOURCES_LOCAL_ONLY allows no other"):
        local.open(_ROBOT)
    with pytest.raises(ValueError, match="is a local file"):
        local.open(LocalFile("a.safetensors"))
    assert hub.heads == 0
