"""The console in a browser, on real servers. Each test has pages of its own, which may not fail or call other hosts.

`console` serves the API without a worker, `simulated` has two simulated slots. `open_page` opens either.
"""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx2
import pytest
from api_keys import add_key
from console_pages import DESKTOP
from finished_images import finish_queued
from page_watch import PageWatch
from served_api import serve

from api.doors import keyring
from shared.ledger import Ledger
from shared.local.ports import pick_free_port
from shared.local.redis_server import RedisServer
from shared.settings import QueueSettings
from tools.chromium import ADVICE, find_chromium
from tools.simulated_service import simulated_service

FOLDER = Path(__file__).parent
ADAPTERS = FOLDER.parents[1] / "worker/model/demo_checkpoint/adapters"
# An image of 1024x1024 in 25 steps takes half a second.
_STEP_S = 0.02
# Nothing takes as long, unless other tests have the processors.
_WAIT_MS = 30_000
_FAILED = pytest.StashKey()


def pytest_collection_modifyitems(items):
    """Mark the tests of this folder."""
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.browser)
            # A page that hangs must not hold up everything else for long.
            item.add_marker(pytest.mark.timeout(150))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep whether a test failed, for the picture of its pages."""
    report = yield
    item.stash.setdefault(_FAILED, False)
    item.stash[_FAILED] |= report.failed
    return report


@pytest.fixture(scope="session")
def expect():
    """Assertions that wait. Playwright takes a third of a second to import, which other tests need not pay."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: run `make install`")
    sync_api.expect.set_options(timeout=_WAIT_MS)
    return sync_api.expect


# The loop of Playwright runs in the tests' thread until it stops: it must not outlast this folder's tests.
@pytest.fixture(scope="package")
def browser(expect):
    """A browser for all tests."""
    from playwright.sync_api import sync_playwright

    program = find_chromium()
    if program is None:
        pytest.skip(f"{ADVICE}: make test-browser")
    with sync_playwright() as playwright:
        # No name is looked up: what is not on this host cannot be reached.
        resolver = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        browser = playwright.chromium.launch(executable_path=program, args=[resolver])
        yield browser
        browser.close()


@pytest.fixture
def watch():
    """What the pages of the test do; see `PageWatch.allow`."""
    return PageWatch()


@pytest.fixture
def open_page(browser, watch, request, tmp_path, s3_server):
    """Open the console at an address, with a key or without, in a browser context of its own.

    Keywords are options of the context, such as `viewport=PHONE` or `color_scheme="dark"`. `page.context.new_page()`
    makes another tab.
    """
    contexts = []

    def open_it(url, fragment="", *, key="", **options):
        context = browser.new_context(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
        contexts.append(context)
        context.set_default_timeout(_WAIT_MS)
        watch.watch(context, hosts={urlsplit(url).netloc, urlsplit(s3_server.url).netloc})
        if key:
            # The empty page, with which a tab begins, has no storage.
            context.add_init_script(f"location.origin === '{url}' && sessionStorage.setItem('flux2.key', '{key}')")
        page = context.new_page()
        page.goto(f"{url}/{fragment}")
        return page

    yield open_it

    if request.node.stash.get(_FAILED, False):
        _save_pictures(request.node, contexts, tmp_path)
    for context in contexts:
        context.close()
    assert not watch.faults, "\n".join(watch.faults)


def _save_pictures(node, contexts, folder):
    for number, page in enumerate(page for context in contexts for page in context.pages):
        file = folder / f"page-{number}.png"
        page.screenshot(path=file)
        node.add_report_section("teardown", "picture", f"{page.url}: {file}")


@pytest.fixture(scope="session")
def axe():
    """The source of axe-core, which finds what people with a screen reader or weak eyes cannot use."""
    return (FOLDER / "axe" / "axe.min.js").read_text()


class ServedConsole:
    """An API without a worker, in the tests' process; `url` stays when it starts again.

    Attributes:
        api: what `served_api.serve` returns.
    """

    def __init__(self, settings, wait_until):
        self._settings = settings
        self._wait_until = wait_until
        self._port = pick_free_port()
        self._serving = ExitStack()
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self):
        self.api = self._serving.enter_context(serve(self._settings, self._wait_until, port=self._port))

    def stop(self):
        self._serving.close()

    def add_key(self, **options):
        """Store a key and return its text; from then on the API wants one."""
        return add_key(self.api.ledger, **options)

    def claim(self):
        """Claim an image that waits, as a worker does."""
        return self.api.ledger.claim_next(("flux2",), slot="gpu-0", boot="boot", warm="base")

    def finish_queued(self):
        """Finish every image that waits; return their number."""
        return finish_queued(self.api)


@pytest.fixture
def adapter_root(tmp_path):
    """An adapter root with the demonstration adapters."""
    return shutil.copytree(ADAPTERS, tmp_path / "adapters")


@pytest.fixture
def console(redis_client, redis_url, s3, settings, adapter_root, wait_until, monkeypatch):
    """A served console without a worker, whose Redis and prefix of S3 are empty."""
    monkeypatch.setattr(keyring, "FRESH_S", 0.0)
    made = settings(
        redis={"url": redis_url},
        storage=s3.storage.model_dump(),
        s3=s3.s3.model_dump(),
        adapters={"root": adapter_root},
    )
    served = ServedConsole(made, wait_until)
    served.start()
    yield served
    served.stop()


@pytest.fixture(scope="package")
def simulated_api(s3_server, tmp_path_factory):
    """An API and two simulated slots as processes, for all tests; the value has its `url` and its `ledger`."""
    folder = tmp_path_factory.mktemp("simulated")
    storage = s3_server.environment() | {"FLUX2_STORAGE_PREFIX": "simulated/"}
    with pytest.MonkeyPatch.context() as patch, RedisServer(folder) as redis, (folder / "log").open("wb") as log:
        for name in [name for name in os.environ if name.startswith(("FLUX2_", "AWS_"))]:
            patch.delenv(name)
        ledger = Ledger.connect(redis.url, QueueSettings(), timeout_s=5)
        add_key(ledger)
        with simulated_service(
            slots=2,
            step_s=_STEP_S,
            adapters={file.name: file.stem for file in ADAPTERS.iterdir()},
            redis=redis,
            settings=storage,
            key=add_key(ledger, roles=["read"]),
            log=log,
        ) as url:
            yield SimpleNamespace(url=url, ledger=ledger)


@pytest.fixture
def simulated(simulated_api, request):
    """The console with simulated slots: `url`, and a `key` of a tenant that has no jobs yet, which `http` sends."""
    tenant = f"test-{abs(hash(request.node.nodeid)):x}"
    key = add_key(simulated_api.ledger, tenant=tenant)
    headers = {"Authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=simulated_api.url, headers=headers, timeout=10, verify=False) as http:
        yield SimpleNamespace(url=simulated_api.url, key=key, tenant=tenant, http=http)
