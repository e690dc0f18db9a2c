"""Dashboard, alerts and reference name the metrics that exist, and Prometheus' own tool accepts them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from api.metrics.collector import LedgerCollector
from shared.job import ItemError
from shared.ledger import Ledger
from shared.metrics.batches import Batches
from shared.metrics.definitions import COUNTERS, HISTOGRAMS
from shared.metrics.tally import Tally
from shared.settings import QueueSettings

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "flux2.json").read_text())
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
REFERENCE = (ROOT / "docs" / "reference" / "metrics.md").read_text()

# A selector is a name and perhaps matchers; the labels of a matcher, and those of an aggregation or a join.
SELECTOR = re.compile(r"\b(flux2_\w+)(\{[^}]*\})?")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
# Labels that Prometheus adds.
SCRAPED = {"instance", "pod"}
ROW = re.compile(r"^\| `(flux2_\w+)` \| (\w+) \| ([\w, ]*?) ?\|", re.MULTILINE)


@pytest.fixture(scope="module")
def promtool():
    found = shutil.which("promtool") or shutil.which("promtool", path=Path(sys.executable).parent)
    if found is None:
        pytest.skip("no promtool here; `make promtool` fetches it on Debian and Ubuntu")
    return lambda *arguments, **options: subprocess.run(
        [found, *arguments], check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


@pytest.fixture
def answer(redis_client, item, make_result, slot_report):
    """The text of /metrics after each kind of event has happened."""
    ledger = Ledger(redis_client, QueueSettings())

    def claim():
        return ledger.claim_next(["flux2"], slot="gpu-0", boot="boot", warm="base")

    ledger.accept("job", [item()] * 5, record={})
    ledger.commit(claim(), make_result(), gpu_s=1)
    ledger.release(claim(), "retry", ItemError(code="run_failed", message="it broke", retryable=True))
    claim()
    tally = Tally()
    for counter in COUNTERS:
        tally.count(counter, *counter.labels)
    for histogram in HISTOGRAMS:
        tally.observe(histogram, 0.5, *histogram.labels)
    load = {"memory_bytes": "80", "gpu_memory_used_bytes": "70", "gpu_utilization": "0.97"}
    ledger.workers.beat("gpu-0", slot_report(**load), batch=Batches(tally).next())
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LedgerCollector(ledger, most_slots=1))
    return generate_latest(registry).decode()


@pytest.fixture
def labels_of(answer):
    """The labels of each series by its name."""
    labels = {}
    for family in text_string_to_metric_families(answer):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


def expressions():
    """Return each expression of the dashboard and the alerts by the title of what shows it."""
    panels = {
        f"{panel['title']}, {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    }
    alerts = {rule["alert"]: rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]}
    return panels | alerts


def test_every_metric_and_label_of_dashboard_and_alerts_exists(labels_of):
    wrong = []
    for title, expression in expressions().items():
        known = set()
        for name, matchers in SELECTOR.findall(expression):
            present = labels_of.get(name)
            if present is None:
                wrong.append(f"{title}: there is no {name}")
                continue
            known |= present
            wrong += [f"{title}: {name} has no {label}" for label in MATCHER.findall(matchers) if label not in present]
        grouped = {label.strip() for labels in GROUPING.findall(expression) for label in labels.split(",")} - SCRAPED
        wrong += [f"{title}: no metric has {label}" for label in grouped - known]

    assert len(expressions()) > 50
    assert wrong == []


def test_a_legend_names_only_labels_that_the_expression_keeps():
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            kept = {label.strip() for labels in GROUPING.findall(target["expr"]) for label in labels.split(",")}
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert named <= kept | {"slot"}, panel["title"]


def test_the_dashboard_shows_every_metric():
    shown = {name for expression in expressions().values() for name, _ in SELECTOR.findall(expression)}
    families = {re.sub("_(bucket|count|sum)$", "", name) for name in shown}

    assert {name for name, *_ in ROW.findall(REFERENCE)} - families == set()


def test_the_reference_lists_every_metric_with_its_type_and_labels(answer):
    exposed = {}
    for family in text_string_to_metric_families(answer):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        exposed[name] = (family.type, labels)
    listed = {name: (kind, set(filter(None, labels.split(", ")))) for name, kind, labels in ROW.findall(REFERENCE)}

    assert listed == exposed


def test_panels_have_their_own_places_and_ids():
    panels = DASHBOARD["panels"]
    cells = [
        (column, line)
        for place in (panel["gridPos"] for panel in panels)
        for column in range(place["x"], place["x"] + place["w"])
        for line in range(place["y"], place["y"] + place["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(cells)) == len(cells)
    assert max(column for column, _ in cells) < 24


def test_prometheus_accepts_the_configuration_and_the_alerts_do_what_their_tests_say(promtool):
    for arguments in (
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint-fatal", "alerts.yml"),
        ("test", "rules", "alerts.test.yml"),
    ):
        done = promtool(*arguments, cwd=PROMETHEUS)
        assert done.returncode == 0, done.stdout


def test_every_alert_is_tested_and_says_what_to_do():
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    tests = (PROMETHEUS / "alerts.test.yml").read_text()

    assert rules
    for rule in rules:
        assert f'alertname="{rule["alert"]}"' in tests
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_prometheus_can_evaluate_each_panel(promtool, tmp_path):
    # Grafana replaces these.
    variables = {"$__rate_interval": "1m", "$__range": "6h", "$model": ".*"}
    rules = []
    for number, expression in enumerate(expressions().values()):
        for name, value in variables.items():
            expression = expression.replace(name, value)
        rules.append({"record": f"panel_{number}", "expr": expression})
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))

    done = promtool("check", "rules", "panels.yml", cwd=tmp_path)

    assert done.returncode == 0, done.stdout


def test_prometheus_finds_no_fault_in_the_metrics(promtool, answer):
    done = promtool("check", "metrics", input=answer)

    assert (done.returncode, done.stdout) == (0, "")


def test_no_sum_counts_the_fleet_once_for_each_api_process():
    for title, expression in expressions().items():
        sums = re.findall(r"\b(?:sum|avg|count)(?: by \([^)]*\))? ?\((.{27})", expression)
        assert all(part.startswith("max without (instance, pod)") for part in sums), title
