"""The environment of a stack's processes, and its ports."""

import socket
from pathlib import Path

import pytest

from shared.errors import ServerFailed
from shared.local.stack import Stack
from shared.settings import Settings


def test_a_dotenv_file_reaches_the_processes_although_they_run_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    Path(".env").write_text("FLUX2_MODEL_PATH=weights\nHF_TOKEN=hf_x\nFLUX2_QUEUE_CAP=7\n")
    stack = Stack(tmp_path / "data", Settings(_env_file=".env"))

    environment = stack.environment()

    assert not stack.serves_demo_model
    assert environment["FLUX2_MODEL_PATH"] == str(tmp_path / "weights")
    assert (environment["HF_TOKEN"], environment["FLUX2_QUEUE_CAP"]) == ("hf_x", "7")


def test_the_environment_wins_over_the_dotenv_file_and_the_stack_over_both(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("FLUX2_QUEUE_CAP=7\nFLUX2_REDIS_URL=redis://elsewhere\n")
    monkeypatch.setenv("FLUX2_QUEUE_CAP", "8")
    monkeypatch.setenv("FLUX2_S3_PUBLIC_ENDPOINT_URL", "https://cdn.example.com")

    environment = Stack(tmp_path / "data", Settings(_env_file=".env")).environment()

    assert environment["FLUX2_QUEUE_CAP"] == "8"
    assert environment["FLUX2_REDIS_URL"].startswith("redis://127.0.0.1:")
    assert environment["FLUX2_S3_PUBLIC_ENDPOINT_URL"] == ""


def test_a_demonstration_ignores_the_callers_configuration(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("FLUX2_QUEUE_CAP=7\n")
    monkeypatch.setenv("FLUX2_WORKER_DEVICE", "cuda:3")
    monkeypatch.setenv("HF_TOKEN", "hf_x")

    environment = Stack(tmp_path / "data", Settings.model_construct(), inherit=False).environment()

    assert not {"FLUX2_QUEUE_CAP", "FLUX2_WORKER_DEVICE", "HF_TOKEN"} & environment.keys()
    assert environment["FLUX2_MODEL_PATH"] == str(tmp_path / "data" / "tiny")
    assert environment["FLUX2_MODEL_PRECISION"] == "fp32"


def test_relative_folders_are_made_absolute_for_the_processes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUX2_WORKER_LOCK_DIR", "locks")
    monkeypatch.setenv("AI_TOOLKIT_PATH", "../ai-toolkit")

    environment = Stack(tmp_path / "data", Settings()).environment()

    assert environment["FLUX2_WORKER_LOCK_DIR"] == str(tmp_path / "locks")
    assert environment["AI_TOOLKIT_PATH"] == str(tmp_path / "../ai-toolkit")


def test_another_server_on_the_apis_port_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        stack = Stack(tmp_path / "data", Settings(), workers=0, api_port=port)

        with pytest.raises(ServerFailed, match=f"the API: port {port} on 127.0.0.1 is in use"):
            stack.start()
