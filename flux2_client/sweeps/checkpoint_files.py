"""Give the service the checkpoints of a sweep that are files of this host: only those that it does not have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import anyio.to_thread

from flux2_client.adapter_upload import upload_bar, upload_name
from flux2_client.async_client import AsyncClient
from flux2_client.file_body import FileBody, open_adapter_body
from flux2_client.models import AdapterFile
from flux2_client.report import print_json, print_message
from shared.errors import UploadRefused


@dataclass(frozen=True)
class CheckpointFiles:
    """Files of this host.

    Attributes:
        known: paths by which the service has files already.
        missing: files that have to be uploaded.
    """

    known: Mapping[Path, str]
    missing: Mapping[Path, FileBody]

    @property
    def missing_bytes(self) -> int:
        return sum(body.size_bytes for body in self.missing.values())


async def find_checkpoint_files(client: AsyncClient, files: Iterable[Path], *, model: str) -> CheckpointFiles:
    """Read the files, and ask the service which of them it has: under its adapter root, or uploaded before.

    Raises:
        UploadRefused: a file cannot be read.
        ApiError: the API refuses a call or cannot be reached.
    """
    bodies = {path: await anyio.to_thread.run_sync(open_adapter_body, path) for path in dict.fromkeys(files)}
    if not bodies:
        return CheckpointFiles({}, {})
    sizes = {body.size_bytes for body in bodies.values()}
    listed = [file async for file in client.adapters() if file.size_bytes in sizes]
    known = {}
    for path, body in bodies.items():
        if found := await _find(client, path, body, listed, model=model):
            known[path] = found
    return CheckpointFiles(known, {path: body for path, body in bodies.items() if path not in known})


async def upload_checkpoint_files(client: AsyncClient, files: CheckpointFiles, *, as_json: bool) -> dict[Path, str]:
    """Upload what is missing; return the path of each file for a request.

    Raises:
        UploadRefused: a file changes while it is sent, or its name cannot name an upload.
        ApiError: the API refuses a file or cannot be reached.
    """
    paths = dict(files.known)
    for path, body in files.missing.items():
        with upload_bar(path, as_json=as_json) as on_progress:
            sent = FileBody(body.path, body.size_bytes, body.sha256, on_progress)
            stored = await client.upload_adapter(sent, name=_name(path))
        paths[path] = stored.path
        if as_json:
            print_json({"event": "uploaded", "file": str(path), **stored.model_dump(mode="json")})
        else:
            print_message(f"uploaded {path}: {stored.path}")
    return paths


async def _find(
    client: AsyncClient, path: Path, body: FileBody, listed: Iterable[AdapterFile], *, model: str
) -> str | None:
    for file in listed:
        if file.sha256 is not None and file.sha256 == body.sha256:
            return file.path
    for file in listed:
        # The service reads the file to describe it, so others of this size are not asked for.
        is_alike = file.sha256 is None and PurePosixPath(file.path).name == path.name
        if is_alike and (await client.adapter(file.path, model=model)).sha256 == body.sha256:
            return file.path
    return None


def _name(path: Path) -> str:
    try:
        return upload_name(path)
    except ValueError as error:
        raise UploadRefused(f"{error}; rename the file") from error
