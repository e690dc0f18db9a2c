"""The health check of a worker's container runs on this version's code."""

import subprocess
import sys
from pathlib import Path

import yaml

from shared.ledger import Ledger
from shared.settings import Settings

ROOT = Path(__file__).parents[2]


def exit_code(redis_url, worker):
    """Run the check as Docker does, for a worker of that name."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    _, _, option, code = compose["services"]["worker"]["healthcheck"]["test"]
    environment = {"PATH": "/usr/bin:/bin", "FLUX2_REDIS_URL": redis_url, "FLUX2_WORKER_NAME": worker}
    done = subprocess.run(
        [sys.executable, option, code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode


def test_a_worker_is_healthy_while_its_heartbeat_is_fresh(redis_client, redis_url, slot_report):
    Ledger(redis_client, Settings().queue).workers.beat("gpu-0", slot_report())

    assert exit_code(redis_url, "gpu-0") == 0
    assert exit_code(redis_url, "gpu-1") == 1
