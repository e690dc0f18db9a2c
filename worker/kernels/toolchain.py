"""Find out whether this host can build GPU kernels: torch's compiler and this project's kernels both need Triton."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path


@cache
def triton_unavailable_reason() -> str | None:
    """Return what Triton lacks to build a kernel, or None if it can build one."""
    if importlib.util.find_spec("triton") is None:
        return "no Triton, which torch for GPUs brings"
    # Triton compiles a small C file against Python's headers for each kernel.
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "no C compiler (gcc or clang)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "no Python.h (on Debian: python3-dev)"
    return None
