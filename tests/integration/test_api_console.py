"""The console's page and files, and what they may load."""

import re
from urllib.parse import urlsplit

import pytest

from api.routes import console


def policy_of(answer):
    directives = (text.strip().split(" ") for text in answer.headers["content-security-policy"].split(";"))
    return {name: set(sources) for name, *sources in directives}


def test_the_page_loads_files_of_this_api_and_images_of_the_object_store_only(api):
    answer = api.http.get("/")

    assert answer.headers["content-type"].startswith("text/html")
    policy = policy_of(answer)
    assert policy["default-src"] == {"'self'"}
    store = urlsplit(api.services.store.url("results/any", expires_s=60))
    assert policy["img-src"] == {"'self'", "data:", "blob:", f"{store.scheme}://{store.netloc}"}
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"<style|style=|<script>| on\w+=", answer.text)


def test_every_file_that_the_page_names_exists_and_is_asked_for_again(api):
    addresses = re.findall(r'(?:href|src)="(console/[^"]+)"', api.http.get("/").text)

    assert addresses
    for address in addresses:
        answer = api.http.get(f"/{address}")
        assert answer.status_code == 200, address
        assert answer.headers["cache-control"] == "no-cache"
        again = api.http.get(f"/{address}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/console/nothing.js", "/console/../app.py", "/console/%2e%2e/index.html"])
def test_nothing_but_the_consoles_files_is_served(path, api):
    answer = api.http.get(path)

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_page_names_every_module_that_all_views_share(api):
    folder = console._FOLDER / "files"
    modules = [*folder.glob("vendor/*.js"), *folder.glob("core/*.js")]

    named = re.findall(r'rel="modulepreload" href="([^"]+)"', api.http.get("/").text)

    assert sorted(named) == sorted(f"console/{file.relative_to(folder)}" for file in modules)


def test_files_of_pages_are_compressed_and_data_is_not(api):
    sizes = {}
    for path in ("/console/main.js", "/openapi.json", "/v1/models"):
        answer = api.http.get(path, headers={"Accept-Encoding": "gzip"})
        sizes[path] = (answer.headers.get("content-encoding"), answer.num_bytes_downloaded < len(answer.content) / 2)

    assert sizes == {
        "/console/main.js": ("gzip", True),
        "/openapi.json": ("gzip", True),
        "/v1/models": (None, False),
    }
    plain = api.http.get("/console/main.js", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers


def test_the_caller_of_an_api_without_keys_may_do_everything(api):
    assert api.http.get("/v1/caller").json() == {
        "tenant": "default",
        "roles": ["submit", "read", "admin"],
        "key_id": None,
        "is_anonymous": True,
    }


def test_the_caller_with_a_key_is_its_tenant_with_its_roles(api, make_key):
    key = make_key(tenant="studio", roles=["read"])

    caller = api.http.get("/v1/caller", headers=key).json()

    assert (caller["tenant"], caller["roles"], caller["is_anonymous"]) == ("studio", ["read"], False)
    assert caller["key_id"] == key["Authorization"].split("_")[1]
