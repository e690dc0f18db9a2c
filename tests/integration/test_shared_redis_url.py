"""Both clients of Redis understand a URL in the same way: the ledger's and Celery's reach one database, or none."""

import contextlib
import logging
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from urllib.parse import quote

import pytest
import redis

from shared.celery_app import check_broker, make_celery, send_wakeups
from shared.doctor import run_checks
from shared.errors import LedgerUnavailable
from shared.ledger import Ledger, keys
from shared.ledger.connection import connect
from shared.redis_url import RedisUrl
from shared.settings import QueueSettings

ROOT = Path(__file__).parents[2]
LOOPBACK = "127.0.0.1"
PASSWORD = "hush@;+/#%?:word"
LOGIN = f"renderer:{quote(PASSWORD, safe='')}@"
HAS_IPV6 = socket.has_ipv6 and Path("/proc/net/if_inet6").exists() and Path("/proc/net/if_inet6").read_text() != ""


class Forwarder:
    """Forwards connections to a loopback port while its `with` block runs; keeps what clients sent, decrypted."""

    def __init__(self, target, *, listen=(LOOPBACK, 0), tls=None):
        family = {str: socket.AF_UNIX}.get(type(listen), socket.AF_INET6 if ":" in listen[0] else socket.AF_INET)
        self._listener = socket.socket(family)
        self._listener.bind(listen)
        self._listener.listen()
        self.port = None if family == socket.AF_UNIX else self._listener.getsockname()[1]
        self.received = b""
        self._target, self._tls, self._stopped = target, tls, threading.Event()
        self._threads = [threading.Thread(target=self._accept, name="forwarder")]

    def __enter__(self):
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _readable(self, *sockets):
        """Yield each time that some sockets have data, until the block ends."""
        while not self._stopped.is_set():
            if found := select.select(sockets, [], [], 0.05)[0]:
                yield found

    def _accept(self):
        for _ in self._readable(self._listener):
            client, _ = self._listener.accept()
            self._threads.append(threading.Thread(target=self._forward, args=(client,), name="forwarder"))
            self._threads[-1].start()

    def _forward(self, client):
        # A client that distrusts the certificate ends the connection.
        with client, contextlib.suppress(OSError), socket.create_connection((LOOPBACK, self._target)) as server:
            if self._tls:
                client = self._tls.wrap_socket(client, server_side=True)
            with client:
                for found in self._readable(client, server):
                    for source, sink in ((client, server), (server, client)):
                        if source in found:
                            data = source.recv(65_536)
                            if not data:
                                return
                            self.received += data if source is client else b""
                            sink.sendall(data)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for `localhost` that signs itself, so that it is its own CA, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "certificate.pem", folder / "key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1"]
    subprocess.run(
        ["openssl", "req", "-x509", *curve, *names, "-out", made[0], "-keyout", made[1]],
        check=True,
        capture_output=True,
    )
    return made


