"""Whatever text stands where an address should be: it is refused in words, or it leads to no private address."""

import contextlib
import ipaddress
import json
import socket
from urllib.parse import urlsplit

import httpcore2
import pytest
from fuzzing import HOSTS, examples, urls
from hypothesis import given
from hypothesis import strategies as st
from kombu.utils.url import parse_url
from pydantic import SecretStr

from api.webhook_url import check_webhook_url
from shared.errors import AdapterRefused, InvalidRequest, ReferenceRefused
from shared.network.addresses import GuardedBackend, host_header
from shared.network.callers import Networks, Origins
from shared.network.hosts import HostHeaders, HostPatterns, PrivateHosts
from shared.network.url_guard import UrlGuard
from shared.redis_url import RedisUrl
from shared.reference_source import InlineImage, parse_reference
from shared.settings import WebhookSettings
from shared.sources.source import LocalFile, parse_source

ANY_HOST = UrlGuard(HostPatterns.parse_or_any("*"), PrivateHosts())
WEBHOOKS = WebhookSettings(secret=SecretStr("whsec_" + "A" * 43 + "="))
ADDRESSES = st.one_of(
    st.ip_addresses(), st.sampled_from(["127.0.0.1", "10.1.2.3", "::1", "fd00::1", "::ffff:10.0.0.1"])
)
PASSWORD = "hunter2"


def attempt(parse, text, *errors):
    """Return what a parser finds and "", or None and the message with which it refuses the text."""
    try:
        return parse(text), ""
    except errors as error:
        return None, str(error)


class Connected(Exception):
    """A connection was about to be made."""


@pytest.fixture
def network(monkeypatch):
    """Resolves names to the addresses in `.answers`, and connects to none: `.reached` lists the attempts."""

    class Network:
        answers = ()
        reached = ()

        def resolve(self, host, port, **options):
            # An address in any spelling is what the operating system takes it for.
            with contextlib.suppress(OSError, UnicodeError, ValueError):
                return real(host, port, flags=socket.AI_NUMERICHOST, **options)
            if not self.answers:
                raise socket.gaierror
            return [(None, None, None, "", (str(address), port)) for address in self.answers]

        def connect_tcp(self, host, *_):
            self.reached = [*self.reached, host]
            raise Connected

    real, network = socket.getaddrinfo, Network()
    monkeypatch.setattr(socket, "getaddrinfo", network.resolve)
    monkeypatch.setattr(httpcore2, "SyncBackend", lambda: network)
    return network


def is_private(text):
    """Decide by Python's own tables, without the project's."""
    address = ipaddress.ip_address(text)
    inside = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    return not address.is_global or address.is_multicast or (inside is not None and not inside.is_global)


def connect(host, port, network, answers):
    network.answers, network.reached = answers, ()
    with contextlib.suppress(Connected, httpcore2.ConnectError):
        GuardedBackend(allow_private=False, timeout_s=5).connect_tcp(host, port)
    return network.reached


@examples(100)
@given(url=urls("https://", "http://"), answers=st.lists(ADDRESSES, max_size=3))
def test_a_link_that_is_accepted_leads_to_no_private_address(url, answers, network):
    checked, message = attempt(ANY_HOST.check, url, AdapterRefused)

    assert PASSWORD not in message
    if checked:
        assert checked.scheme == "https"
        assert not [at for at in connect(checked.host, checked.port, network, answers) if is_private(at)]


@examples(100)
@given(url=urls("https://"), answers=st.lists(ADDRESSES, max_size=3))
def test_a_webhook_url_that_is_accepted_leads_to_no_private_address(url, answers, network):
    if attempt(lambda text: check_webhook_url(text, WEBHOOKS), url, InvalidRequest)[1]:
        return

    # The client reads the URL itself: it must find the host that was checked.
    client = httpcore2.URL(url)
    assert client.host.decode().strip("[]").lower() == urlsplit(url).hostname
    assert host_header(url).isascii()
    port = client.port or 443
    assert not [at for at in connect(client.host.decode(), port, network, answers) if is_private(at)]


@examples(100)
@given(text=st.one_of(urls("https://", "s3://", "hf://", "upload:"), st.text(max_size=80)))
def test_a_source_is_refused_in_words_or_read_back_from_its_own_spelling(text):
    source, message = attempt(parse_source, text, AdapterRefused)

    # An upload's address has no place for a login.
    assert f":{PASSWORD}@" not in message or text.lower().startswith("upload:")
    assert source is None or isinstance(source, LocalFile) or parse_source(str(source)) == source


@examples(100)
@given(text=st.one_of(urls("https://", "data:image/png;base64,", "upload:"), st.text(max_size=80)))
def test_a_reference_is_refused_in_words_or_read(text):
    with contextlib.suppress(ReferenceRefused):
        source = parse_reference(text)
        if isinstance(source, InlineImage):
            assert len(source.decode(max_bytes=1000)) >= 26


@examples(100)
@given(
    login=st.sampled_from(["", f":{PASSWORD}@", f"user:{PASSWORD}@", f"user:{PASSWORD}%2F%40@", f"us/er:{PASSWORD}@"]),
    scheme=st.sampled_from(["redis://", "rediss://", "unix://", "redis+socket://", ""]),
    host=HOSTS,
    end=st.one_of(
        st.sampled_from(["", ":6379/0", "/3", ":1/x", "/0?db=2", "?db=-1", "/0?protocol=3", "/run/redis.sock?db=1"]),
        st.text(max_size=20),
    ),
)
def test_both_clients_of_redis_read_the_same_address_and_no_message_holds_the_password(login, scheme, host, end):
    url, message = attempt(RedisUrl.parse, scheme + login + host + end, ValueError)

    assert PASSWORD not in f"{message}{url!s}{url!r}"
    if url is None or url.is_unix_socket:
        return
    options, read = url.client_options(), parse_url(url.celery_settings()["broker_url"])
    assert (read["hostname"] or "").lower() == options["host"].lower()
    assert (read["port"], read["virtual_host"]) == (options["port"], str(options["db"]))
    assert (read["userid"] or "", read["password"] or "") == (
        options.get("username") or "",
        options.get("password") or "",
    )


LISTS = st.one_of(
    st.lists(st.one_of(HOSTS, st.sampled_from(["*", "*.a.example", "10.0.0.0/8", "a:1", "[::1]:80"])), max_size=3).map(
        ",".join
    ),
    st.text(max_size=40),
)


@pytest.mark.parametrize("kind", [HostPatterns, PrivateHosts, Networks, Origins])
@examples(100)
@given(text=st.one_of(LISTS, st.lists(urls("https://"), max_size=2).map(",".join)))
def test_a_list_of_hosts_is_refused_in_words_or_read_back_from_its_own_spelling(kind, text):
    found, _ = attempt(kind.parse, text, ValueError)

    assert found is None or kind.parse(str(found)) == found


@examples(100)
@given(
    host=HOSTS,
    value=st.one_of(st.just(f"Authorization: {PASSWORD}"), st.text(max_size=30), st.integers(), st.none()),
)
def test_the_header_of_a_host_is_refused_without_its_value_or_never_shown(host, value):
    found, message = attempt(HostHeaders.parse, json.dumps({host: value}), ValueError)

    assert PASSWORD not in f"{message}{found!s}{found!r}"
