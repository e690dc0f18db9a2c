"""An embedded S3 store, SeaweedFS, that enforces its credentials."""

from __future__ import annotations

import contextlib
import json
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from shared.errors import ServerFailed
from shared.local.binaries import find_weed
from shared.local.ports import LOOPBACK, pick_free_port
from shared.local.server import LoopbackServer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"

# SeaweedFS' parts expect each other's gRPC port at the HTTP port plus this; the S3 gateway's may be any.
_GRPC_OFFSET = 10_000

_PARTS = ("s3", "master", "volume", "filer", "admin")
# Small volumes, created as needed, keep a fresh data folder below 10 MB; everything that is not S3 is off.
_OPTIONS = {
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


class S3Server(LoopbackServer):
    """SeaweedFS with one bucket; it refuses requests without the key pair of its data folder."""

    name = "SeaweedFS"
    port_option = "--s3-port"

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
            # The caller's values, if any, belong to another store.
            "FLUX2_S3_SSE": "",
            "FLUX2_S3_SSE_KMS_KEY_ID": "",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": "",
        }

    def stop(self) -> None:
        super().stop()
        # weed does not delete its Unix sockets.
        for port in self._ports:
            for stale in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                stale.unlink(missing_ok=True)

    def _command(self) -> list[str]:
        self._choose_ports()
        self._make_credentials()
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        # weed would read the ports of its last start from this file.
        (data / "mini.options").unlink(missing_ok=True)
        options = {
            "dir": str(data),
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            "s3.config": str(self._identity),
            **_OPTIONS,
        }
        for part, http_port, grpc_port in zip(_PARTS, self._ports[::2], self._ports[1::2], strict=True):
            options |= {f"{part}.port": str(http_port), f"{part}.port.grpc": str(grpc_port)}
        return [str(find_weed()), "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items())]

    def _choose_ports(self) -> None:
        """List the HTTP and the gRPC port of each part in turn, S3 first."""
        self.port = self._requested_port or pick_free_port()
        self._ports = [self.port, pick_free_port(taken=[self.port])]
        for _ in _PARTS[1:]:
            port = pick_free_port(taken=self._ports, twin_offset=_GRPC_OFFSET)
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
            # Readable by its owner only before the secret is in it, and complete before it has its name.
            fresh.touch(mode=0o600)
            fresh.write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
            fresh.replace(self._identity)
        pair = json.loads(self._identity.read_text(encoding="utf-8"))["identities"][0]["credentials"][0]
        self.access_key, self.secret_key = pair["accessKey"], pair["secretKey"]

    def _ready(self) -> bool:
        """Create the bucket, and write and delete one object."""
        # The gateway answers before it has a volume to write to, so an answer alone does not mean that it is ready.
        client = self._client()
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
                client.create_bucket(Bucket=self.bucket)
            client.put_object(Bucket=self.bucket, Key=".ready", Body=b"")
            client.delete_object(Bucket=self.bucket, Key=".ready")
        except ParamValidationError as error:
            raise ServerFailed(f"FLUX2_S3_BUCKET {self.bucket!r} is not a name for a bucket: {error}") from error
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
