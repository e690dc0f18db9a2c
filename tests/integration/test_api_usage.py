"""GET /v1/usage, the metrics and the command over real HTTP: who sees what, in which form, at which price."""

import asyncio
import csv
import io
import json

import pytest
from typer.testing import CliRunner

from api.routes import usage as route
from flux2_client import Client
from flux2_client.commands import app
from shared.job import AdapterRef
from shared.ledger import Submission

POOLS = ("flux2",)
STEPS = 64 * 64 * 2


@pytest.fixture
def use(api, item, make_result):
    """Render an image of a tenant, and then fail to render another one."""

    def render(tenant="default", *, key_id="", adapter="", gpu_s=1.5):
        adapters = (AdapterRef(path=adapter, sha256="00", size_bytes=1, multiplier=1),) if adapter else ()
        job = f"{tenant}-{key_id}-{adapter}-{api.ledger.now_ms()}"
        items = [item(adapters=adapters)] * 2
        api.ledger.accept_all([Submission(job, items, record={}, tenant=tenant, key_id=key_id)])
        for outcome in (make_result(), None):
            claim = api.ledger.claim_next(POOLS, slot="test", boot="test", warm="base")
            api.ledger.commit(claim, outcome, gpu_s=gpu_s)

    return render


@pytest.fixture
def priced(api):
    """Prices for the served API."""

    def put(**prices):
        settings = api.settings.model_copy(
            update={"price": type(api.settings.price)(currency="EUR", **prices)},
        )
        object.__setattr__(api.services, "settings", settings)

    return put


def test_usage_is_summed_up_by_the_columns_that_are_asked_for(api, use):
    use("studio", key_id="0123456789ab", adapter="a.safetensors")
    use("studio")
    use("lab", adapter="a.safetensors")

    by_day = api.http.get("/v1/usage").json()
    by_all = api.http.get("/v1/usage?group_by=adapter,model,key,tenant").json()
    of_lab = api.http.get("/v1/usage?group_by=tenant&tenant=lab").json()

    today = api.ledger.usage.today()
    one = {"images": 1, "megapixel_steps": STEPS / 1e6, "gpu_s": 1.5, "wasted_gpu_s": 1.5}
    three = {name: 3 * value for name, value in one.items()}
    assert by_day["data"] == [{"day": str(today), **three}]
    assert (by_day["first_day"], by_day["last_day"]) == (str(today.replace(day=1)), str(today))
    assert by_day["total"] == three
    # In the order of the columns, whatever the order of the parameter is.
    assert by_all["data"] == [
        {"tenant": "lab", "key": "none", "model": "flux2", "adapter": "a.safetensors", **one},
        {"tenant": "studio", "key": "0123456789ab", "model": "flux2", "adapter": "a.safetensors", **one},
        {"tenant": "studio", "key": "none", "model": "flux2", "adapter": "base", **one},
    ]
    assert of_lab["data"] == [{"tenant": "lab", **one}]


def test_days_without_usage_have_no_rows(api, use):
    use()

    answer = api.http.get("/v1/usage?from=2020-01-01&to=2020-12-31").json()

    assert answer["data"] == []
    assert answer["total"] == {"images": 0, "megapixel_steps": 0, "gpu_s": 0, "wasted_gpu_s": 0}


def test_a_tenant_sees_its_own_usage_and_an_admin_that_of_all(api, use, make_key):
    use("studio")
    use("lab")
    studio, admin = make_key(tenant="studio"), make_key(tenant="studio", roles=["admin"])
    path = "/v1/usage?group_by=tenant"

    def tenants(path, key):
        return [line["tenant"] for line in api.http.get(path, headers=key).json()["data"]]

    assert tenants(path, studio) == tenants(f"{path}&tenant=studio", studio) == ["studio"]
    assert tenants(path, admin) == ["lab", "studio"]
    assert tenants(f"{path}&tenant=lab", admin) == ["lab"]
    for other in ("lab", "nobody"):
        refused = api.http.get(f"{path}&tenant={other}", headers=studio)
        assert (refused.status_code, refused.json()["code"]) == (403, "FORBIDDEN")
    assert api.http.get(path, headers=make_key(roles=["submit"])).status_code == 403
    assert api.http.get(path).status_code == 401


def test_prices_put_an_exact_cost_on_each_row_and_waste_costs_nothing(api, use, priced):
    use("studio", gpu_s=1.2)
    use("lab", gpu_s=2.4)
    priced(gpu_hour="0.1", image="0.02", megapixel_step="0.000001")

    answer = api.http.get("/v1/usage?group_by=tenant").json()

    # 2.4 s x 0.1 / 3600 = 0.0000667, 1.2 s: 0.0000333, and 0.008192 megapixel-steps: 0.000000008.
    assert [(line["tenant"], line["cost"]) for line in answer["data"]] == [("lab", "0.020067"), ("studio", "0.020033")]
    assert (answer["total"]["cost"], answer["currency"]) == ("0.040100", "EUR")


