"""`flux2 reproduce`: render an image again from its file, and compare the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flux2_client.options import ApiKey, Json, Profile, Url


def reproduce(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file of this service: PNG, JPEG or WebP.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="File to save the second rendering in.")
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option(help="PEM file of authorities: one of their certificates must have signed the image."),
    ] = None,
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """Render an image again from the parameters in its file. Exit code 1 if pixels differ or a signature is broken."""
    from dataclasses import asdict

    from flux2_client.profiles import find_target
    from flux2_client.replay import replay_client
    from flux2_client.report import print_json
    from flux2_client.reproduction import reproduce as render_again
    from shared.console import LineConsole
    from shared.outputs import write_file
    from shared.provenance.signature import is_accepted, read_trusted

    trusted = read_trusted(trust) if trust else None
    console = LineConsole(stderr=as_json)
    with replay_client(console, find_target(url, profile, api_key)) as client:
        found = render_again(client, image, trusted=trusted)
    if output is not None:
        write_file(output, found.data)
    if as_json:
        print_json(
            {
                "request_id": found.request_id,
                "identical": found.is_identical,
                "values": found.similarity.values,
                "differing": found.similarity.differing,
                "largest_difference": found.similarity.maximum,
                # Infinite for equal images, which JSON cannot say.
                "psnr_db": None if found.is_identical else found.similarity.psnr_db,
                "causes": list(found.causes),
                "signature": asdict(found.signature) if found.signature else None,
            }
        )
    else:
        for line in found.describe():
            console.print_line(line)
        if trust and found.signature is None:
            console.print_line("signature: none")
    if not found.is_identical or not is_accepted(found.signature, trusted_only=trust is not None):
        raise typer.Exit(1)
