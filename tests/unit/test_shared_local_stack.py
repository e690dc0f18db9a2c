"""The environment of a stack's processes, and its ports."""

import io
import os
import re
import socket
from pathlib import Path

import pytest
from dotenv import dotenv_values

from shared.console import LineConsole
from shared.errors import CheckpointError, NoStack, ServerFailed
from shared.local.data_folder import read_settings, settings_file, write_settings
from shared.local.stack import Stack
from shared.local.start_display import StartDisplay
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
    assert environment["FLUX2_S3_PUBLIC_ENDPOINT_URL"] == "https://cdn.example.com"


def test_settings_that_the_stack_does_not_own_are_honoured(monkeypatch, tmp_path):
    monkeypatch.setenv("FLUX2_API_HOST", "0.0.0.0")
    monkeypatch.setenv("FLUX2_API_BASE_URL", "https://api.example.com")
    monkeypatch.setenv("FLUX2_S3_BUCKET", "mine")
    stack = Stack(tmp_path / "data", Settings(), api_port=8123)

    environment = stack.environment()

    assert environment["FLUX2_API_HOST"] == "0.0.0.0"
    assert environment["FLUX2_API_BASE_URL"] == "https://api.example.com"
    assert environment["FLUX2_S3_BUCKET"] == stack.servers.s3.bucket == "mine"
    assert stack.url == "http://127.0.0.1:8123"
    assert stack.overridden_settings() == []


