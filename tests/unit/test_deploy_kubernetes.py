"""What `kubectl kustomize` makes of deploy/kubernetes: valid for Kubernetes, hardened, and consistent with the code."""

import functools
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from api.metrics.items import collect_items
from shared.catalog import MODELS
from shared.ledger.backlog import PoolLoad
from shared.local import environment
from shared.settings import WorkerSettings
from worker.consumer import drain, slot_health
from worker.fleet import supervisor

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ["production", "trial", "whole-hosts"]
# The oldest version that the files are for, and the newest that the package knows.
OLDEST, NEWEST = "1.31", kubernetes_validate.latest_version()
# Their schemas are not part of Kubernetes.
CUSTOM_KINDS = {"ScaledObject"}


@functools.cache
def render(overlay):
    """Return the objects of an overlay."""
    command = [Path(sys.executable).with_name("kubectl"), "kustomize", FOLDER / "overlays" / overlay]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # Kustomize warns of fields that a later version drops.
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def of_kind(overlay, *kinds):
    return [one for one in render(overlay) if one["kind"] in kinds]


def name_of(one):
    return f"{one['kind']}/{one['metadata']['name']}"


def workloads(overlay):
    return of_kind(overlay, "Deployment", "StatefulSet")


def pod_of(workload):
    return workload["spec"]["template"]["spec"]


def container_of(workload):
    [container] = pod_of(workload)["containers"]
    return container


def workers(overlay):
    return [one for one in workloads(overlay) if container_of(one)["name"] == "worker"]


def variables_of(container):
    return {one["name"]: one.get("value") for one in container["env"]}


def labels_of(workload):
    return workload["spec"]["template"]["metadata"]["labels"]


def selects(selector, labels):
    rules = selector.get("matchExpressions", [])
    assert all(rule["operator"] == "In" for rule in rules)
    wanted = selector.get("matchLabels", {})
    return wanted.items() <= labels.items() and all(labels.get(rule["key"]) in rule["values"] for rule in rules)


@pytest.mark.parametrize(("overlay", "version"), [*((overlay, NEWEST) for overlay in OVERLAYS), ("production", OLDEST)])
def test_every_object_has_the_fields_that_kubernetes_knows(overlay, version):
    for one in render(overlay):
        if one["kind"] not in CUSTOM_KINDS:
            kubernetes_validate.validate(one, version, strict=True)


def test_every_overlay_is_tested():
    assert sorted(folder.name for folder in (FOLDER / "overlays").iterdir()) == OVERLAYS


