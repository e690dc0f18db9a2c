"""The packages that each part imports, in a fresh interpreter: import contracts miss indirect third parties."""

import pkgutil
import subprocess
import sys

import pytest
import typer.main

import worker.consumer
from shared.cli import app

TENSOR_LIBRARIES = {"torch", "diffusers", "transformers", "safetensors", "numpy"}
HTTP_SERVERS = {"fastapi", "uvicorn", "starlette"}
# Each takes longer to import than the help takes to print; pydantic alone is typer's.
SLOW_LIBRARIES = {
    "boto3",
    "botocore",
    "celery",
    "fastmcp",
    "httpx2",
    "kombu",
    "mcp",
    "PIL",
    "pydantic_settings",
    "redis",
    "structlog",
    "yaml",
}
COMMANDS = sorted(typer.main.get_command(app).commands)


def top_levels(code):
    """The top-level packages that are imported when the code has run."""
    code = f"import atexit, sys; atexit.register(lambda: print(*sys.modules, sep='\\n', file=sys.stderr)); {code}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


def test_the_demonstration_model_is_written_without_a_tensor_library(tmp_path):
    arguments = ["tiny", str(tmp_path / "klein"), "--model", "flux2_klein_4b"]

    packages = top_levels(f"sys.argv[1:] = {arguments}; from shared.cli import main; main()")

    assert (tmp_path / "klein" / "flux-2-klein-base-4b.safetensors").is_file()
    assert not packages & TENSOR_LIBRARIES


def imported(*modules):
    return top_levels(f"import {', '.join(modules)}")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_and_version_wait_for_no_library_that_they_do_not_need(arguments):
    packages = top_levels(f"sys.argv[1:] = {arguments}; from shared.cli import main; main()")

    assert "typer" in packages
    assert not packages & (TENSOR_LIBRARIES | HTTP_SERVERS | SLOW_LIBRARIES)


@pytest.mark.parametrize("module", ["api.app", "shared.cli"])
def test_the_api_and_the_command_line_pull_in_no_tensor_library(module):
    assert not imported(module) & TENSOR_LIBRARIES


@pytest.mark.parametrize(
    "modules",
    [
        # With what `worker.serve` imports only once it loads the model.
        ["worker.serve", "worker.model.load", "worker.rendering.renderer", "worker.rendering.toolkit_checkout"],
        ["worker.commands"],
    ],
)
def test_the_worker_pulls_in_no_http_server(modules):
    assert not imported(*modules) & HTTP_SERVERS


def test_the_whole_consumer_pulls_in_no_tensor_library_and_no_http_server():
    modules = [module.name for module in pkgutil.walk_packages(worker.consumer.__path__, "worker.consumer.")]
    assert "worker.consumer.item_run" in modules

    assert not imported(*modules) & (TENSOR_LIBRARIES | HTTP_SERVERS)
