"""What each side may pull in, seen in a fresh interpreter: the import contracts cannot see indirect third parties."""

import subprocess
import sys

import pytest


def imported(module):
    code = f"import {module}, sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", ["api.app", "shared.cli"])
def test_the_api_and_the_command_line_pull_in_no_tensor_library(module):
    assert not imported(module) & {"torch", "diffusers", "transformers", "safetensors", "numpy"}


@pytest.mark.parametrize("module", ["worker.serve", "worker.commands"])
def test_the_worker_pulls_in_no_http_server(module):
    assert not imported(module) & {"fastapi", "uvicorn", "starlette"}
