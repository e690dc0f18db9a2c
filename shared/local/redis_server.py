"""An embedded Redis with the durability that the ledger needs."""

from __future__ import annotations

from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.local.binaries import find_redis
from shared.local.ports import LOOPBACK, pick_free_port
from shared.local.server import LoopbackServer


class RedisServer(LoopbackServer):
    """Redis that writes to disk before it replies and evicts nothing."""

    name = "Redis"
    port_option = "--redis-port"

    def __init__(self, data: Path, *, port: int | None = None) -> None:
        """Keep the data under `data`/redis; listen on `port`, or on a free one."""
        super().__init__(data / "redis", port=port)

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def environment(self) -> dict[str, str]:
        return {"FLUX2_REDIS_URL": self.url}

    def _command(self) -> list[str]:
        self.port = self._requested_port or pick_free_port()
        options = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            # Redis searches such a hash from its start: with the 512 of Redis 6.2, a queue of 200 tenants takes a third
            # more time. Items and jobs have fewer fields.
            "hash-max-ziplist-entries": "64",
            "save": "",
            "daemonize": "no",
        }
        return [str(find_redis()), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _ready(self) -> bool:
        client = redis.Redis(port=self.port, socket_timeout=1, retry=Retry(NoBackoff(), 0))
        try:
            # By process id: another Redis that took the port first would answer too.
            return bool(client.info("server")["process_id"] == self.pid)
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        finally:
            client.close()
