"""`flux2 adapters`: list and describe the files that jobs can name, upload files of this host, and delete them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from flux2_client.adapter_upload import upload_bar, upload_name
from flux2_client.options import ApiKey, Json, Profile, Url

if TYPE_CHECKING:
    from flux2_client.async_client import AsyncClient
    from shared.sources.source import UploadedFile

_DEFAULT = "show"


class DefaultGroup(TyperGroup):
    """Runs `show` if the first word is no subcommand, so that `flux2 adapters [PATH]` lists and describes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=DefaultGroup,
    pretty_exceptions_enable=False,
    help="List the adapter files that jobs can name, or describe one (PATH); push files of this host, and remove them.",
)


@app.command(_DEFAULT)
def show(
    path: Annotated[str | None, typer.Argument(help="Adapter to describe; without it, all are listed.")] = None,
    model: Annotated[str, typer.Option(help="Id of the model to check the adapter against.")] = "flux2",
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """List the adapter files that jobs can name, or describe one. Exit code 1 if jobs cannot use it."""
    from flux2_client.tables import print_adapter, print_adapter_files, print_answer, print_listing
    from flux2_client.terminal import REFUSED, SUCCEEDED, Session

    async def run(client: AsyncClient) -> int:
        if path is not None:
            found = await client.adapter(path, model=model)
            print_answer(found, print_adapter, as_json=as_json)
            return REFUSED if found.refused else SUCCEEDED
        await print_listing(
            client.adapters(),
            print_adapter_files,
            as_json=as_json,
            empty="no adapter files are under the API's FLUX2_ADAPTERS_ROOT, and none was uploaded",
        )
        return SUCCEEDED

    Session(url, profile, api_key).run(run)


@app.command("list")
def list_adapters(as_json: Json = False, url: Url = None, profile: Profile = None, api_key: ApiKey = None) -> None:
    """List the adapter files that jobs can name, uploaded ones last."""
    show(None, as_json=as_json, url=url, profile=profile, api_key=api_key)


@app.command()
def push(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Adapter files on this host.")],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the upload of one file. Default: the file's, or the folder's of a PEFT adapter."),
    ] = None,
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """Upload adapter files, and print the path with which jobs name each. A repeat changes nothing."""
    from flux2_client.file_body import open_adapter_body
    from flux2_client.report import print_message
    from flux2_client.tables import print_answer, print_upload
    from flux2_client.terminal import SUCCEEDED, Session

    if name and len(files) > 1:
        raise typer.BadParameter("--name names one upload; push the files one by one, or leave it out")
    # Before the first is sent: all names are sound, or nothing is uploaded.
    names = {file: name or _upload_name(file) for file in files}

    async def run(client: AsyncClient) -> int:
        for file in files:
            with upload_bar(file, as_json=as_json) as on_progress:
                body = open_adapter_body(file, on_progress=on_progress)
                stored = await client.upload_adapter(body, name=names[file])
            print_answer(stored, print_upload, as_json=as_json)
            if stored.must_ignore:
                print_message(f'jobs must leave out a part of {file}: {{"ignore": {list(stored.must_ignore)}}}')
        return SUCCEEDED

    Session(url, profile, api_key).run(run)


@app.command()
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME[@SHA256]...", help="Uploads to delete.")],
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """Delete uploaded files: all versions of a name, or the one with a sha256. Files that jobs still need stay."""
    from flux2_client.tables import print_answer, print_deleted
    from flux2_client.terminal import SUCCEEDED, Session

    # Before the first is deleted. An empty variable behind the @ must not stand for all versions.
    uploads = [_parse_upload(text) for text in names]

    async def run(client: AsyncClient) -> int:
        await _require_own(client, uploads)
        for each in uploads:
            deleted = await client.delete_adapter(each.name, sha256=each.sha256)
            print_answer(deleted, print_deleted, as_json=as_json)
        return SUCCEEDED

    Session(url, profile, api_key).run(run)


def _upload_name(file: Path) -> str:
    try:
        return upload_name(file)
    except ValueError as error:
        raise typer.BadParameter(f"{error}; choose one with --name") from error


def _parse_upload(text: str) -> UploadedFile:
    from shared.errors import AdapterRefused
    from shared.sources.source import UploadedFile, parse_source

    try:
        source = parse_source(f"upload:{text.removeprefix('upload:')}")
    except AdapterRefused as error:
        raise typer.BadParameter(str(error)) from error
    assert isinstance(source, UploadedFile)
    return source


async def _require_own(client: AsyncClient, uploads: Sequence[UploadedFile]) -> None:
    """Raise `UploadNotFound` if an upload names a tenant that is not the caller's: the API deletes by name alone."""
    from shared.errors import UploadNotFound

    # Without the version: the API says which versions there are not.
    foreign = {f"upload:{each.tenant}/{each.name}" for each in uploads if each.tenant}
    if foreign:
        foreign -= {file.path.partition("@")[0] async for file in client.adapters()}
    if foreign:
        raise UploadNotFound(
            f"no upload of yours is named {min(foreign)}, so nothing was deleted; `flux2 adapters list` shows all"
        )
