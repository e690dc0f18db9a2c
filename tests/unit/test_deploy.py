"""The deployment files are well formed."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from shared.settings import WorkerSettings
from tools.supply_chain import lock
from worker.fleet import supervisor

ROOT = Path(__file__).parents[2]


def variables():
    """Every variable in .env.example, which another test compares with the settings."""
    return re.findall(r"^#(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)


def compose_client():
    """`docker compose` or the older `docker-compose`, whichever this host has."""
    if shutil.which("docker"):
        has_plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if has_plugin.returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


@pytest.mark.parametrize("profile", [[], ["--profile", "cpu"]])
def test_the_compose_file_is_valid(profile):
    client = compose_client()
    if client is None:
        pytest.skip("no Docker Compose client here")

    done = subprocess.run([*client, *profile, "config", "-q"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("image", ["api", "worker"])
def test_each_image_installs_its_own_side_only_and_nothing_whose_hash_is_not_locked(image):
    text = (ROOT / "deploy" / f"{image}.Dockerfile").read_text()

    installs = re.findall(r"pip install (.+)$", text, re.MULTILINE)
    assert installs == [
        f"--no-cache-dir --require-hashes --only-binary :all: --requirement {image}.lock",
        "--no-cache-dir --no-deps --no-build-isolation .",
    ]
    assert f"COPY deploy/{image}.lock ./" in text
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"deploy", "deploy/*.lock"} & set(ignored)


@pytest.mark.parametrize("image", ["api", "worker"])
def test_the_base_of_each_image_can_be_fixed_to_a_digest(image):
    text = (ROOT / "deploy" / f"{image}.Dockerfile").read_text()
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    [base] = re.findall(r"^ARG PYTHON_IMAGE=(\S+)\nFROM \$\{PYTHON_IMAGE\}$", text, re.MULTILINE)
    assert services[image]["build"]["args"] == {"PYTHON_IMAGE": f"${{PYTHON_IMAGE:-{base}}}"}
    assert base == f"python:{lock.PYTHON}-slim"
    # Of the images of others, the exact version.
    others = [service["image"] for service in services.values() if "image" in service]
    assert all(re.fullmatch(r"\$\{[A-Z0-9]+_IMAGE:-\S+:\d+\.\d+\S*\}", image) for image in others), others


def test_no_container_can_write_to_itself_or_gain_rights():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        # Only memory can be written, and volumes.
        assert [place.partition(":")[0] for place in service["tmpfs"]] == ["/tmp"], name
        assert not {"privileged", "network_mode", "pid", "ipc"} & set(service), name
    added = {name: service["cap_add"] for name, service in services.items() if "cap_add" in service}
    # Its entry point needs them to become another user.
    assert added == {"s3": ["CHOWN", "DAC_OVERRIDE", "SETGID", "SETUID"]}


def test_ports_are_published_on_this_host_alone():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("image", ["api", "worker"])
def test_each_image_copies_every_package_that_it_installs(image):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    text = (ROOT / "deploy" / f"{image}.Dockerfile").read_text()

    packages = {name.partition(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    assert set(re.findall(r"^COPY (\w+) \1$", text, re.MULTILINE)) == packages


def test_compose_passes_every_setting_on():
    text = (ROOT / "docker-compose.yml").read_text()

    # The composition decides these itself, because they say where things are inside a container.
    inside = {
        "FLUX2_STORAGE_BACKEND",
        "FLUX2_STORAGE_DIRECTORY",
        "FLUX2_API_PORT",
        "FLUX2_WORKER_DEVICE",
        "AI_TOOLKIT_PATH",
    }
    assert [name for name in variables() if name not in inside and f"{name}:" not in text] == []


@pytest.mark.parametrize("image", ["api", "worker"])
def test_each_image_runs_as_a_user_that_exists_and_is_not_root(image):
    text = (ROOT / "deploy" / f"{image}.Dockerfile").read_text()

    commands = re.findall(r"^(USER|CMD) (.+)$", text, re.MULTILINE)
    assert [name for name, _ in commands] == ["USER", "CMD"]
    assert commands[0][1] == "1000:1000"
    # Without an entry for the group, Celery warns.
    assert "groupadd --gid 1000 flux2 && useradd --uid 1000 --gid 1000" in text


def test_every_volume_of_a_worker_is_writable_by_its_user_or_read_only():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    text = (ROOT / "deploy" / "worker.Dockerfile").read_text()
    (owned,) = re.findall(r"install --directory --owner 1000 --group 1000 (.+)$", text, re.MULTILINE)
    (set_in_image,) = re.findall(r"^ENV (.+)$", text, re.MULTILINE)

    for name in ("worker", "worker-cpu"):
        assert "user" not in services[name]
        mounts = [volume.rsplit(":", 2) for volume in services[name]["volumes"]]
        writable = {mount[-1] for mount in mounts if mount[-1] != "ro"}
        assert writable
        # A new volume takes the owner of the image's folder.
        assert writable <= set(owned.split())
    # The folders in which libraries write by default belong to nobody's home.
    places = dict(entry.split("=") for entry in set_in_image.split())
    places["FLUX2_WORKER_LOCK_DIR"] = services["worker"]["environment"]["FLUX2_WORKER_LOCK_DIR"]
    mounted = {volume.rsplit(":", 1)[-1] for volume in services["worker"]["volumes"]}
    caches = {"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH"}
    assert set(places) == {"HF_HOME", "FLUX2_WORKER_LOCK_DIR", *caches}
    assert {"/" + place.split("/")[1] for place in places.values()} <= mounted


def test_no_service_shares_a_folder_of_the_host_or_runs_as_root():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    # The images of this project name their user; SeaweedFS' entry point changes to its own.
    assert {name: service["user"] for name, service in services.items() if "user" in service} == {"redis": "redis"}
    mounts = [(name, volume) for name, service in services.items() for volume in service.get("volumes", ())]
    # The base model's files, which only workers read.
    assert [name for name, volume in mounts if volume.startswith((".", "/", "$"))] == ["worker"]


@pytest.mark.parametrize("name", ["worker", "worker-cpu"])
def test_the_health_check_of_a_worker_reads_the_heartbeats_that_its_slots_note(name):
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][name]

    program, *command, folder = service["healthcheck"]["test"]
    assert (program, command) == ("CMD", ["python", "-m", "worker.consumer.slot_health", "ready"])
    assert service["environment"]["FLUX2_WORKER_HEALTH_DIR"] == folder
    # In memory and this container's own: the numbers of processes mean nothing in another one.
    assert folder.startswith(service["tmpfs"][0].partition(":")[0])


def test_compose_gives_a_worker_of_several_gpus_the_time_to_drain_all_of_them():
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["worker"]

    assert service["command"][:3] == ["flux2", "worker", "--gpus"]
    assert int(service["stop_grace_period"].removesuffix("s")) > WorkerSettings().drain_s + supervisor._GRACE_S


def test_the_demonstration_adapter_is_uploaded_when_it_is_written_and_the_api_is_ready():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    assert services["tiny-upload"]["depends_on"] == {
        "api": {"condition": "service_healthy"},
        "tiny": {"condition": "service_completed_successfully"},
    }
    assert services["worker-cpu"]["depends_on"]["tiny"] == {"condition": "service_completed_successfully"}
    assert "restart" not in services["tiny-upload"]
    assert "restart" not in services["tiny"]