@pytest.fixture
def tls(certificate):
    """A TLS context for a server with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


@pytest.fixture
def secured(redis_client, redis_server, tls):
    """A Redis behind TLS."""
    with Forwarder(redis_server.port, tls=tls) as server:
        yield server


@pytest.fixture
def account(redis_client):
    """A user of Redis, whose password has every character that means something in URLs."""
    redis_client.acl_setuser(
        "renderer", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], channels=["*"], commands=["+@all"]
    )
    yield
    redis_client.acl_deluser("renderer")


@pytest.fixture
def celery():
    """Make Celery applications and close them."""
    with contextlib.ExitStack() as made:
        yield lambda url: made.enter_context(make_celery(url, side="api", timeout_s=2))


def ping_as_ledger(url):
    try:
        with connect(url, timeout_s=2) as client:
            client.ping()
    except redis.RedisError as error:
        return str(error)
    return "connected"


@pytest.fixture
def ping_as_celery(celery):
    def ping(url):
        try:
            check_broker(celery(url))
        except LedgerUnavailable as error:
            return str(error)
        return "connected"

    return ping


@pytest.mark.parametrize(
    "url",
    [
        "redis://{tcp}/2",
        "redis://{tcp}/2/",
        "redis://{tcp}/2?",
        "redis://{tcp}?db=2",
        "redis://{tcp}/1?db=2",
        "redis://localhost:{port}/2",
        "redis://{login}{tcp}/2",
        "redis://{tcp}/2?username=renderer&password={password}",
        "redis://{ipv6}/2",
        "rediss://localhost:{tls}/2?ssl_ca_certs={ca}",
        "rediss://{login}localhost:{tls}?db=2&ssl_ca_certs={ca}",
        "unix://{socket}?db=2",
        "unix://{login}{socket}?db=2",
        "unix://{socket}?username=renderer&password={password}&db=2",
    ],
)
def test_ledger_and_celery_reach_the_same_database(
    url, redis_server, redis_client, secured, account, celery, certificate, tmp_path
):
    if "ipv6" in url and not HAS_IPV6:
        pytest.skip("this host has no IPv6")
    path = tmp_path / "redis@1 é.sock"
    with (
        Forwarder(redis_server.port, listen=("::1" if HAS_IPV6 else LOOPBACK, 0)) as other,
        Forwarder(redis_server.port, listen=str(path)),
        redis.Redis(port=redis_server.port, db=2) as database,
    ):
        filled = url.format(
            tcp=f"{LOOPBACK}:{redis_server.port}",
            port=redis_server.port,
            ipv6=f"[::1]:{other.port}",
            tls=secured.port,
            ca=certificate[0],
            socket=quote(str(path)),
            login=LOGIN,
            password=quote(PASSWORD),
        )
        app = celery(filled)
        with connect(filled, timeout_s=2) as ledger:
            sent = send_wakeups(app, "flux2", count=1)

            assert sent == 1
            assert ledger.llen(keys.wake_list("flux2")) == 1
        assert database.llen(keys.wake_list("flux2")) == 1
        with app.connection_for_read() as connection:
            assert connection.default_channel.basic_get(keys.wake_queue("flux2"), no_ack=True) is not None
        assert database.llen(keys.wake_list("flux2")) == 0


@pytest.mark.parametrize(
    "option", ["", "?ssl_cert_reqs=required", "?ssl_cert_reqs=CERT_REQUIRED", "?ssl_cert_reqs=optional"]
)
def test_a_server_with_an_unknown_certificate_never_sees_the_password(option, secured, account, ping_as_celery):
    url = f"rediss://{LOGIN}localhost:{secured.port}/0{option}"

    for answer in (ping_as_ledger(url), ping_as_celery(url)):
        assert "CERTIFICATE_VERIFY_FAILED" in answer

    assert secured.received == b""


@pytest.mark.parametrize("option", ["none", "CERT_NONE"])
def test_certificates_are_not_verified_if_the_url_says_so(option, secured, account, ping_as_celery):
    url = f"rediss://{LOGIN}{LOOPBACK}:{secured.port}/0?ssl_cert_reqs={option}"

    for ping in (ping_as_ledger, ping_as_celery):
        secured.received = b""
        assert ping(url) == "connected"
        # So the tests above would notice a password that is sent.
        assert PASSWORD.encode() in secured.received


def test_a_server_with_the_certificate_of_another_host_is_refused(secured, account, certificate, ping_as_celery):
    url = f"rediss://{LOGIN}{LOOPBACK}:{secured.port}/0?ssl_ca_certs={certificate[0]}"

    for answer in (ping_as_ledger(url), ping_as_celery(url)):
        assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in answer
    assert secured.received == b""

    for ping in (ping_as_ledger, ping_as_celery):
        assert ping(f"{url}&ssl_check_hostname=false") == "connected"


def test_a_server_that_demands_a_certificate_gets_the_same_one_from_both(
    redis_client, redis_server, tls, certificate, ping_as_celery
):
    ca, key = certificate
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(ca)
    with Forwarder(redis_server.port, tls=tls) as server:
        url = f"rediss://localhost:{server.port}/0?ssl_ca_certs={ca}"

        for ping in (ping_as_ledger, ping_as_celery):
            assert ping(url) != "connected"
            assert ping(f"{url}&ssl_certfile={ca}&ssl_keyfile={key}") == "connected"


def test_a_worker_runs_a_job_whose_wake_up_went_through_tls(
    secured, account, celery, certificate, item, tmp_path, wait_until
):
    url = f"rediss://{LOGIN}localhost:{secured.port}/3?ssl_ca_certs={certificate[0]}"
    log = tmp_path / "worker.log"
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "FLUX2_REDIS_URL": url,
        "FLUX2_STORAGE_BACKEND": "directory",
        "FLUX2_STORAGE_DIRECTORY": str(tmp_path),
        "FLUX2_WORKER_LOCK_DIR": str(tmp_path),
        # No audit before the test has ended, so that only the test's own wake-up can reach the worker.
        "FLUX2_QUEUE_AUDIT_S": "600",
    }
    command = [sys.executable, "-m", "chaos.process", "worker", "gpu-0", "--history", str(tmp_path / "history")]
    ledger = Ledger.connect(url, QueueSettings(), timeout_s=2)
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as worker:
        try:
            wait_until(ledger.workers.live_slots, 60, what="the worker's announcement")
            job_id = ledger.accept(uuid.uuid4().hex, [item()], record={}).job_id
            send_wakeups(celery(url), "flux2", count=1)

            wait_until(lambda: ledger.job(job_id).state == "succeeded", 60, what="the job's end")
        finally:
            worker.terminate()
    ledger.redis.close()

    assert quote(PASSWORD, safe="").encode() not in log.read_bytes()
    assert PASSWORD.encode() not in log.read_bytes()


def test_celery_ignores_another_broker_in_the_environment(celery, redis_url, redis_client, monkeypatch):
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        monkeypatch.setenv(name, f"redis://{LOOPBACK}:1/0")

    assert send_wakeups(celery(redis_url), "flux2", count=1) == 1
    assert redis_client.llen(keys.wake_list("flux2")) == 1


def test_wake_ups_for_an_absent_redis_are_given_up_at_once(celery, caplog):
    started = time.monotonic()
    sent = send_wakeups(celery(f"redis://{LOOPBACK}:1/0"), "flux2", count=2)

    assert sent == 0
    assert "wake-ups not sent" in caplog.text
    # 6 s with kombu's own retries.
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "address", ["rediss://{login}127.0.0.1:1/0", "redis://{login}127.0.0.1:1/0", "unix://{login}/nowhere.sock"]
)
def test_the_password_is_in_no_message_and_no_representation(
    address, celery, ping_as_celery, caplog, settings, tmp_path
):
    caplog.set_level(logging.DEBUG)
    url = address.format(login=LOGIN)
    made = settings(
        redis={"url": url, "timeout_s": 0.2},
        storage={"backend": "directory", "directory": tmp_path},
    )
    app = celery(url)

    shown = [
        repr(made), str(made.redis.url), repr(RedisUrl.parse(url)), made.model_dump_json(),
        ping_as_ledger(url), ping_as_celery(url),
        repr(app.connection_for_write()), app.connection_for_read().as_uri(), caplog.text,
        *(str(vars(record)) for record in caplog.records), *(str(finding) for finding in run_checks(made)),
    ]  # fmt: skip

    for text in shown:
        assert PASSWORD not in text
        assert quote(PASSWORD, safe="") not in text


def test_the_doctor_says_what_a_certificate_needs(secured, settings, tmp_path):
    made = settings(
        redis={"url": f"rediss://localhost:{secured.port}/0"},
        storage={"backend": "directory", "directory": tmp_path},
        adapters={"root": tmp_path},
    )

    finding = next(iter(run_checks(made)))

    assert (finding.name, finding.state) == ("redis", "failed")
    assert "ssl_ca_certs" in finding.remedy