def test_csv_has_the_same_rows_and_no_cell_that_a_spreadsheet_runs(api, use, priced):
    use("studio", adapter="=HYPERLINK(1),x.safetensors")
    priced(image="1")

    answer = api.http.get("/v1/usage?group_by=tenant,adapter&format=csv")

    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "usage-" in answer.headers["content-disposition"]
    assert list(csv.reader(io.StringIO(answer.text))) == [
        ["tenant", "adapter", "images", "megapixel_steps", "gpu_s", "wasted_gpu_s", "cost", "currency"],
        ["studio", "'=HYPERLINK(1),x.safetensors", "1", str(STEPS / 1e6), "1.5", "1.5", "1.000000", "EUR"],
    ]


def runs_in_event_loop():
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def test_a_long_report_is_written_while_the_api_answers_others(api, use, monkeypatch):
    use("studio")
    is_in_loop = []

    def watched(write):
        def call(report):
            is_in_loop.append(runs_in_event_loop())
            return write(report)

        return call

    monkeypatch.setattr(route, "write_csv", watched(route.write_csv))
    monkeypatch.setattr(route.UsageReport, "model_dump_json", watched(route.UsageReport.model_dump_json))

    for form in ("csv", "json"):
        assert api.http.get(f"/v1/usage?format={form}").status_code == 200

    assert is_in_loop == [False, False]


ACCEPTS = {
    "text/csv": "text/csv",
    "text/csv, application/json;q=0.5": "text/csv",
    "*/*": "application/json",
    "text/csv;q=0.1, */*": "application/json",
    "text/csv;q=much": "application/json",
    "text/html,application/xhtml+xml,*/*;q=0.8": "application/json",
}


def test_the_header_accept_chooses_the_form_unless_the_url_does(api):
    for accept, kind in ACCEPTS.items():
        answer = api.http.get("/v1/usage", headers={"Accept": accept})
        asked = api.http.get("/v1/usage?format=json", headers={"Accept": accept})

        assert answer.headers["content-type"].partition(";")[0] == kind, accept
        assert asked.headers["content-type"] == "application/json"


QUERIES = [
    ("from=2026-13-01", 422, "from"),
    ("from=1700000000", 422, "write a day like 2026-01-31"),
    ("to=2026-1-1", 422, "write a day like 2026-01-31"),
    ("group_by=day,week", 422, "there is no column 'week'; use some of day, tenant, key, model, adapter"),
    ("group_by=", 422, "there is no column"),
    ("format=xml", 422, "format"),
    ("tenant=a/b", 422, "tenant"),
    ("from=2026-02-01&to=2026-01-01", 400, "choose an earlier from or a later to"),
    # Of a day to come.
    ("from=9999-01-01", 400, "choose an earlier from or a later to"),
    ("from=0001-01-01", 400, "ask for fewer"),
    ("to=0001-01-01", 200, ""),
    ("to=9999-12-31", 200, ""),
]


def test_parameters_that_make_no_sense_are_refused_with_what_to_do(api):
    for query, status, words in QUERIES:
        answer = api.http.get(f"/v1/usage?{query}")

        assert answer.status_code == status, (query, answer.text)
        assert words in answer.text, query
        # The words of a library, which say nothing.
        assert "Value error" not in answer.text, query


def test_the_metrics_count_usage_by_tenant_and_model(api, use):
    use("studio")
    use("studio", adapter="a.safetensors")

    lines = api.http.get("/metrics").text.splitlines()

    labels = '{model="flux2",tenant="studio"}'
    for line in (
        f"flux2_images_total{labels} 2.0",
        f"flux2_megapixel_steps_total{labels} {2 * STEPS / 1e6}",
        f"flux2_gpu_seconds_total{labels} 3.0",
        f"flux2_wasted_gpu_seconds_total{labels} 3.0",
    ):
        assert line in lines


def test_the_client_and_the_command_show_the_same(api, use, priced):
    use("studio", adapter="a.safetensors")
    priced(image="2")

    def flux2(*arguments):
        done = CliRunner().invoke(app, ["usage", *arguments, "--url", api.url])
        assert done.exit_code == 0, done.stderr
        return done.stdout

    today = str(api.ledger.usage.today())
    with Client(api.url) as client:
        used = client.usage(first_day=today, last_day=today, group_by=["tenant", "adapter"], tenant="studio")

    [line] = used.data
    assert (line.tenant, line.adapter, line.day, line.images, line.cost) == (
        "studio",
        "a.safetensors",
        None,
        1,
        "2.000000",
    )
    assert json.loads(flux2("--by", "tenant, adapter", "--json"))["data"] == [line.model_dump(exclude_none=True)]
    assert flux2("--by", "tenant", "--csv").splitlines()[1].startswith("studio,1,0.008192,1.5,1.5,2.000000,EUR")
    header, row, total = flux2("--from", today, "--to", today).splitlines()
    assert header.split() == ["day", "images", "megapixel-steps", "GPU", "s", "wasted", "GPU", "s", "EUR"]
    assert row.split() == [today, "1", "0.008", "1.500", "1.500", "2.000000"]
    assert total.split() == ["total", "1", "0.008", "1.500", "1.500", "2.000000"]
    refused = CliRunner().invoke(app, ["usage", "--by", "week", "--url", api.url])
    assert refused.exit_code == 1
