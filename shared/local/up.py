"""Run a stack until it is interrupted, and show people what it does and where its parts are."""

from __future__ import annotations

import signal
import threading

from shared.console import LineConsole
from shared.demo_model import DEMO_ADAPTER, DRAWN_PX, LABEL, PROMPTS
from shared.local.stack import Stack


def run_stack(stack: Stack) -> None:
    """Start a stack, print its addresses, restart parts that die, and stop everything at SIGINT or SIGTERM.

    Raises:
        ServerFailed: a part did not start, or Redis or S3 has ended; nothing is left running.
    """
    console = LineConsole()
    with console.status("starting Redis, S3, the API and workers"):
        stack.start()
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
    demo_adapter = f"  (with {DEMO_ADAPTER})" if stack.serves_demo_model else ""
    console.print_line(f"API       {stack.url}  (documentation: {stack.url}/docs)")
    console.print_line(f"Redis     {stack.servers.redis.url}")
    console.print_line(f"S3        {stack.servers.s3.url}  bucket {stack.servers.s3.bucket}")
    console.print_line(f"adapters  {stack.adapter_root}{demo_adapter}")
    for log in stack.logs:
        console.print_line(f"log       {log}")
    if stack.serves_demo_model:
        console.print_line(f"model     the {LABEL}; set FLUX2_MODEL_PATH to serve real weights")
        console.print_line(f"          It draws best at {DRAWN_PX}x{DRAWN_PX}, for example:")
        for prompt in PROMPTS:
            console.print_line(f"          {prompt}")
    console.print_line("Press Ctrl-C to stop everything.")
