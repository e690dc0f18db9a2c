"""URLs, redirects and name servers that lead elsewhere: none of them reaches a canary on the loopback interface.

Every connection that is not to the one public server of these tests ends at the canary, wherever it was to go. So a
missing check is seen even for addresses that no machine has.
"""

import ipaddress
import json
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import httpcore2
import pytest

from shared.errors import AdapterRefused, ReferenceRefused, SourceUnavailable
from shared.network.guarded_client import GuardedClient
from shared.network.hosts import HostHeaders, HostPatterns, PrivateHosts
from shared.reference_fetch import ReferenceFetcher
from shared.reference_image import check_image
from shared.reference_source import InlineImage, parse_reference
from shared.sources.http_ranges import HttpRanges
from shared.sources.sources import Sources

PUBLIC = "93.184.215.14"
TOKEN = "Bearer t0p-secret"
#: What the resolver of these tests knows, for each lookup in turn; the last answer repeats.
NAMES = {
    "files.example": [[PUBLIC]],
    "cdn.example": [[PUBLIC]],
    "plain.example": [[PUBLIC]],
    "rebinding.example": [[PUBLIC], ["127.0.0.1"]],
    "loopback.example": [["127.0.0.1"]],
    "metadata.example": [["169.254.169.254"]],
    "ten.example": [["10.0.0.1"]],
    "shared.example": [["100.64.0.1"]],
    "zero.example": [["0.0.0.0"]],
    "six.example": [["::1"]],
    "mapped.example": [["::ffff:127.0.0.1"]],
    "local.example": [["fe80::1"]],
    "unique.example": [["fd00:ec2::254"]],
    "nat64.example": [["64:ff9b::7f00:1"]],
    "multicast.example": [["224.0.0.1"]],
    "mixed.example": [[PUBLIC, "127.0.0.1"]],
    "mixed-late.example": [[*[PUBLIC] * 20, "::1"]],
}


def words(text):
    return text.split()


# Refused by their spelling, scheme, port or host, before any name is resolved.
REFUSED_URLS = [
    *words(
        """
        http://files.example/x ftp://files.example/x gopher://127.0.0.1:70/_x file:///etc/passwd
        dict://127.0.0.1:11211/stats ldap://127.0.0.1/ jar:https://files.example!/x data:text/plain,x
        javascript:alert(1) HTTP://127.0.0.1/ ws://127.0.0.1/ //files.example/x /etc/passwd https: https:// https:///
        https:///x https:files.example https://:443/ https://?x https://127.0.0.1/ https://127.0.0.1:443/ https://127.1/
        https://0/ https://0.0.0.0/ https://2130706433/ https://017700000001/ https://0x7f000001/ https://0x7f.0.0.1/
        https://0177.0.0.1/ https://10.0.0.1/ https://172.16.0.1/ https://172.31.255.255/ https://192.168.0.1/
        https://100.64.0.1/ https://169.254.169.254/latest/meta-data/ https://[::1]/ https://[::]/
        https://[::ffff:127.0.0.1]/ https://[::ffff:7f00:1]/ https://[fe80::1]/ https://[fc00::1]/
        https://[fd00:ec2::254]/ https://[64:ff9b::7f00:1]/ https://[2002:7f00:1::]/ https://[fe80::1%25lo]/
        https://[::1 https://[files.example]/ https://localhost/ https://LOCALHOST/ https://localhost.localdomain/
        https://metadata.google.internal/ https://files.example./ https://files.example.:443/ https://.files.example/
        https://files..example/ https://evil-files.example.com/ https://files.example.evil.test/ https://notfiles.test/
        https://files.example@127.0.0.1/ https://user:pass@files.example/ https://files.example:x@evil.test/
        https://@files.example/ https://files.example%40evil.test/ https://files.example%2f.evil.test/
        https://files%2eexample/ https://files.example%00.evil.test/ https://127.0.0.1%23.files.example/
        https://evil.test#files.example https://files.example/#x https://evil.test?files.example
        https://evil.test;files.example https://files.example\\@127.0.0.1/ https://127.0.0.1\\@files.example/
        https:\\\\127.0.0.1/ https://127.0.0.1\\.files.example/ https://ｆiles.example/ https://①②⑦.⓪.⓪.①/
        https://127。0。0。1/ https://bücher.example/ https://files.example／x https://files.example:22/
        https://files.example:25/ https://files.example:6379/ https://files.example:8080/ https://files.example:8443/
        https://files.example:0/ https://files.example:65536/ https://files.example:-1/ https://files.example:٤٤٣/
        https://files.example:443x/ https://files.example:0x1bb/ https://files.example:444/ https://files.example/{x}
        https://files.example/"x" https://files.example/<x> https://files.example/x|y
        """
    ),
    " https://files.example/x",
    "https://files.example/x ",
    "https://files.example /x",
    "https://files.example/a b",
    "https://files.example/\r\nHost:evil.test",
    "https://files.example\n.evil.test/",
    "https://files.\texample/",
    "https://files.example/\0",
    "https://files.example/\x7f",
    "https://files.example/" + "x" * 9000,
    "",
]

