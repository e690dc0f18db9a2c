"""The reference that the API serves is as its answers are, and needs no other host."""

import re
from urllib.parse import urljoin

import pytest

PROBLEM = {"$ref": "#/components/schemas/Problem"}
PROBLEM_TYPE = "application/problem+json"


@pytest.fixture
def document(api):
    return api.http.get("/openapi.json").json()


def operations(document):
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_every_operation_documents_its_errors_as_problem_details(document):
    for name, operation in operations(document).items():
        errors = {status: body["content"] for status, body in operation["responses"].items() if status[0] in "45d"}

        assert errors["default"] == {PROBLEM_TYPE: {"schema": PROBLEM}}, name
        for status, content in errors.items():
            # Not ready is the same report as ready.
            expected = ["application/json"] if (name, status) == (("GET", "/ready"), "503") else [PROBLEM_TYPE]
            assert list(content) == expected, (name, status)
    assert "HTTPValidationError" not in document["components"]["schemas"]


@pytest.mark.parametrize(
    ("method", "path", "request_options", "status"),
    [
        ("GET", "/v1/requests/nothing", {}, 404),
        ("GET", "/v1/requests?limit=0", {}, 422),
        ("POST", "/v1/inference", {"json": {}}, 422),
        ("POST", "/v1/inference", {"content": "{", "headers": {"Content-Type": "application/json"}}, 400),
        # As `curl -d` sends it.
        ("POST", "/v1/inference", {"data": {"model": "flux2"}}, 415),
        ("PUT", "/v1/inference", {}, 405),
        ("GET", "/v1/adapters?path=/etc/passwd", {}, 422),
    ],
)
def test_an_error_is_sent_as_it_is_documented(method, path, request_options, status, api, document):
    answer = api.http.request(method, path, **request_options)

    assert answer.status_code == status
    assert answer.headers["Content-Type"] == PROBLEM_TYPE
    problem = document["components"]["schemas"]["Problem"]
    assert set(problem["required"]) <= set(answer.json()) <= set(problem["properties"])
    if status == 415:
        assert "content-type" in answer.json()["detail"]


def test_the_media_type_of_each_success_is_documented(api, document):
    for path in ("/health", "/ready", "/metrics", "/v1/models", "/v1/requests"):
        answer = api.http.get(path)
        documented = operations(document)["GET", path]["responses"][str(answer.status_code)]["content"]

        assert list(documented) == [answer.headers["Content-Type"].partition(";")[0]], path


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_load_everything_from_the_api_itself(page, api):
    html = api.http.get(page)

    assert html.status_code == 200
    assert html.headers["Content-Type"].startswith("text/html")
    addresses = re.findall(r'(?:src|href|spec-url)="([^"]*)"', html.text)
    assert len(addresses) >= 3
    for address in addresses:
        assert "//" not in address
        answer = api.http.get(urljoin(page, address))
        assert answer.status_code == 200, address
        assert len(answer.content) > 100
    assert re.search(r"<script>|<style|https?:", html.text) is None


def test_the_page_of_forms_reads_the_document_of_this_api(api):
    script = api.http.get("/docs/start.js")

    assert script.headers["Content-Type"].startswith("text/javascript")
    [address] = re.findall(r'url: "([^"]*)"', script.text)
    assert api.http.get(urljoin("/docs", address)).json()["info"]["title"] == "flux2-queue"


def test_a_missing_file_of_the_pages_is_a_problem_like_any_other(api):
    answer = api.http.get("/docs/files/nothing.js")

    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == PROBLEM_TYPE
