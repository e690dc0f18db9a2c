"""The packages that each part imports, in a fresh interpreter: import contracts miss indirect third parties."""

import pkgutil
import subprocess
import sys

import pytest

import worker.consumer

TENSOR_LIBRARIES = {"torch", "diffusers", "transformers", "safetensors", "numpy"}
HTTP_SERVERS = {"fastapi", "uvicorn", "starlette"}


def imported(*modules):
    code = f"import {', '.join(modules)}, sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


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