class _Known(BaseModel):
    """Fields of KEDA that these files use, written by hand: no package has KEDA's own schema."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PrometheusQuery(_Known):
    serverAddress: str
    query: str
    # All texts, for every kind of trigger.
    threshold: str
    ignoreNullValues: Literal["true", "false"]


class Trigger(_Known):
    type: Literal["prometheus"]
    name: str
    metricType: Literal["AverageValue"]
    metadata: PrometheusQuery


class Target(_Known):
    apiVersion: Literal["apps/v1"]
    kind: Literal["StatefulSet"]
    name: str


class Fallback(_Known):
    failureThreshold: int
    replicas: int
    behavior: Literal["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]


class ScaledObjectSpec(_Known):
    scaleTargetRef: Target
    pollingInterval: int
    cooldownPeriod: int
    minReplicaCount: int
    maxReplicaCount: int
    fallback: Fallback
    # Its part `behavior` is that of Kubernetes' HorizontalPodAutoscaler; see `as_autoscaler`.
    advanced: dict[str, Any]
    triggers: list[Trigger]


def scaled_objects():
    return [(one, ScaledObjectSpec.model_validate(one["spec"])) for one in of_kind("production", "ScaledObject")]


def test_scaled_objects_have_the_fields_that_keda_knows():
    scaled = scaled_objects()

    assert len(scaled) == 2
    for one, spec in scaled:
        assert one["apiVersion"] == "keda.sh/v1alpha1"
        # KEDA makes such an autoscaler of it.
        autoscaler = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "keda"},
            "spec": {
                "scaleTargetRef": spec.scaleTargetRef.model_dump(),
                "maxReplicas": spec.maxReplicaCount,
                "behavior": spec.advanced["horizontalPodAutoscalerConfig"]["behavior"],
            },
        }
        kubernetes_validate.validate(autoscaler, NEWEST, strict=True)


def test_a_scaled_object_owns_the_number_of_pods_of_the_workers_whose_model_it_counts():
    by_name = {one["metadata"]["name"]: one for one in workers("production")}

    assert {spec.scaleTargetRef.name for _, spec in scaled_objects()} == set(by_name)
    for _, spec in scaled_objects():
        worker = by_name[spec.scaleTargetRef.name]
        # `kubectl apply` would set it back each time.
        assert "replicas" not in worker["spec"]
        model = variables_of(container_of(worker)).get("FLUX2_MODEL_ID", "flux2")
        queries = " ".join(trigger.metadata.query for trigger in spec.triggers)
        assert model in MODELS
        assert set(re.findall(r'model="(\w+)"', queries)) == {model}


def test_scaling_in_leaves_a_pod_for_each_busy_slot_and_nothing_scales_without_figures():
    for _, spec in scaled_objects():
        items, busy = (trigger.metadata for trigger in spec.triggers)

        # Queued and running items: a claim moves an item and changes no sum.
        assert "state=" not in items.query
        assert int(items.threshold) > 1
        assert re.search(r'flux2_slots\{model="\w+", state="busy"\}', busy.query)
        assert int(busy.threshold) == container_gpus(spec.scaleTargetRef.name) == 1
        # A Prometheus without figures of the API answers nothing: an error, of which the number of pods stays.
        assert {items.ignoreNullValues, busy.ignoreNullValues} == {"false"}
        assert spec.fallback.behavior == "currentReplicas"


def container_gpus(name):
    [worker] = [one for one in workers("production") if one["metadata"]["name"] == name]
    return int(container_of(worker)["resources"]["limits"]["nvidia.com/gpu"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_meets_the_restricted_standard_and_cannot_write_to_itself(overlay):
    assert len(workloads(overlay)) >= 4
    for workload in workloads(overlay):
        pod = pod_of(workload)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all("hostPath" not in volume for volume in pod.get("volumes", []))
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["requests"], name_of(workload)
    [namespace] = of_kind(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_variable_that_kubernetes_adds_for_a_service_can_become_a_setting(overlay):
    added = {f"{one['metadata']['name']}_PORT".upper().replace("-", "_") for one in of_kind(overlay, "Service")}

    # The reason: this one would be the API's port, with a value such as tcp://10.0.0.7:80.
    assert "FLUX2_API_PORT" in added
    assert all(pod_of(workload)["enableServiceLinks"] is False for workload in workloads(overlay))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_has_the_time_to_finish_or_hand_over_its_items(overlay):
    assert workers(overlay)
    for worker in workers(overlay):
        drain_s = float(variables_of(container_of(worker))["FLUX2_WORKER_DRAIN_S"])
        # A supervisor waits for its slots, and a slot alone for Celery.
        longest_s = drain_s + max(supervisor._GRACE_S, drain._CLOSE_S)
        assert pod_of(worker)["terminationGracePeriodSeconds"] >= longest_s + 5
        # Long enough to finish an item: scaling in takes the pods with the highest numbers, busy or not.
        assert drain_s > WorkerSettings().stall_s


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_probes_of_a_worker_read_the_heartbeats_of_all_its_slots(overlay, tmp_path, capsys):
    for worker in workers(overlay):
        container = container_of(worker)
        folder = variables_of(container)["FLUX2_WORKER_HEALTH_DIR"]
        slots = container["resources"].get("limits", {}).get("nvidia.com/gpu", "1")
        commands = {name: container[f"{name}Probe"]["exec"]["command"] for name in ("startup", "readiness", "liveness")}

        assert folder.startswith(tuple(mount["mountPath"] for mount in container["volumeMounts"]))
        # The startup probe waits for one slot: a broken GPU must not restart the others of its pod again and again.
        assert commands["startup"] == commands["readiness"][: len(commands["startup"])]
        assert "--slots" not in commands["startup"]
        for command in commands.values():
            program, option, module, *arguments = command
            assert [program, option, module] == ["python", "-m", slot_health.__name__]
            assert folder in arguments
            # No slot has noted anything: none is ready, and none hangs.
            status = slot_health.main([str(tmp_path) if one == folder else one for one in arguments])
            assert status == (command != commands["liveness"])
        assert f"0 of {slots} slots take work" in capsys.readouterr().err


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_setting_exists_and_none_in_a_config_map_is_secret(overlay):
    known = set(re.findall(r"^#(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    [settings] = [one for one in of_kind(overlay, "ConfigMap") if one["metadata"]["name"].startswith("flux2-settings")]
    given = set(settings["data"])

    for workload in workloads(overlay):
        given |= {name for name in variables_of(container_of(workload)) if name.startswith(environment._PREFIXES)}
    assert given <= known
    # Those are in the Secret, which the repository does not hold.
    assert not [name for name in settings["data"] if "PASSWORD" in name or "SECRET" in name or "TOKEN" in name]


def test_workers_see_no_secret_of_the_api():
    secrets = {
        container_of(one)["name"]: {source["secretRef"]["name"] for source in container_of(one)["envFrom"][1:]}
        for one in workloads("production")
        if "envFrom" in container_of(one)
    }

    assert secrets["worker"] == {"flux2-secrets"}
    assert secrets["api"] == secrets["toolbox"] == {"flux2-secrets", "flux2-api-secrets"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_references_between_objects_hold(overlay):
    names = {name_of(one) for one in render(overlay)}
    pods = [labels_of(workload) for workload in workloads(overlay)]

    for workload in workloads(overlay):
        container = container_of(workload)
        assert selects(workload["spec"]["selector"], labels_of(workload))
        volumes = pod_of(workload).get("volumes", []) + [
            {"name": claim["metadata"]["name"]} for claim in workload["spec"].get("volumeClaimTemplates", [])
        ]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in volumes}
        maps = [one["configMapRef"] for one in container.get("envFrom", []) if "configMapRef" in one]
        maps += [volume["configMap"] for volume in volumes if "configMap" in volume]
        assert {f"ConfigMap/{one['name']}" for one in maps} <= names
        if workload["kind"] == "StatefulSet":
            assert f"Service/{workload['spec']['serviceName']}" in names
    for one in of_kind(overlay, "Service", "PodDisruptionBudget"):
        selector = one["spec"]["selector"]
        wanted = selector if one["kind"] == "PodDisruptionBudget" else {"matchLabels": selector}
        # Of exactly one workload: the budget of one type of GPU must not count another's pods.
        assert sum(selects(wanted, labels) for labels in pods) == 1, name_of(one)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_closed_and_only_the_policies_open_it(overlay):
    policies = [one["spec"] for one in of_kind(overlay, "NetworkPolicy")]
    allowing = [one for one in policies if "ingress" in one]

    for workload in workloads(overlay):
        labels, name = labels_of(workload), container_of(workload)["name"]
        closed = [one for one in policies if {"ingress", "egress"}.isdisjoint(one)]
        assert any(selects(one["podSelector"], labels) and len(one["policyTypes"]) == 2 for one in closed)
        is_open = any(selects(one["podSelector"], labels) for one in allowing)
        assert is_open == (name in ("api", "redis", "s3")), name
    # The metadata service of a cloud hands out credentials.
    blocks = [
        peer["ipBlock"]
        for one in policies
        for rule in one.get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]} in blocks


def test_kubernetes_and_compose_run_the_same_servers():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    images = {container_of(workload)["image"] for workload in workloads("trial")}

    for name in ("redis", "s3"):
        assert services[name]["image"].partition(":-")[2].rstrip("}") in images


def test_the_metrics_that_scale_workers_exist_for_an_idle_service():
    idle = SimpleNamespace(backlog=SimpleNamespace(read=lambda pools: dict.fromkeys(pools, PoolLoad({}, {}))))

    items, _ = collect_items(idle)

    # Zero, not nothing: an autoscaler tells an empty queue from an API that does not answer.
    assert {sample.labels["model"] for sample in items.samples} == set(MODELS)
    assert {sample.value for sample in items.samples} == {0}
    assert set(items.samples[0].labels) == {"state", "model", "engine", "tenant"}
    for _, spec in scaled_objects():
        named = set(re.findall(r"flux2_\w+(?=\{)", " ".join(one.metadata.query for one in spec.triggers)))
        assert named == {"flux2_items", "flux2_slots"}