# Hosts whose names an operator may well have allowed: what counts is where they lead.
PRIVATE_HOSTS = words(
    """
    127.0.0.1 127.0.0.2 127.255.255.254 127.1 127.0.1 0 0.0.0.0 0.1.2.3 2130706433 0x7f000001 0x7f.1 017700000001
    0177.0.0.1 10.0.0.1 10.1 10.255.255.255 100.64.0.1 100.127.255.255 169.254.169.254 0xa9fea9fe 2852039166
    172.16.0.1 172.31.255.255 192.0.0.192 192.168.0.1 192.168.255.255 198.18.0.1 192.0.2.1 224.0.0.1 240.0.0.1
    255.255.255.255 [::1] [::] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] [::ffff:169.254.169.254]
    [::127.0.0.1] [64:ff9b::7f00:1] [64:ff9b:1::7f00:1] [2002:7f00:1::] [2001::1] [2001:db8::1] [fc00::1]
    [fd00:ec2::254] [fe80::1] [fec0::1] [ff02::1] localhost LOCALHOST loopback.example metadata.example ten.example
    shared.example zero.example six.example mapped.example local.example unique.example nat64.example
    multicast.example mixed.example mixed-late.example
    """
)

# Where the public server redirects to. The first ones an allow-list refuses, the last ones only their address.
REDIRECTS = words(
    """
    http://127.0.0.1/ https://127.0.0.1/ http://169.254.169.254/latest/meta-data/ https://[::1]/ https://localhost/
    http://files.example/x //127.0.0.1/ https://evil.test/ https://files.example@127.0.0.1/
    https://files.example:8443/ ftp://files.example/ file:///etc/passwd gopher://127.0.0.1/
    https://127.0.0.1\\@files.example/ https:\\\\127.0.0.1/ https://files.example%40127.0.0.1/
    https://files.example./ \\\\127.0.0.1\\x https://bücher.example/ https://loopback.example/
    https://metadata.example/ https://six.example/ https://mapped.example/ https://mixed.example/
    //loopback.example/
    """
)


class AnyHost(HostPatterns):
    """Allows every name, so that only addresses are left to refuse."""

    def matches(self, host):
        return True


