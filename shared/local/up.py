"""Run a stack until it is interrupted, and show people what it does and where its parts are."""

from __future__ import annotations

import shlex
import signal
import threading

from shared.console import LineConsole
from shared.demo_model import DRAWN_PX, LABEL, PROMPTS, demo_adapter
from shared.local.stack import Stack
from shared.local.start_display import StartDisplay


def run_stack(stack: Stack) -> None:
    """Start a stack, print its addresses, restart parts that die, and stop everything at SIGINT or SIGTERM.

    Raises:
        ServerFailed: a part did not start, or Redis or S3 has ended; nothing is left running.
    """
    console = LineConsole()
    with StartDisplay(console) as display:
        stack.start(display.show)
    try:
        # Handlers replace KeyboardInterrupt only now: during the start it must raise, so that the start is undone.
        stopped = _stop_event()
        _describe(console, stack)
        while not stopped.wait(1.0):
            stack.restart_dead()
    finally:
        with console.status("stopping"):
            stack.stop()


def _stop_event() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    return stopped


def _describe(console: LineConsole, stack: Stack) -> None:
    rows = [
        *([("console", f"{stack.url}/")] if stack.serves_console else []),
        ("API", f"{stack.url}  (documentation: {stack.url}/docs)"),
        ("Redis", stack.servers.redis.url),
        ("S3", f"{stack.servers.s3.url}  bucket {stack.servers.s3.bucket}"),
        (
            "adapters",
            f"{stack.adapter_root}{f'  (with {demo_adapter(stack.model)})' if stack.has_demo_adapters else ''}",
        ),
        (
            "settings",
            f"{stack.settings_file}  (for `flux2 doctor --data {shlex.quote(str(stack.data))}` and "
            "`flux2 render --data`)",
        ),
        *(("log", str(log)) for log in stack.logs),
    ]
    if stack.serves_demo_model:
        rows += [("model", f"{stack.model}, the {LABEL}; set FLUX2_MODEL_PATH to serve real weights")]
        rows += [("", f"It draws best at {DRAWN_PX}x{DRAWN_PX}, for example:"), *(("", prompt) for prompt in PROMPTS)]
    for label, text in rows:
        console.print_line(f"{label:<10}{text}")
    if overridden := stack.overridden_settings():
        console.print_line(f"{'not used':<10}{', '.join(overridden)}: this command brings its own")
    console.print_line("Press Ctrl-C to stop everything.")