def test_settings_that_the_stack_replaces_are_named_in_any_case(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("FLUX2_S3_ENDPOINT_URL=https://s3.example.com\nFLUX2_QUEUE_CAP=7\n")
    monkeypatch.setenv("flux2_redis_url", "redis://10.0.0.5/0")
    monkeypatch.setenv("FLUX2_MODEL_TEXT_ENCODER", "mistralai/Mistral-Small-3.1-24B-Instruct-2503")
    monkeypatch.setenv("FLUX2_WORKER_NAME", "gpu-0")
    stack = Stack(tmp_path / "data", Settings(_env_file=".env"))

    assert stack.overridden_settings() == [
        "FLUX2_MODEL_TEXT_ENCODER",
        "FLUX2_REDIS_URL",
        "FLUX2_S3_ENDPOINT_URL",
        "FLUX2_WORKER_NAME",
    ]
    assert "flux2_redis_url" not in stack.environment()


@pytest.mark.parametrize(
    ("variable", "error", "said"),
    [
        ("FLUX2_ADAPTERS_ROOT", ServerFailed, "FLUX2_ADAPTERS_ROOT {path}: no such folder"),
        ("FLUX2_MODEL_PATH", CheckpointError, "FLUX2_MODEL_PATH {path}: no such folder"),
        ("FLUX2_MODEL_TEXT_ENCODER", CheckpointError, "FLUX2_MODEL_TEXT_ENCODER {path}: no such folder"),
    ],
)
def test_a_mistyped_folder_is_refused_before_anything_runs_and_is_not_created(
    variable, error, said, monkeypatch, tmp_path
):
    mistyped = tmp_path / "no-such-folder"
    monkeypatch.setenv(variable, str(mistyped))
    stack = Stack(tmp_path / "data", Settings())

    with pytest.raises(error, match=re.escape(said.format(path=mistyped))):
        stack.start()

    assert list(tmp_path.iterdir()) == []


def test_demonstration_adapters_go_only_into_the_stacks_own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("FLUX2_ADAPTERS_ROOT", str(tmp_path))
    monkeypatch.setenv("FLUX2_WORKER_DEVICE", "cpu")

    assert not Stack(tmp_path / "data", Settings()).has_demo_adapters


def test_downloaded_files_are_kept_in_the_stacks_folder_unless_another_is_configured(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    own = Stack(tmp_path / "data", Settings())
    monkeypatch.setenv("FLUX2_SOURCES_CACHE_DIR", "cache")
    configured = Stack(tmp_path / "data", Settings())

    places = [stack.environment()["FLUX2_SOURCES_CACHE_DIR"] for stack in (own, configured)]
    assert places == [f"{tmp_path}/data/cache", f"{tmp_path}/cache"]
    assert configured.overridden_settings() == []


def test_a_chosen_model_is_its_demonstration_model_unless_weights_are_configured(monkeypatch, tmp_path):
    demo = Stack(tmp_path, Settings(), model="flux2_klein_4b")
    monkeypatch.setenv("FLUX2_MODEL_PATH", str(tmp_path))
    real = Stack(tmp_path, Settings(), model="flux2_klein_4b")
    monkeypatch.setenv("FLUX2_MODEL_PATH", "")
    monkeypatch.setenv("FLUX2_MODEL_ID", "flux2_klein_4b")
    from_the_hub = Stack(tmp_path, Settings())

    assert (demo.serves_demo_model, real.serves_demo_model, from_the_hub.serves_demo_model) == (True, False, False)
    assert demo.environment()["FLUX2_MODEL_ID"] == real.environment()["FLUX2_MODEL_ID"] == "flux2_klein_4b"
    # Next to the files of [dev], which a stack with another model may have written.
    assert demo.environment()["FLUX2_MODEL_PATH"] == f"{tmp_path}/tiny_flux2_klein_4b"
    assert demo.demo_adapter == tmp_path / "adapters/my_lora_job/flux2_klein_4b.safetensors"
    assert demo.demo_edit == tmp_path / "adapters/tiny_flux2_klein_4b/edit.safetensors"


def test_a_stacks_settings_win_over_the_environment_and_the_dotenv_file_of_another_service(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("FLUX2_S3_SSE=aws:kms\nHF_TOKEN=hf_x\n")
    monkeypatch.setenv("FLUX2_REDIS_URL", "redis://10.0.0.5/0")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a deployment's")
    kept = {
        "FLUX2_REDIS_URL": "redis://127.0.0.1:1/0",
        "FLUX2_S3_SSE": "",
        "FLUX2_ADAPTERS_ROOT": "/it's $HOME/a \\ ${B}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    for name in kept:
        # So that the variables that `read_settings` sets are removed after the test.
        monkeypatch.setenv(name, os.environ.get(name, ""))
    write_settings(tmp_path, {**kept, "HF_TOKEN": "hf_secret", "PATH": "/bin"})

    settings = read_settings(tmp_path)

    assert str(settings.redis.url) == "redis://127.0.0.1:1/0"
    assert settings.s3.sse is None
    assert str(settings.adapters.root) == "/it's $HOME/a \\ ${B}"
    assert settings.aws_credentials()["aws_secret_access_key"] == "secret"
    assert settings.hub_token() == "hf_x"
    file = settings_file(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    assert "hf_secret" not in file.read_text()
    assert "PATH" not in dotenv_values(file)


def test_a_folder_without_a_stack_is_named_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(NoStack, match=f"`flux2 up --data '{tmp_path}/my data'` writes it"):
        read_settings(tmp_path / "my data")
    with pytest.raises(NoStack, match=f"`flux2 up --data {tmp_path}` writes it"):
        read_settings(tmp_path)


def piped_display(monkeypatch):
    seconds = iter(range(0, 1000, 4))
    monkeypatch.setattr("shared.local.start_display.time.monotonic", lambda: next(seconds))
    output = io.StringIO()
    return StartDisplay(LineConsole(file=output)), output


def test_a_piped_start_prints_each_stage_at_once_and_a_line_every_ten_seconds(monkeypatch):
    display, output = piped_display(monkeypatch)
    log_line = "2026-11-29T02:00:00.123456Z [info     ] downloading [flux2.worker.checkpoint] " + "x" * 100

    with display:
        display.show("starting Redis and S3", "")
        for _ in range(6):
            display.show("worker-0 loads the model", log_line)

    message = log_line.partition("] ")[2]
    assert output.getvalue().splitlines() == [
        "starting Redis and S3",
        "worker-0 loads the model",
        f"worker-0 loads the model (12 s): {message}",
    ]


def test_a_json_log_line_is_shown_as_words(monkeypatch):
    display, output = piped_display(monkeypatch)
    log_line = (
        '{"event": "model loaded", "level": "info", "logger": "flux2.worker.model", "timestamp": "t", "device": "cpu"}'
    )

    with display:
        for _ in range(5):
            display.show("worker-0 loads the model", log_line)

    assert output.getvalue().splitlines()[-1] == "worker-0 loads the model (12 s): model loaded device=cpu"


def test_a_demonstration_ignores_the_callers_configuration(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(".env").write_text("FLUX2_QUEUE_CAP=7\n")
    monkeypatch.setenv("FLUX2_WORKER_DEVICE", "cuda:3")
    monkeypatch.setenv("HF_TOKEN", "hf_x")

    environment = Stack(tmp_path / "data", Settings.model_construct(), inherit=False).environment()

    assert not {"FLUX2_QUEUE_CAP", "FLUX2_WORKER_DEVICE", "HF_TOKEN"} & environment.keys()
    assert environment["FLUX2_MODEL_PATH"] == str(tmp_path / "data" / "tiny")
    assert environment["FLUX2_MODEL_PRECISION"] == "fp32"


def test_relative_paths_are_made_absolute_for_the_processes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUX2_WORKER_LOCK_DIR", "locks")
    monkeypatch.setenv("AI_TOOLKIT_PATH", "../ai-toolkit")
    monkeypatch.setenv("FLUX2_PROVENANCE_CERTIFICATE", "certificate.pem")
    monkeypatch.setenv("FLUX2_PROVENANCE_KEY", "key.pem")

    environment = Stack(tmp_path / "data", Settings()).environment()

    assert environment["FLUX2_WORKER_LOCK_DIR"] == str(tmp_path / "locks")
    assert environment["AI_TOOLKIT_PATH"] == str(tmp_path / "../ai-toolkit")
    assert environment["FLUX2_PROVENANCE_CERTIFICATE"] == str(tmp_path / "certificate.pem")
    assert environment["FLUX2_PROVENANCE_KEY"] == str(tmp_path / "key.pem")


def test_another_server_on_the_apis_port_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        stack = Stack(tmp_path / "data", Settings(), workers=0, api_port=port)

        with pytest.raises(
            ServerFailed, match=f"the API: port {port} on 127.0.0.1 is in use; choose another with --port"
        ):
            stack.start()
