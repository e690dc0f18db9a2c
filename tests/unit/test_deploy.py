"""The deployment files are well formed."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
