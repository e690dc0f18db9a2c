"""Learn of pressed keys and of changes of the terminal's size while an event loop runs."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

#: The terminal has another size.
RESIZED = "resized"

# A key that is no character, such as an arrow, is a sequence that begins with Escape.
_KEY = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|.", re.DOTALL)


@contextmanager
def terminal_events(keyboard: TextIO, notify: Callable[[str], None]) -> Iterator[None]:
    """Call `notify` with each pressed key, and with `RESIZED`, inside the block.

    Keys are not shown, and need no Enter. If `keyboard` is no terminal, or the system has none, there are no keys.
    """
    try:
        import termios
        import tty
    except ModuleNotFoundError:  # not on Windows
        yield
        return
    loop = asyncio.get_running_loop()
    with ExitStack() as undo:
        loop.add_signal_handler(signal.SIGWINCH, notify, RESIZED)
        undo.callback(loop.remove_signal_handler, signal.SIGWINCH)
        if keyboard.isatty():
            file = keyboard.fileno()
            undo.callback(termios.tcsetattr, file, termios.TCSADRAIN, termios.tcgetattr(file))
            tty.setcbreak(file)
            loop.add_reader(file, _notify_of_keys, file, notify)
            undo.callback(loop.remove_reader, file)
        yield


def _notify_of_keys(file: int, notify: Callable[[str], None]) -> None:
    # A key that is held down, or another one, may come while the screen is drawn.
    for key in _KEY.findall(os.read(file, 1024).decode(errors="replace")):
        notify(key)
