"""Every endpoint says who may call it; the door and its guard decide by headers alone."""

import anyio
import httpx2
import pytest
from fastapi.routing import APIRoute
from starlette.datastructures import Headers

from api.app import create_app
from api.doors.keyring import Keyring
from api.doors.origin_guard import OriginGuard
from api.doors.roles import ROLE_OF
from shared.errors import ContentTypeRefused, SenderRefused
from shared.settings import Settings

ROLES = {
    ("POST", "/v1/inference"): "submit",
    ("POST", "/v1/replays"): "submit",
    ("POST", "/v1/sweeps"): "submit",
    ("POST", "/v1/sweeps/estimate"): "submit",
    ("GET", "/v1/sweeps"): "read",
    ("GET", "/v1/sweeps/{sweep_id}/status"): "read",
    ("GET", "/v1/sweeps/{sweep_id}/result"): "read",
    ("POST", "/v1/sweeps/{sweep_id}/cancel"): "submit",
    ("POST", "/v1/images/generations"): "submit",
    ("POST", "/v1/images/edits"): "submit",
    ("POST", "/v1/requests/{request_id}/cancel"): "submit",
    ("POST", "/v1/requests/{request_id}/webhook/resend"): "submit",
    ("GET", "/v1/requests/{request_id}"): "read",
    ("GET", "/v1/requests/{request_id}/status"): "read",
    ("GET", "/v1/requests/{request_id}/result"): "read",
    ("GET", "/v1/requests/{request_id}/archive"): "read",
    ("GET", "/v1/requests"): "read",
    ("GET", "/v1/requests/{request_id}/events"): "read",
    ("GET", "/v1/events"): "read",
    ("GET", "/v1/images"): "read",
    ("GET", "/v1/adapters"): "read",
    ("PUT", "/v1/adapters/{name}"): "submit",
    ("DELETE", "/v1/adapters/{name}"): "submit",
    ("POST", "/v1/uploads"): "submit",
    ("GET", "/v1/uploads/{sha256}"): "read",
    ("GET", "/v1/models"): "read",
    ("GET", "/v1/usage"): "read",
    ("GET", "/v1/caller"): "read",
    ("GET", "/v1/keys"): "admin",
    ("POST", "/v1/keys"): "admin",
    ("DELETE", "/v1/keys/{key_id}"): "admin",
    ("GET", "/v1/slots"): "read",
    ("GET", "/v1/queue"): "read",
    ("GET", "/metrics"): "admin",
    ("GET", "/health"): None,
    ("GET", "/ready"): None,
}
PATH = "/v1/requests/x/cancel"
# The console's page and the reference, which have no data of anybody.
PAGES = {"/", "/console", "/docs", "/docs/start.js", "/docs/files", "/redoc", "/openapi.json"}


def make_app(**api):
    return create_app(Settings(storage={"backend": "directory"}, api=api))


def walk(routes):
    """Every route, also those of included routers, which FastAPI does not copy."""
    for route in routes:
        router = getattr(route, "original_router", None)
        yield from walk(router.routes) if router else [route]


def calls(dependant):
    yield dependant.call
    for inner in dependant.dependencies:
        yield from calls(inner)


def test_every_route_declares_the_role_that_it_needs():
    found = {}
    for route in walk(make_app().routes):
        if route.path in PAGES:
            continue
        assert isinstance(route, APIRoute), route.path
        declared = [ROLE_OF[call] for call in calls(route.dependant) if call in ROLE_OF]
        assert len(declared) == 1, f"{route.path} declares no role; add one of api.doors.roles to its signature"
        found |= {(method, route.path): declared[0] for method in route.methods}

    assert found == ROLES


def test_the_pages_and_the_metrics_can_be_switched_off():
    paths = {route.path for route in walk(make_app(docs=False, console=False, metrics="off").routes)}

    assert not paths & (PAGES | {"/metrics"})


