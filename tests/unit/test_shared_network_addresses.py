"""Which addresses callers' URLs reach: the registries' ranges, names with several addresses, IPv6, and time limits."""

import ipaddress
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer

import httpcore2
import pytest

from shared.network import addresses
from shared.network.address_ranges import is_public
from shared.network.addresses import GuardedBackend, host_header, resolve_host


def words(text):
    return text.split()


PRIVATE = words(
    """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.254 169.254.169.254
    172.16.0.1 172.31.255.255 192.0.0.0 192.0.0.1 192.0.0.8 192.0.0.9 192.0.0.10 192.0.0.170 192.0.0.171 192.0.0.255
    192.0.2.1 192.88.99.1 192.88.99.2 192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1
    224.0.0.1 232.1.1.1 239.255.255.255 240.0.0.1 255.255.255.255
    :: ::1 ::127.0.0.1 ::7f00:1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1
    64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 64:ff9b:1::8.8.8.8 64:ff9b:1:ffff::1
    100::1 100:0:0:1::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:1::1 2001:1::2 2001:1::3 2001:2::1 2001:3::1
    2001:4:112::1 2001:10::1 2001:20::1 2001:30::1 2001:1ff:ffff::1 2001:db8::1 2002:7f00:1:: 2002:808:808::1 3fff::1
    3fff:fff:ffff::1 4000::1 5f00::1 8000::1 fc00::1 fd00:ec2::254 fe80::1 febf::1 fec0::1 feff::1 ff02::1 ff0e::1
    """
)
PUBLIC = words(
    """
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 93.184.215.14 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0
    169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.3.0 192.31.196.1 192.52.193.1
    192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 192.175.48.1 198.17.255.255 198.20.0.0 223.255.255.255
    ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2001:200::1 2001:4860:4860::8888 2001:db7:ffff::1 2001:db9::1 2003::1
    2606:4700:4700::1111 2620:4f:8000::1 2a00:1450:4001::1 3ffe::1 3fff:1000::1
    """
)
# Other spellings of addresses of the private network: a URL has more of them than `ipaddress` reads.
SPELLINGS = words(
    """
    localhost LOCALHOST 127.1 127.0.1 0 0x7f.0.0.1 0x7f000001 2130706433 017700000001 0177.0.0.1 0x7f.1 127.0.0.1.
    [::1] [::] [0:0:0:0:0:0:0:1] [::ffff:7f00:1] [::ffff:127.0.0.1] [::127.0.0.1] [64:ff9b::7f00:1] [64:ff9b:1::7f00:1]
    [2002:7f00:1::] [fec0::1] [fe80::1%251] 192.0.0.1 0xc0.0.0.1 169.254.169.254 0xa9fea9fe 2852039166 10.1 172.16.1
    """
)


class Canary(ThreadingHTTPServer):
    """Counts requests, and keeps the Host header of each."""

    daemon_threads = True

    def __init__(self, address="127.0.0.1", *, tls=None):
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 0), _Handler)
        self.hosts = []
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    def server_bind(self):
        # HTTPServer looks up the host's name, which is of no use here.
        self.allow_reuse_address = True
        super(HTTPServer, self).server_bind()
        self.server_port = self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.hosts.append(self.headers["Host"])
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def canary(serve_http):
    return lambda *address, **options: serve_http(Canary(*address, **options))


class Detour(httpcore2.NetworkBackend):
    """Leads every connection to the canary, wherever it was to go, and records where."""

    def __init__(self, port):
        self.port = port
        self.addresses = []
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.addresses.append(host)
        return self._plain.connect_tcp("127.0.0.1", self.port, timeout)


def get(url, backend, **options):
    with httpcore2.ConnectionPool(network_backend=backend, **options) as pool:
        return pool.request("GET", url, headers={"Host": host_header(url), "Connection": "close"}).status


def answers(*addresses):
    """Return a resolver that knows these addresses for every host of `.example`."""
    real = socket.getaddrinfo
    families = {4: socket.AF_INET, 6: socket.AF_INET6}
    found = [
        (families[ipaddress.ip_address(address).version], socket.SOCK_STREAM, 6, "", (address, 0))
        for address in addresses
    ]
    return lambda host, *args, **options: found if host.endswith(".example") else real(host, *args, **options)


def closed_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_special_address_is_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_outside_the_special_ranges_is_public(address):
    assert is_public(ipaddress.ip_address(address))


def test_an_address_with_a_zone_is_not_public():
    assert not is_public(ipaddress.ip_address("2606:4700:4700::1111%eth0"))


def test_no_request_leaves_for_a_special_address_in_any_spelling(canary):
    server = canary()
    backend = GuardedBackend(allow_private=False, timeout_s=5)
    backend._plain = Detour(server.server_port)
    urls = [f"http://{f'[{address}]' if ':' in address else address}/" for address in PRIVATE]
    urls += [f"http://{host}:{port}/" for host in SPELLINGS for port in (80, server.server_port)]
    assert len(urls) > 100

    for url in urls:
        with pytest.raises(httpcore2.ConnectError):
            get(url, backend)

    assert (backend._plain.addresses, server.hosts) == ([], [])
    # The canary would have seen them.
    assert get("http://1.1.1.1/", backend) == 204
    assert (backend._plain.addresses, server.hosts) == (["1.1.1.1"], ["1.1.1.1"])


