"""Real servers for the tests: each test process has one Redis, emptied for each test, and one S3 with a prefix each."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
import redis
from typer import testing
from xdist.scheduler import LoadScopeScheduling

from shared import logs
from shared.job import ItemSpec
from shared.local import ports
from shared.local.redis_server import RedisServer
from shared.local.s3_server import S3Server
from shared.settings import LogSettings, Settings

GOLDENS = Path(__file__).parent / "goldens"
_POLL_S = 0.01
_SETTING_PREFIXES = ("FLUX2_", "AWS_")
_LONG = ("tests/e2e/", "tests/browser/", "tests/unit/test_worker_")
# End-to-end tests that start services of their own.
_OWN_SERVICES = ("tests/e2e/test_chaos.py", "tests/e2e/test_commands.py")
_OTHER_SETTINGS = ("HF_TOKEN", "AI_TOOLKIT_PATH")

_Server = TypeVar("_Server", bound=ThreadingHTTPServer)


class _FileScheduling(LoadScopeScheduling):
    """Runs the tests of a file in one process; those that share the end-to-end service, a browser or a GPU in one."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        _, folder, *_ = file.split("/")
        return folder if folder in ("browser", "e2e", "gpu") and file not in _OWN_SERVICES else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _FileScheduling:
    """Distribute the tests of `pytest -n`, in their order: e2e, the longest group, comes first."""
    config.option.loadscopereorder = False
    return _FileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take long before the others: a process must not be left with one while the other has none."""
    items.sort(key=lambda item: not item.nodeid.startswith(_LONG))


def pytest_collection_finish() -> None:
    """Leave what the imports and the collection made to itself: each look through it for garbage takes 0.4 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_ports() -> None:
    """Give each test process its own ports: another process could take a port between its choice and its use."""
    index = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports._PORTS = ports._PORTS[index :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]


@pytest.fixture(scope="session", autouse=True)
def _commands_built_once() -> Iterator[None]:
    """Build the commands of an app once: it takes a tenth of a second, and `CliRunner` does it at each call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing, "_get_command", cache(testing._get_command))
        yield


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep this machine's settings and credentials out of every test."""
    for name in list(os.environ):
        if name.startswith(_SETTING_PREFIXES) or name in _OTHER_SETTINGS:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Folder of the numbers that ai-toolkit's own code computed."""
    return GOLDENS


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server for this test process, as durable as in production."""
    with RedisServer(tmp_path_factory.mktemp("embedded")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url


@pytest.fixture(scope="module")
def empty_redis_server(redis_server: RedisServer) -> RedisServer:
    """The same server, without what other modules left, for a service that all tests of a module share."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of an empty database; replies are text."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS for this test process."""
    with S3Server(tmp_path_factory.mktemp("embedded")) as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, settings: Callable[..., Settings]) -> Settings:
    """Settings for the session's S3 under a prefix that only this test uses; credentials are in the environment."""
    for name, value in s3_server.environment().items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    return settings(
        storage={"backend": "s3", "prefix": f"test-{uuid.uuid4().hex}/"},
        s3={"endpoint_url": s3_server.url, "bucket": s3_server.bucket, "addressing_style": "path"},
    )


@pytest.fixture
def settings() -> Callable[..., Settings]:
    """Make settings from sections, e.g. `settings(redis={"url": redis_url})`; the rest are the defaults."""

    def make(**sections: dict[str, Any]) -> Settings:
        return Settings(**sections)

    return make


@pytest.fixture
def configured(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """A function that logs with a format and returns what was written; the logging of the tests comes back."""
    root, project = logging.getLogger(), logging.getLogger("flux2")
    before = root.handlers[:], root.level, project.level, sys.excepthook, threading.excepthook

    def log(log_format: Literal["console", "json"], act: Callable[[logging.Logger], object]) -> str:
        logs.configure(LogSettings(format=log_format))
        act(logging.getLogger("flux2.test"))
        return capsys.readouterr().err

    yield log
    root.handlers[:], level, project_level, sys.excepthook, threading.excepthook = before
    root.setLevel(level)
    project.setLevel(project_level)


@pytest.fixture
def serve_http() -> Iterator[Callable[[_Server], _Server]]:
    """Serve an HTTP server of `http.server` in a thread and return it; all of them stop when the test ends.

    If a server has an event `closing`, it is set first: a handler that waits for it ends its answer.
    """
    started: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def serve(server: _Server) -> _Server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": _POLL_S})
        thread.start()
        started.append((server, thread))
        return server

    yield serve

    for server, thread in started:
        if closing := getattr(server, "closing", None):
            closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., Any]:
    """Poll `predicate` until it is true and return its value; the test fails after `timeout_s` seconds."""

    def wait(predicate: Callable[[], Any], timeout_s: float = 30.0, *, what: str = "the condition") -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := predicate()):
            if time.monotonic() > deadline:
                pytest.fail(f"{what} was not met within {timeout_s:g} s")
            time.sleep(_POLL_S)
        return value

    return wait


@pytest.fixture(scope="session")
def slot_report() -> Callable[..., dict[str, str]]:
    """The heartbeat of an idle worker with the base weights; keywords change it."""

    def make(**changes: str) -> dict[str, str]:
        return {
            "model": "flux2",
            "state": "ready",
            "device": "cpu",
            "revision": "r",
            "precision": "bf16",
            "engines": "exact",
            "warm": "base",
            "item": "",
            "base_drift": "0",
        } | changes

    return make


@pytest.fixture(scope="session")
def item() -> Callable[..., ItemSpec]:
    """An accepted item of 64x64 in two steps; keywords change it."""

    def make(**changes: Any) -> ItemSpec:
        spec = ItemSpec(
            model="flux2",
            prompt="a red fox jumps over a river",
            neg="",
            width=64,
            height=64,
            requested_width=64,
            requested_height=64,
            seed=42,
            num_inference_steps=2,
            guidance_scale=4.0,
            adapters=(),
            output_format="png",
        )
        return spec.model_copy(update=changes)

    return make
