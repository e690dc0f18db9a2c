"""Make boto3 clients that send and sign requests alike: the host of a presigned URL is one that answers it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from boto3.session import Session
from botocore import exceptions
from botocore.config import Config
from botocore.loaders import Loader
from botocore.session import Session as CoreSession

from shared.errors import StorageUnavailable
from shared.settings import S3_ATTEMPTS, S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_DEFAULT_REGION = "us-east-1"
_AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")


def make_client(settings: S3Settings, *, endpoint_url: str | None, credentials: Mapping[str, str | None]) -> S3Client:
    """Make a boto3 client without sending anything.

    Args:
        endpoint_url: None for AWS, unless boto3's own configuration names another store.
        credentials: see `Settings.aws_credentials`.

    Raises:
        StorageUnavailable: a setting, or a file of boto3's own configuration, cannot be used.
    """
    try:
        # boto3's shared session is not safe to make clients from in several threads.
        core = CoreSession()
        core.register_component("data_loader", _descriptions(core.get_config_variable("data_path")))
        session = Session(
            botocore_session=core,
            aws_access_key_id=credentials.get("aws_access_key_id"),
            aws_secret_access_key=credentials.get("aws_secret_access_key"),
            aws_session_token=credentials.get("aws_session_token"),
            region_name=settings.region or credentials.get("region_name"),
        )
        # Another store has other regions: what a host of AWS has in its environment may be unknown there.
        is_elsewhere = settings.endpoint_url is not None
        region = settings.region or (None if is_elsewhere else session.region_name) or _DEFAULT_REGION
        return _open_client(session, settings, endpoint_url=endpoint_url, region=region)
    # A ValueError says that an address is no URL.
    except (exceptions.BotoCoreError, ValueError) as error:
        raise StorageUnavailable(f"no client for {settings.bucket!r}: {error}") from error


class _Descriptions(Loader):
    """Reads botocore's descriptions of the services; the sessions of a process share one, and leave it as it is."""

    @property
    def search_paths(self) -> list[str]:
        # Each boto3 session appends a folder.
        return list(super().search_paths)


# Without it each client parses 2 MB of JSON: 0.2 s for each of the clients with which a process starts.
@lru_cache(maxsize=8)
def _descriptions(folders: str | None) -> _Descriptions:
    """Read the descriptions in botocore's folders and in these, which `AWS_DATA_PATH` separates as `PATH` does."""
    if folders is None:
        return _Descriptions()
    return _Descriptions([os.path.expanduser(os.path.expandvars(folder)) for folder in folders.split(os.pathsep)])


def _open_client(session: Session, settings: S3Settings, *, endpoint_url: str | None, region: str) -> S3Client:
    def make(addressing_style: Literal["auto", "path", "virtual"]) -> S3Client:
        config = Config(
            # By default presigned URLs would be SigV2, which most stores refuse.
            signature_version="s3v4",
            s3={"addressing_style": addressing_style},
            retries={"mode": "standard", "total_max_attempts": S3_ATTEMPTS},
            connect_timeout=settings.timeout_s,
            read_timeout=settings.timeout_s,
            # botocore's default since 1.36 sends trailing checksums, which older MinIO, R2 and others refuse.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return session.client("s3", region_name=region, endpoint_url=endpoint_url, config=config)

    client = make(settings.addressing_style)
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    # On AWS, `auto` sends requests to the region's host, and names the global one in presigned URLs. That one does not
    # know the regions since 2019, and redirects others to a host for which the URL is not signed. `virtual` names the
    # region's host in both, and falls back to paths for a bucket whose name holds a dot, as `auto` does.
    if settings.addressing_style == "auto" and endpoint_url is None and host.endswith(_AWS_HOSTS):
        return make("virtual")
    return client
