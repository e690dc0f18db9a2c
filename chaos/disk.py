"""A disk of a few MiB for Redis, which a scenario can fill: a file system in memory that only Redis sees."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Self

from shared.errors import ServerFailed
from shared.local.child import ChildProcess
from shared.local.redis_server import RedisServer

_SIZE = "4m"
_START_S = 10.0
_CHUNK = bytes(65_536)
# In a user namespace of its own, so that nobody needs root's rights. The file system lasts as long as the process.
_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
_MOUNT = f'mount -t tmpfs -o size={_SIZE} tmpfs "$1" && : > "$1/ballast" && exec sleep infinity'


class SmallDisk:
    """Mounts the disk at `folder`, as a context manager.

    Processes started by `command` see it there; all others see the empty folder below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        own = self.folder.with_name(f"{self.folder.name}-disk")
        own.mkdir(parents=True)
        command = [*_NAMESPACE, "/bin/sh", "-c", _MOUNT, "sh", str(self.folder)]
        self._holder = ChildProcess("the small disk", command, folder=own)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._holder.start(lambda: self._ballast.exists(), timeout_s=_START_S)
        except (OSError, ServerFailed) as error:
            raise ServerFailed(
                f"no file system can be mounted for Redis; allow user namespaces, or run as root: {error}"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.stop(grace_s=0)

    def command(self, words: list[str]) -> list[str]:
        """Return the command that runs `words` where the disk is mounted."""
        namespaces = ["--target", str(self._holder.pid), "--user", "--mount", "--preserve-credentials"]
        return ["nsenter", *namespaces, f"--wd={self.folder}", *words]

    def fill(self) -> None:
        """Use up every byte."""
        file = os.open(self._ballast, os.O_WRONLY | os.O_APPEND)
        try:
            # The last bytes of a page belong to the file that has the rest of it.
            while True:
                os.write(file, _CHUNK)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        finally:
            os.close(file)

    def clear(self) -> None:
        """Make room again."""
        os.truncate(self._ballast, 0)

    @property
    def _ballast(self) -> Path:
        # The disk as its own process sees it.
        return Path(f"/proc/{self._holder.pid}/root{self.folder}/ballast")


class RedisOnSmallDisk(RedisServer):
    """Redis whose files are on a small disk; its log is on the disk of this host."""

    def __init__(self, data: Path, disk: SmallDisk, *, port: int) -> None:
        super().__init__(data, port=port)
        self._disk = disk

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def restart(self) -> None:
        """Start Redis again on its files.

        Raises:
            ServerFailed: it has ended again already.
        """
        self.stop()
        self.start()

    def _command(self) -> list[str]:
        return self._disk.command(super()._command())
