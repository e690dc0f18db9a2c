"""The deployment files are well formed."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(("image", "extra"), [("api", "[api]"), ("worker", "[worker]")])
def test_each_image_installs_its_own_side_only(image, extra):
    text = (ROOT / "deploy" / f"{image}.Dockerfile").read_text()

    assert f"'.{extra}'" in text


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