def guard(**api):
    return OriginGuard(Settings(api=api).api)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "localhost", "LOCALHOST:8000", "localhost.:80", "[::1]:8000", "10.0.0.7", "flux.example:443"],
)
def test_addresses_and_the_names_of_the_api_are_its_hosts(host):
    guard(base_url="https://flux.example/").check_host(Headers({"host": host}))


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example:8000",
        "",
        "[::1",
        "user@localhost@x",
    ],
)
def test_another_name_is_refused(host):
    with pytest.raises(SenderRefused, match="FLUX2_API_ALLOWED_HOSTS"):
        guard(base_url="https://flux.example/").check_host(Headers({"host": host}))


@pytest.mark.parametrize("hostname", ["GPU-Box", "gpu-box.lan.example"])
def test_the_own_name_of_the_host_is_its_host(hostname, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: hostname)

    for host in (f"{hostname}:8000", "gpu-box:8000", "gpu-box.local"):
        guard().check_host(Headers({"host": host}))
    with pytest.raises(SenderRefused):
        guard().check_host(Headers({"host": "gpu-box.evil.example"}))


def test_the_operator_can_list_names():
    listed = guard(allowed_hosts="api,*.gpu.lan")

    for host in ("api:8000", "a.gpu.lan"):
        listed.check_host(Headers({"host": host}))
    with pytest.raises(SenderRefused):
        listed.check_host(Headers({"host": "gpu.lan"}))


def test_two_hosts_are_refused():
    with pytest.raises(SenderRefused):
        guard().check_host(Headers(raw=[(b"host", b"localhost"), (b"host", b"evil.example")]))


def test_a_program_without_browser_headers_comes_in():
    for method in ("GET", "POST", "PUT", "DELETE"):
        guard().check_sender(method, PATH, Headers({"host": "localhost:8000"}))


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-origin", "origin": "http://localhost:8000"},
        {"sec-fetch-site": "none"},
        {"origin": "https://localhost:8000"},
        # A proxy replaced the host after the browser had compared it.
        {"sec-fetch-site": "same-origin", "origin": "https://flux.example"},
        {"sec-fetch-site": "cross-site", "origin": "https://console.example"},
    ],
)
def test_pages_of_the_api_and_listed_ones_come_in(headers):
    guard(cors_origins="https://console.example").check_sender(
        "POST", PATH, Headers({"host": "localhost:8000", **headers})
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        # Another port of this host is of the same site.
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
        {"origin": "https://evil.example"},
        {"origin": "http://localhost:3000"},
        {"origin": "http://localhost:8000.evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_a_page_of_another_site_is_refused(headers, method):
    with pytest.raises(SenderRefused, match="web page of another site"):
        guard().check_sender(method, PATH, Headers({"host": "localhost:8000", **headers}))


def test_a_person_may_follow_a_link_but_a_page_may_not_post_a_form():
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}

    guard().check_sender("GET", PATH, Headers({"host": "localhost:8000", **link}))
    with pytest.raises(SenderRefused):
        guard().check_sender("POST", PATH, Headers({"host": "localhost:8000", **link}))


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_a_form_can_send_is_refused(kind):
    headers = Headers({"host": "localhost:8000", "content-type": kind})

    with pytest.raises(ContentTypeRefused, match="application/json"):
        guard().check_sender("POST", PATH, headers)
    guard().check_sender("GET", PATH, headers)


def test_pages_of_listed_origins_may_send_every_header_that_the_calls_take():
    app = make_app(cors_origins="https://page.example")
    calls = [call for path in app.openapi()["paths"].values() for call in path.values()]
    taken = {field["name"] for call in calls for field in call.get("parameters", ()) if field["in"] == "header"}
    # Only a proxy names tenants.
    asked = {
        "Origin": "https://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": ", ".join(taken - {"x-tenant"}),
    }

    async def ask():
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as http:
            return await http.options("/v1/inference", headers=asked)

    assert "prefer" in taken
    assert anyio.run(ask).status_code == 200


def test_a_defect_is_answered_with_the_headers_of_every_answer(monkeypatch):
    async def fail(keyring):
        raise RuntimeError("a secret path")

    async def get(app):
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as http:
            return await http.get("/v1/models", headers={"Origin": "https://page.example"})

    monkeypatch.setattr(Keyring, "has_keys", fail)
    answer = anyio.run(get, make_app(cors_origins="https://page.example"))

    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    assert {"x-content-type-options", "x-frame-options", "content-security-policy", "cache-control"} <= {
        *answer.headers
    }