class Server(ThreadingHTTPServer):
    """Keeps each connection and request. Over TLS it plays the public server, in plain text the canary."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, tls=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.connections = 0
        self.requests = []
        self.tls = tls

    def server_bind(self):
        # HTTPServer looks up the host's name, which is of no use here.
        super(HTTPServer, self).server_bind()
        self.server_name, self.server_port = self.server_address

    def get_request(self):
        connection, address = super().get_request()
        self.connections += 1
        return connection, address

    def process_request_thread(self, request, client_address):
        if self.tls is not None:
            try:
                request = self.tls.wrap_socket(request, server_side=True)
            except OSError:
                return  # the client hung up; the failed socket is closed already
        super().process_request_thread(request, client_address)

    def handle_error(self, request, client_address):
        pass  # the client hangs up on bodies that it does not want


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/redirect":
            self.answer(int(query["status"]), location=json.loads(query["to"]))
        elif url.path == "/hops":
            left = int(query["left"])
            self.answer(302, location=f"/hops?left={left - 1}") if left else self.answer(200, body=b"the end")
        else:
            getattr(self, f"send_{url.path[1:]}", lambda: self.answer(200, body=b"hello"))()

    def answer(self, status, *, location=None, body=b"", **headers):
        self.send_response(status)
        if location is not None:
            self._headers_buffer.append(b"Location: " + location.encode() + b"\r\n")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def part(self, *, length, extent, **headers):
        self.send_response(206)
        self.send_header("Content-Range", extent)
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send_endless(self):
        self.part(length=None, extent="bytes 0-99/100")
        while True:
            self.wfile.write(b"4000\r\n" + bytes(0x4000) + b"\r\n")

    def send_long(self):
        self.part(length=10**15, extent="bytes 0-99/100")
        while True:
            self.wfile.write(bytes(0x4000))

    def send_short(self):
        self.part(length=100, extent="bytes 0-99/100")
        self.wfile.write(bytes(50))
        self.close_connection = True

    def send_drip(self):
        self.part(length=100, extent="bytes 0-99/100")
        for _ in range(100):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def send_silence(self):
        self.part(length=100, extent="bytes 0-99/100")
        time.sleep(5)

    def send_bomb(self):
        self.part(length=100, extent="bytes 0-99/100", Content_Encoding="gzip")
        self.wfile.write(bytes(100))

    def send_headers_without_end(self):
        self.wfile.write(b"HTTP/1.1 206 Partial Content\r\n")
        while True:
            self.wfile.write(b"X-More: " + b"x" * 1000 + b"\r\n")

    def send_early_answers_without_end(self):
        while True:
            self.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            time.sleep(0.01)

    def send_other_range(self):
        self.part(length=100, extent="bytes 5-104/200")
        self.wfile.write(bytes(100))

    def send_whole_file(self):
        self.answer(200, body=bytes(1000))

    def send_page(self):
        self.answer(200, body=b"<html>log in", Content_Type="text/html; charset=utf-8")

    def send_hidden_page(self):
        self.answer(200, body=b"\n<!DOCTYPE html>" + bytes(84), Content_Type="application/octet-stream")

    def send_nonsense(self):
        self.wfile.write(b"SSH-2.0-OpenSSH_9.2 t0p-secret\r\n")
        self.close_connection = True

    def log_message(self, *_):
        pass


class Detour(httpcore2.SyncBackend):
    """Leads connections to the public address to the public server, and all others to the canary."""

    ports: dict

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        return super().connect_tcp("127.0.0.1", self.ports.get(host, self.ports["canary"]), timeout)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for the public names: (the server's context, the client's context)."""
    folder = tmp_path_factory.mktemp("tls")
    names = ",".join(f"DNS:{name}" for name in NAMES)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={names}"]
    subprocess.run(
        [*command, "-keyout", folder / "key", "-out", folder / "certificate"], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate", folder / "key")
    return context, ssl.create_default_context(cafile=folder / "certificate")


@pytest.fixture(scope="module")
def servers(certificate):
    """The public server and the canary."""
    made = Server(certificate[0]), Server()
    threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}) for server in made]
    for thread in threads:
        thread.start()
    yield made
    for server, thread in zip(made, threads, strict=True):
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def public(servers, monkeypatch):
    """The public server; name servers and connections are those of these tests from now on."""
    for server in servers:
        server.connections, server.requests = 0, []
    ports = {PUBLIC: servers[0].server_port, "canary": servers[1].server_port}
    monkeypatch.setattr(Detour, "ports", ports, raising=False)
    monkeypatch.setattr(httpcore2, "SyncBackend", Detour)
    monkeypatch.setattr(socket, "getaddrinfo", Resolver())
    return servers[0]


@pytest.fixture
def canary(public, servers):
    return servers[1]


class Resolver:
    """Answers from `NAMES`, and for literal addresses like the real one; it asks nobody."""

    def __init__(self):
        self.real = socket.getaddrinfo
        self.lookups = []

    def __call__(self, host, port, *args, **options):
        self.lookups.append(host)
        if host not in NAMES:
            # Literal addresses in any spelling, and the one name that every host knows itself.
            if not set(host) <= set("0123456789abcdefx.:") and host != "localhost":
                raise socket.gaierror(f"no such name: {host}")
            return self.real(host, port, *args, **options)
        answers = NAMES[host]
        found = answers[min(self.lookups.count(host), len(answers)) - 1]
        families = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [
            (families[ipaddress.ip_address(address).version], socket.SOCK_STREAM, 6, "", (address, port))
            for address in found
        ]


@pytest.fixture
def client(public, certificate):
    def make(*, timeout_s=5, private="", any_host=False):
        return GuardedClient(
            allowed_hosts=AnyHost(()) if any_host else HostPatterns(("*.example",)),
            private_hosts=PrivateHosts.parse(private),
            headers=HostHeaders.parse(json.dumps({"files.example": f"Authorization: {TOKEN}"})),
            timeout_s=timeout_s,
            ssl_context=certificate[1],
        )

    return make


