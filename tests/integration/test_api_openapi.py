"""The reference that the API serves is as its answers are, and needs no other host."""

import re
from pathlib import Path
from urllib.parse import unquote, urljoin

import jsonschema_rs
import pytest

from api.app import create_app
from shared.settings import Settings

PROBLEM = {"$ref": "#/components/schemas/Problem"}
PROBLEM_TYPE = "application/problem+json"


@pytest.fixture(scope="module")
def document():
    return create_app(Settings(_env_file=None)).openapi()


def operations(document):
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_every_operation_documents_its_errors_as_problem_details(document):
    for name, operation in operations(document).items():
        errors = {status: body["content"] for status, body in operation["responses"].items() if status[0] in "45d"}
        if name[1].startswith("/v1/images/"):
            openais = {"$ref": "#/components/schemas/OpenAIError"}
            assert all(error == {"application/json": {"schema": openais}} for error in errors.values()), name
            continue

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


def test_a_refused_method_names_all_methods_of_the_path(api, document):
    for path, methods in document["paths"].items():
        answer = api.http.request("PATCH", path.replace("{", "").replace("}", ""))

        assert answer.status_code == 405, path
        documented = {method.upper() for method in methods}
        assert set(answer.headers["Allow"].split(", ")) - {"HEAD"} == documented, path


def test_each_link_names_an_operation_and_its_parameters(document):
    links = [
        (link, name)
        for name, operation in operations(document).items()
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    ]

    assert len(links) >= 12
    for link, name in links:
        _, paths, place, method = link["operationRef"].split("/")
        path = unquote(place).replace("~1", "/").replace("~0", "~")
        target = operations(document)[method.upper(), path]
        assert paths == "paths"
        assert set(link["parameters"]) <= {parameter["name"] for parameter in target["parameters"]}, name


def test_no_parameter_can_be_null(document):
    for name, operation in operations(document).items():
        for parameter in operation.get("parameters", []):
            assert "null" not in str(parameter["schema"]), (name, parameter["name"])


def test_the_rules_that_no_schema_states_have_codes_of_the_reference(document):
    reference = Path("docs/reference/errors.md").read_text(encoding="utf-8")
    rules = [rule for operation in operations(document).values() for rule in operation.get("x-rules", {}).items()]

    assert len(rules) >= 20
    for code, sentence in rules:
        assert f"### {code}\n" in reference
        assert sentence.endswith(".")


def test_the_schema_of_a_request_allows_what_the_api_accepts(api, document):
    schema = {"$ref": "#/components/schemas/InferenceRequest", "components": document["components"]}
    validator = jsonschema_rs.validator_for(schema)
    cases = [
        ({}, 202),
        ({"prompts": [{"prompt": "a", "seed": 2**63 - 1}]}, 202),
        ({"prompts": [{"prompt": "a", "seed": 2**63}]}, 422),
        ({"engine": "fast"}, 202),
        ({"engine": "fast", "adapter_mode": None}, 202),
        ({"engine": "fast", "adapter_mode": "live"}, 400),
        ({"model": "sd15"}, 400),
        ({"trigger_word": "a\0"}, 422),
        ({"loras": [{"path": "a\0"}]}, 422),
    ]

    for change, status in cases:
        body = {"model": "flux2", "prompts": [{"prompt": "a"}], "loras": []} | change
        assert validator.is_valid(body) == (status == 202), change
        assert api.http.post("/v1/inference", json=body).status_code == status, change
