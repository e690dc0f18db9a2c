"""The whole service as processes, once for the session: two CPU workers on the tiny model."""

import base64
import os
import secrets

import pytest
import redis
from canaries import Canaries
from file_server import FileServer
from hub_server import HubServer

from flux2_client.client import Client
from shared.local.redis_server import RedisServer
from shared.local.stack import Stack
from shared.settings import Settings

# A lease short enough that recovery can be watched.
ENVIRONMENT = {
    "FLUX2_QUEUE_LEASE_TTL_S": "3",
    "FLUX2_QUEUE_RENEW_S": "0.5",
    "FLUX2_QUEUE_REAP_S": "0.2",
    "FLUX2_QUEUE_AUDIT_S": "0.4",
    "FLUX2_WORKER_DEVICE": "cpu",
    "FLUX2_WORKER_DRAIN_S": "0.5",
    # Two workers share two cores with the tests.
    "OMP_NUM_THREADS": "1",
}


class _LockedRedis(RedisServer):
    """Redis with a password, of which no argument and no file knows."""

    def __init__(self, data, *, password):
        super().__init__(data)
        self._password = password

    @property
    def url(self):
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def start(self):
        super().start()
        with redis.Redis(port=self.port) as client:
            client.config_set("requirepass", self._password)
        return self


@pytest.fixture(scope="session")
def canaries():
    """The secrets that the processes have."""
    return Canaries()


@pytest.fixture(scope="session")
def hub(canaries):
    """The Hugging Face hub of the processes; a test fills it."""
    with HubServer() as hub:
        hub.token = canaries.plant("hub token", f"hf_{secrets.token_hex(16)}")
        hub.signature = canaries.plant("signature of a redirect", secrets.token_hex(16))
        yield hub


@pytest.fixture(scope="session")
def web():
    """A web server on this host, from which the processes may fetch files; a test fills it."""
    with FileServer() as web:
        yield web


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    """The file cache of the workers."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def stack(tmp_path_factory, hub, web, cache_folder, canaries):
    before = dict(os.environ)
    sources = {
        "FLUX2_SOURCES_PRIVATE_HOSTS": f"{hub.store_place},{web.place}",
        "FLUX2_SOURCES_CACHE_DIR": str(cache_folder),
    }
    header = canaries.plant("header of a host", secrets.token_hex(16))
    key = canaries.plant("webhook secret", secrets.token_hex(16))
    secret = {
        "HF_TOKEN": hub.token,
        "FLUX2_SOURCES_HTTPS_HEADERS": f'{{"{web.place}": "Authorization: Bearer {header}"}}',
        "FLUX2_WEBHOOK_SECRET": "whsec_" + base64.b64encode(key.encode()).decode(),
        "FLUX2_WEBHOOK_ALLOW_PRIVATE": "true",
    }
    os.environ.update({**ENVIRONMENT, **sources, **secret, "HF_ENDPOINT": hub.url})
    try:
        started = Stack(tmp_path_factory.mktemp("stack"), Settings(_env_file=None), workers=2)
        password = canaries.plant("password of Redis", secrets.token_hex(16))
        started.servers.redis = _LockedRedis(started.data, password=password)
        with started as running:
            canaries.plant("secret key of S3", running.servers.s3.secret_key)
            # The processes have it. The hub's library reads it at its import, perhaps in a later test of this process.
            del os.environ["HF_ENDPOINT"]
            yield running
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def wait_for_workers(stack, wait_until):
    """Restart the workers that ended, and wait until each one has reported."""

    def all_alive():
        stack.restart_dead()
        return len(stack.ledger().workers.live_slots()) == 2

    return lambda: wait_until(all_alive, 60, what="both workers' start")


@pytest.fixture
def client(stack, wait_for_workers):
    """A client of a stack in which every worker is alive."""
    wait_for_workers()
    with Client(stack.url) as made:
        yield made


@pytest.fixture
def wait_running(stack, wait_until):
    """Wait until a job's first item has taken a denoising step; returns the name of its worker."""

    def running(job):
        def slot():
            item = stack.ledger().job(job.request_id).items[0]
            return item.slot if item.progress and item.progress.step > 0 else None

        return wait_until(slot, 60, what="the item's first step")

    return running


@pytest.fixture
def wait_for_takeover(stack, wait_until):
    """Wait until another worker has a job's first item; then start the one that ended, while the other renders."""

    def taken_over(job):
        wait_until(lambda: stack.ledger().job(job.request_id).items[0].fence >= 2, 60, what="the second claim")
        stack.restart_dead()

    return taken_over


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show the processes' logs with a failure."""
    report = yield
    running = item.funcargs.get("stack") if report.failed else None
    if running is not None:
        for log in running.logs:
            report.sections.append((str(log), log.read_text(errors="replace")[-4000:]))
    return report
