"""Run schemathesis as one caller, in a process of its own, and read its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parent.parent
_PHASES: Final = "examples,coverage,fuzzing,stateful"
# The seconds that a run may take beyond its budget: it imports, reads the document and finishes its last case.
_SLACK_S: Final = 600.0


@dataclass(frozen=True)
class Run:
    """What one run found.

    Attributes:
        cases: calls that were made.
        faults: findings, each once.
        operations: of the document, how many were called.
        is_sound: whether the run came to its end and found nothing.
        output: what schemathesis printed.
    """

    cases: int
    faults: int
    operations: int
    is_sound: bool
    output: str


def fuzz(url: str, headers: Mapping[str, str], *, seconds: int | None = None, options: Sequence[str] = ()) -> Run:
    """Fuzz an API.

    Args:
        headers: sent with every call.
        seconds: for how long; None makes one pass of `--max-examples` cases for each operation.
        options: more of schemathesis' own.
    """
    with tempfile.TemporaryDirectory() as folder:
        report, document = Path(folder) / "report.json", Path(folder) / "openapi.json"
        # Without the caller's headers: a wrong key is refused here too.
        with urllib.request.urlopen(f"{url}/openapi.json") as answer:
            document.write_bytes(answer.read())
        command = [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("--config-file", str(Path(__file__).with_name("schemathesis.toml"))),
            *("run", str(document), "--url", url, "--phases", _PHASES),
            *(("--max-time", str(seconds)) if seconds else ()),
            *("--report", "json", "--report-json-path", str(report), "--no-color"),
            *(word for name, value in headers.items() for word in ("--header", f"{name}: {value}")),
            *options,
        ]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "fuzz.hooks", "PYTHONPATH": str(_ROOT)}
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=(seconds or 0) + _SLACK_S
        )
        found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    counts = found.get("test_cases", {})
    return Run(
        cases=counts.get("generated", 0),
        faults=counts.get("unique_failures", 0),
        operations=(found.get("operations") or {}).get("tested", 0),
        # Not so without a report, or without a case: then the time was over before the first one.
        is_sound=ended.returncode == 0 and found.get("exit_code") == 0 and counts.get("generated", 0) > 0,
        output=ended.stdout + ended.stderr,
    )
