"""The Redis of deploy/kubernetes, started by the command of its container."""

from pathlib import Path

import pytest
import redis
import yaml

from shared.ledger import Ledger
from shared.local.binaries import find_redis
from shared.local.redis_server import RedisServer
from shared.settings import QueueSettings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes" / "base" / "service"
PASSWORD = "5f3a"


class DeployedRedis(RedisServer):
    """Has the password, configuration and command of the container, with folders and a port of this host."""

    @property
    def url(self):
        return super().url.replace("//", f"//:{PASSWORD}@")

    def _command(self):
        super()._command()
        _, statefulset = yaml.safe_load_all((FOLDER / "redis.yaml").read_text())
        [container] = statefulset["spec"]["template"]["spec"]["containers"]
        [script] = container["args"]
        text = (FOLDER / "redis.conf").read_text().replace("dir /data", f"dir {self.folder}")
        file = self.folder / "redis.conf"
        file.write_text(f"{text}\nbind 127.0.0.1\nport {self.port}\n")
        script = script.replace("/etc/redis/redis.conf", str(file)).replace("redis-server", str(find_redis()))
        return [*container["command"], f"REDIS_PASSWORD={PASSWORD}\n{script}"]

    def _ready(self):
        with redis.Redis.from_url(self.url, socket_timeout=1) as client:
            try:
                return client.ping()
            except (redis.ConnectionError, redis.TimeoutError):
                return False


def test_the_redis_of_kubernetes_keeps_accepted_jobs_and_admits_nobody_without_its_password(tmp_path):
    with DeployedRedis(tmp_path) as server:
        ledger = Ledger.connect(server.url, QueueSettings(), timeout_s=5)

        # What GET /ready warns of.
        assert ledger.durability_issues() == []
        with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            # Below the memory of its container, so that Redis refuses writes before the kernel kills it.
            assert client.config_get("maxmemory") == {"maxmemory": str(8 * 1024**3)}
