"""Run real Redis and S3 servers on loopback, for `flux2 up`, `flux2 demo` and the tests, without root or Docker.

Their programs come from the system or from wheels. The servers keep their data in a folder and end with the process
that started them.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Self

from shared.local.redis_server import RedisServer
from shared.local.s3_server import S3Server


class EmbeddedServers:
    """Redis and S3 as one context manager; if one fails to start, the other is stopped."""

    def __init__(
        self, data: Path, *, redis_port: int | None = None, s3_port: int | None = None, bucket: str = "flux2"
    ) -> None:
        self.redis = RedisServer(data, port=redis_port)
        self.s3 = S3Server(data, port=s3_port, bucket=bucket)

    def start(self) -> Self:
        """Start both and return when they answer.

        Raises:
            ServerFailed: one of them did not start; neither runs then.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.redis)
            stack.enter_context(self.s3)
            stack.pop_all()
        return self

    def stop(self) -> None:
        """Stop both; safe to repeat."""
        self.s3.stop()
        self.redis.stop()

    def raise_if_ended(self) -> None:
        """Raise `ServerFailed`, with the end of its log, if one of them has ended by itself."""
        self.redis.raise_if_ended()
        self.s3.raise_if_ended()

    def environment(self) -> dict[str, str]:
        """Return the variables that make this project's processes use both."""
        return self.redis.environment() | self.s3.environment()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
