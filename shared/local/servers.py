"""Real Redis and S3 servers on loopback, for `flux2 up`, `flux2 demo` and the tests: no root, no Docker.

They come from the system or from wheels, keep their data in a folder, and end with the process that started them.
Redis runs with the durability that the ledger asks for; S3 is SeaweedFS with credentials that it enforces.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

import boto3
import redis
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from redis.backoff import NoBackoff
from redis.retry import Retry

from shared.errors import ServerFailed
from shared.local.binaries import find_redis, find_weed
from shared.local.child import LOOPBACK, Child, pick_free_port, require_free_port

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
_START_S = 30.0
_GRPC_OFFSET = 10_000
_ATTEMPTS = 3
_PORT_TAKEN = re.compile(r"address already in use|port allocation failed", re.IGNORECASE)


class _Server:
    """A server on a loopback port, as a context manager; subclasses say how it is run and when it is ready."""

    name: str

    def __init__(self, folder: Path, *, port: int | None) -> None:
        self.folder = folder.absolute()
        self.port = port or 0
        self._requested_port = port
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._child.pid if self._child else None

    def start(self) -> Self:
        """Return when the server answers, within 30 s; a port that was not asked for is chosen anew if it gets taken.

        Raises:
            ServerFailed: no such program, the port or the folder is in use, or the server did not start.
        """
        if self._requested_port:
            require_free_port(self._requested_port, of=self.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServerFailed(f"{self.name}: {self.folder}: {error.strerror}") from error
        for attempt in range(1, _ATTEMPTS + 1):
            self._child = Child(self.name, self._command(), folder=self.folder)
            try:
                self._child.start(self._ready, timeout_s=_START_S)
                break
            except ServerFailed as error:
                if attempt == _ATTEMPTS or not _PORT_TAKEN.search(str(error)):
                    raise
        return self

    def stop(self) -> None:
        """End the server; safe to repeat. What it acknowledged stays in its folder."""
        if self._child is not None:
            self._child.stop()

    def check(self) -> None:
        """Raise `ServerFailed`, with the end of its log, if the server has ended by itself."""
        if self._child is not None:
            self._child.check()

    def environment(self) -> dict[str, str]:
        """Variables with which this project's processes use the server."""
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _ready(self) -> bool:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class RedisServer(_Server):
    """Redis with every write on disk before its reply, and no eviction."""

    name = "Redis"

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
            "save": "",
            "daemonize": "no",
        }
        return [str(find_redis()), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _ready(self) -> bool:
        client = redis.Redis(port=self.port, socket_timeout=1, retry=Retry(NoBackoff(), 0))
        try:
            return bool(client.info("server")["process_id"] == self.pid)
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        finally:
            client.close()


class S3Server(_Server):
    """SeaweedFS: one bucket, and one key pair made for the data folder, without which nothing is served."""

    name = "SeaweedFS"

    def __init__(self, data: Path, *, port: int | None = None, bucket: str = "flux2") -> None:
        """Keep the data under `data`/s3; listen on `port`, or on a free one."""
        super().__init__(data / "s3", port=port)
        self.bucket = bucket
        self.access_key = self.secret_key = ""
        self._ports: list[int] = []

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def environment(self) -> dict[str, str]:
        return {
            "FLUX2_STORAGE_BACKEND": "s3",
            "FLUX2_S3_BUCKET": self.bucket,
            "FLUX2_S3_ENDPOINT_URL": self.url,
            "FLUX2_S3_REGION": REGION,
            "FLUX2_S3_ADDRESSING_STYLE": "path",
            # Of another endpoint, if the caller has them.
            "FLUX2_S3_PUBLIC_ENDPOINT_URL": "",
            "FLUX2_S3_SSE": "",
            "FLUX2_S3_SSE_KMS_KEY_ID": "",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": "",
        }

    def stop(self) -> None:
        super().stop()
        # weed leaves its Unix sockets behind.
        for port in self._ports:
            for stale in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                stale.unlink(missing_ok=True)

    def _command(self) -> list[str]:
        self._choose_ports()
        self._make_credentials()
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        # weed would read the ports of the last start from there.
        (data / "mini.options").unlink(missing_ok=True)
        options = {
            "dir": str(data),
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            "s3.config": str(self._identity),
            "s3.iam": "false",
            "s3.autoCreateBucket": "false",
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
            "webdav": "false",
            "admin.ui": "false",
            "disableHttp": "true",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": "64",
            "volume.max": "0",
            "volume.preStopSeconds": "0",
        }
        for role, port in zip(("s3", "master", "volume", "filer", "admin"), self._ports[::2], strict=True):
            options |= {f"{role}.port": str(port), f"{role}.port.grpc": str(self._ports[self._ports.index(port) + 1])}
        return [str(find_weed()), "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())]

    def _choose_ports(self) -> None:
        """List HTTP and gRPC port of each part, S3 first; parts dial each other's gRPC at HTTP + 10000."""
        self.port = self._requested_port or pick_free_port()
        self._ports = [self.port, pick_free_port(taken=[self.port])]
        for _ in ("master", "volume", "filer", "admin"):
            port = pick_free_port(taken=self._ports, also=_GRPC_OFFSET)
            self._ports += [port, port + _GRPC_OFFSET]

    @property
    def _identity(self) -> Path:
        return self.folder / "identity.json"

    def _make_credentials(self) -> None:
        if not self._identity.exists():
            pair = {"accessKey": f"FLUX2{secrets.token_hex(8).upper()}", "secretKey": secrets.token_urlsafe(30)}
            identity = {
                "name": "flux2",
                "credentials": [pair],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
            fresh = self._identity.with_suffix(".new")
            fresh.touch(mode=0o600)
            fresh.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
            fresh.replace(self._identity)
        pair = json.loads(self._identity.read_text(encoding="utf-8"))["identities"][0]["credentials"][0]
        self.access_key, self.secret_key = pair["accessKey"], pair["secretKey"]

    def _ready(self) -> bool:
        """Make the bucket and write one object: the gateway answers before there is a volume to write to."""
        client = self._client()
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket=self.bucket)
            client.put_object(Bucket=self.bucket, Key=".ready", Body=b"")
            client.delete_object(Bucket=self.bucket, Key=".ready")
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return True

    def _client(self) -> S3Client:
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            connect_timeout=1,
            read_timeout=5,
            proxies={},
        )
        session = boto3.session.Session(self.access_key, self.secret_key, region_name=REGION)
        return session.client("s3", endpoint_url=self.url, config=config)


class EmbeddedServers:
    """Both servers as one; whatever started is stopped when the other fails."""

    def __init__(self, data: Path, redis_port: int | None = None, s3_port: int | None = None) -> None:
        self.redis = RedisServer(data, port=redis_port)
        self.s3 = S3Server(data, port=s3_port)

    def start(self) -> Self:
        """Return when both answer; errors are those of the servers."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.redis)
            stack.enter_context(self.s3)
            stack.pop_all()
        return self

    def stop(self) -> None:
        """End both; safe to repeat."""
        self.s3.stop()
        self.redis.stop()

    def check(self) -> None:
        """Raise `ServerFailed` if one of them has ended by itself."""
        self.redis.check()
        self.s3.check()

    def environment(self) -> dict[str, str]:
        """Variables with which this project's processes use both."""
        return self.redis.environment() | self.s3.environment()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