def test_a_host_that_refuses_at_its_first_address_is_reached_at_its_second(canary, monkeypatch):
    server = canary("127.0.0.1")
    monkeypatch.setattr(
        "shared.network.addresses._look_up", lambda *_: [ipaddress.ip_address(a) for a in ("::1", "127.0.0.1")]
    )

    assert get(f"http://two.example:{server.server_port}/", GuardedBackend(allow_private=True, timeout_s=5)) == 204

    assert server.hosts == [f"two.example:{server.server_port}"]


def test_an_address_that_does_not_answer_leaves_time_for_the_next(canary, monkeypatch):
    server = canary()
    tried = []

    class Silent(Detour):
        def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
            tried.append((host, timeout))
            if host == "192.0.2.1":
                raise httpcore2.ConnectTimeout("no answer")
            return super().connect_tcp(host, port, timeout)

    backend = GuardedBackend(allow_private=True, timeout_s=8)
    backend._plain = Silent(server.server_port)
    monkeypatch.setattr(socket, "getaddrinfo", answers("192.0.2.1", "192.0.2.2", "192.0.2.2"))
    with httpcore2.ConnectionPool(network_backend=backend) as pool:
        assert pool.request("GET", "http://silent.example/").status == 204

    # Half of the time for the first of two, and all that is left for the last.
    assert tried == [("192.0.2.1", pytest.approx(4, abs=0.5)), ("192.0.2.2", pytest.approx(8, abs=0.5))]


def test_a_host_fails_when_none_of_its_addresses_accepts(monkeypatch):
    monkeypatch.setattr(
        "shared.network.addresses._look_up", lambda *_: [ipaddress.ip_address(f"127.0.0.{n}") for n in range(1, 99)]
    )
    backend = GuardedBackend(allow_private=True, timeout_s=5)
    backend._plain = tried = Detour(closed_port())

    with pytest.raises(httpcore2.ConnectError):
        get("http://none.example/", backend)

    assert tried.addresses == [f"127.0.0.{n}" for n in range(1, 9)]


def test_every_address_of_a_host_must_be_public(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", answers(*["1.1.1.1"] * 20, "2606:4700::1", "fec0::1"))

    with pytest.raises(httpcore2.ConnectError, match="has the address fec0::1, which is not public"):
        resolve_host("mixed.example", 443, allow_private=False)


@pytest.fixture
def dead_resolver(monkeypatch):
    """A resolver that does not answer before the test ends."""
    release, lookups = threading.Event(), threading.BoundedSemaphore(2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(30) and [])
    monkeypatch.setattr("shared.network.addresses._lookups", lookups)
    yield
    release.set()
    # Each lookup has left once both places are free.
    assert all(lookups.acquire(timeout=10) for _ in range(2))


def test_a_resolver_that_does_not_answer_holds_a_caller_only_until_its_deadline(dead_resolver):
    began = time.monotonic()

    with pytest.raises(httpcore2.ConnectTimeout, match=r"'dead.example' was not resolved in 0.2 s"):
        get("http://dead.example/", GuardedBackend(allow_private=True, timeout_s=0.2))

    assert time.monotonic() - began < 5


def test_lookups_that_hang_are_bounded(dead_resolver):
    for host in ("one.example", "two.example"):
        with pytest.raises(httpcore2.ConnectTimeout, match="was not resolved"):
            resolve_host(host, 443, allow_private=True, timeout_s=0.01)

    with pytest.raises(httpcore2.ConnectTimeout, match="lookups are under way"):
        resolve_host("three.example", 443, allow_private=True, timeout_s=0.01)


def test_the_wait_for_a_place_among_the_lookups_counts_as_time_of_the_lookup(dead_resolver):
    places = addresses._lookups
    places.acquire()
    places.acquire()
    leaving = threading.Timer(1.4, places.release)
    leaving.start()
    began = time.monotonic()

    with pytest.raises(httpcore2.ConnectTimeout, match="was not resolved"):
        resolve_host("late.example", 443, allow_private=True, timeout_s=1.5)

    # 2.9 s if the wait did not count.
    assert time.monotonic() - began < 2.8
    leaving.join()
    places.release()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.com/a", "example.com"),
        ("https://Example.com:443/", "example.com"),
        ("http://example.com:443/", "example.com:443"),
        ("http://1.2.3.4:8080/", "1.2.3.4:8080"),
        ("https://[2606:4700::1]/", "[2606:4700::1]"),
        ("https://[2606:4700::1]:8443/hook?x=1", "[2606:4700::1]:8443"),
    ],
)
def test_the_host_header_has_brackets_around_an_ipv6_address(url, expected):
    assert host_header(url) == expected


def make_certificate(folder, name):
    """Make a self-signed certificate for one address with openssl; return a server's context and the file to trust."""
    key, certificate = folder / f"{name[0]}.key", folder / f"{name[0]}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={name[1]}"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


def test_a_certificate_for_an_ipv6_address_is_checked(canary, tmp_path):
    right, trusted = make_certificate(tmp_path, ("right", "IP:::1"))
    wrong, wrong_trusted = make_certificate(tmp_path, ("wrong", "IP:::2"))
    trust = ssl.create_default_context(cafile=trusted)
    trust.load_verify_locations(wrong_trusted)
    genuine, impostor = canary("::1", tls=right), canary("::1", tls=wrong)
    backend = GuardedBackend(allow_private=True, timeout_s=5)

    assert get(f"https://[::1]:{genuine.server_port}/", backend, ssl_context=trust) == 204
    with pytest.raises(httpcore2.ConnectError, match="IP address mismatch"):
        get(f"https://[::1]:{impostor.server_port}/", backend, ssl_context=trust)

    assert (genuine.hosts, impostor.hosts) == ([f"[::1]:{genuine.server_port}"], [])