def fetch(client, url):
    with client.get(url, {}, total_s=5) as answer:
        return answer.status, b"".join(answer.chunks)


def redirecting(status, to):
    quoted = "".join(f"%{byte:02x}" for byte in json.dumps(to).encode())
    return f"https://files.example/redirect?status={status}&to={quoted}"


def test_the_client_reaches_the_public_server_and_the_canary_would_see_a_connection(client, public, canary):
    assert fetch(client(), "https://files.example/x?y=1") == (200, b"hello")
    assert [path for path, _ in public.requests] == ["/x?y=1"]

    with httpcore2.ConnectionPool(network_backend=Detour()) as pool:
        assert pool.request("GET", "http://10.0.0.1/x").status == 200
    assert (canary.connections, len(canary.requests)) == (1, 1)


@pytest.mark.parametrize("url", REFUSED_URLS)
def test_a_url_is_refused_before_any_name_is_resolved(client, public, canary, url):
    with pytest.raises(AdapterRefused):
        fetch(client(), url)

    assert (socket.getaddrinfo.lookups, public.connections, canary.connections) == ([], 0, 0)


@pytest.mark.parametrize("port", ["", ":443", ":80"])
@pytest.mark.parametrize("host", PRIVATE_HOSTS)
def test_a_host_is_refused_for_its_address_even_if_its_name_is_allowed(client, public, canary, host, port):
    with pytest.raises(AdapterRefused, match="is not public"):
        fetch(client(any_host=True), f"https://{host}{port}/x")

    assert (public.connections, canary.connections) == (0, 0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", REDIRECTS)
def test_a_redirect_is_checked_like_the_first_url(client, public, canary, status, to):
    with pytest.raises(AdapterRefused):
        fetch(client(), redirecting(status, to))

    assert (len(public.requests), canary.connections) == (1, 0)


@pytest.fixture
def load_image(public, certificate, monkeypatch, settings):
    """Load what a `ctrl_img` names, as a submit does, from hosts that the operator allows."""
    monkeypatch.setattr(httpcore2, "default_ssl_context", lambda: certificate[1])

    def load(text, *, hosts=None):
        hosts = hosts or HostPatterns(("*.example",))
        made = settings(references={"https_hosts": hosts}, sources={"timeout_s": 5})
        source = parse_reference(text)
        if isinstance(source, InlineImage):
            return check_image(source.decode(max_bytes=10_000))
        return ReferenceFetcher(made, Sources(made)).fetch(source, deadline=time.monotonic() + 5)

    return load


def test_a_reference_image_is_fetched_from_any_public_host_if_the_operator_allows_that(load_image, public, canary):
    assert load_image("https://cdn.example/x?X-Amz-Signature=y", hosts="*") == b"hello"
    with pytest.raises(AdapterRefused, match="the operator allows hosts with FLUX2_REFERENCES_HTTPS_HOSTS"):
        load_image("https://cdn.example/x", hosts="files.example")

    assert ([path for path, _ in public.requests], canary.connections) == (["/x?X-Amz-Signature=y"], 0)


# The fragment of an address is dropped when a request is read.
@pytest.mark.parametrize("url", [url for url in REFUSED_URLS if url != "https://files.example/#x"])
def test_no_reference_image_is_fetched_from_a_url_that_is_refused(load_image, public, canary, url):
    with pytest.raises((AdapterRefused, ReferenceRefused)):
        load_image(url)

    assert (socket.getaddrinfo.lookups, public.connections, canary.connections) == ([], 0, 0)


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
def test_no_reference_image_is_fetched_from_a_private_address(load_image, public, canary, host):
    with pytest.raises(AdapterRefused, match="is not public"):
        load_image(f"https://{host}/x", hosts="*")

    assert (public.connections, canary.connections) == (0, 0)


@pytest.mark.parametrize("to", REDIRECTS)
def test_no_reference_image_is_fetched_from_where_a_redirect_may_not_lead(load_image, public, canary, to):
    with pytest.raises(AdapterRefused):
        load_image(redirecting(302, to))

    assert (len(public.requests), canary.connections) == (1, 0)


def test_five_redirects_are_followed_and_a_sixth_is_not(client, public):
    assert fetch(client(), "https://files.example/hops?left=5") == (200, b"the end")
    with pytest.raises(AdapterRefused, match="is the end of 5 redirects and redirects again"):
        fetch(client(), "https://files.example/hops?left=6")

    assert len(public.requests) == 12


@pytest.mark.parametrize("to", ["", "https://[::1/", "https://files.example:port/", "x\x7fy", "a b"])
def test_a_redirect_to_no_usable_address_is_refused(client, public, canary, to):
    with pytest.raises(AdapterRefused):
        fetch(client(), redirecting(302, to))

    assert (len(public.requests), canary.connections) == (1, 0)


def test_a_token_goes_to_its_host_alone_also_after_redirects_there_and_back(client, public):
    back = redirecting(307, "https://files.example/x#part").replace("files.example/redirect", "cdn.example/redirect")

    assert fetch(client(), redirecting(302, back)) == (200, b"hello")

    sent = [(headers["Host"], headers.get("Authorization")) for _, headers in public.requests]
    assert sent == [("files.example", TOKEN), ("cdn.example", None), ("files.example", TOKEN)]


def test_a_name_that_changes_its_address_is_connected_to_where_it_was_checked(client, public, canary):
    assert fetch(client(), "https://rebinding.example/x") == (200, b"hello")
    assert socket.getaddrinfo.lookups.count("rebinding.example") == 1

    with pytest.raises(AdapterRefused, match="is not public"):
        fetch(client(), "https://rebinding.example/x")

    assert canary.connections == 0


def test_a_certificate_must_be_for_the_name_that_was_asked_for(client, public, canary, monkeypatch):
    monkeypatch.setitem(NAMES, "impostor.example", [[PUBLIC]])

    with pytest.raises(SourceUnavailable, match="a certificate that is not trusted or not for this name"):
        fetch(client(), "https://impostor.example/x")

    assert (public.requests, canary.connections) == ([], 0)


def test_a_host_of_the_operator_may_be_private_and_plain_on_the_listed_port_alone(client, canary):
    own = client(private="loopback.example:8080")

    assert fetch(own, "http://loopback.example:8080/x") == (200, b"hello")
    assert fetch(own, redirecting(302, "http://loopback.example:8080/y")) == (200, b"hello")
    for url in ("http://loopback.example/x", "https://loopback.example/x", "http://127.0.0.1:8080/x"):
        with pytest.raises(AdapterRefused):
            fetch(own, url)

    assert [path for path, _ in canary.requests] == ["/x", "/y"]


def read(ranges, *, into):
    with ranges.open(0, 100, total_s=0.5) as part:
        into.extend(part.chunks)


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("endless", AdapterRefused, "sent more bytes than it was asked for"),
        ("long", AdapterRefused, "sent more bytes than it was asked for"),
        ("short", SourceUnavailable, "broke"),
        ("drip", SourceUnavailable, "took too long to answer"),
        ("silence", SourceUnavailable, "took too long to answer"),
        ("bomb", AdapterRefused, "compresses the file"),
        ("headers_without_end", SourceUnavailable, "does not speak HTTP"),
        ("early_answers_without_end", SourceUnavailable, "took too long to answer"),
        ("other_range", AdapterRefused, "other bytes than it was asked for"),
        ("whole_file", AdapterRefused, "serves no parts of files"),
        ("page", AdapterRefused, "answered with a web page; use the link that starts the download"),
        ("hidden_page", AdapterRefused, "answered with a web page"),
        ("nonsense", SourceUnavailable, "does not speak HTTP"),
    ],
)
def test_a_hostile_body_ends_within_the_time_and_the_bytes_asked_for(client, public, path, kind, message):
    ranges = HttpRanges(client(timeout_s=0.4), f"https://files.example/{path}?sig=t0p-secret", "the file")
    began, received = time.monotonic(), []

    with pytest.raises(kind, match=message) as refused:
        read(ranges, into=received)

    assert time.monotonic() - began < 3
    assert sum(map(len, received)) <= 100
    assert "secret" not in str(refused.value)


def test_no_message_holds_a_token_a_query_or_a_password(client):
    texts = [repr(client()), repr(vars(client()))]
    for url in (
        "https://files.example:8080/a?sig=t0p-secret",
        "https://u:t0p-secret@files.example/",
        "ftp://t0p-secret/",
    ):
        with pytest.raises(AdapterRefused) as refused:
            fetch(client(), url)
        texts.append(f"{refused.value!r}")

    assert "secret" not in " ".join(texts)
