"""`flux2 provenance`: make a certificate for signatures, and show the signature in an image file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make a certificate with which workers sign images, and check signatures.",
)


@app.command()
def certificate(
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Folder for the certificates and the key.")],
    name: Annotated[str, typer.Option(help="Name of the signer, which every image then shows.")] = "flux2-queue",
    days: Annotated[int, typer.Option(min=1, max=36_500, help="Days until the certificate ends.")] = 3650,
) -> None:
    """Make a certificate and its key on this host. Nobody else vouches for it: who checks needs authority.pem."""
    from shared.provenance.local_certificate import write_local_certificate

    # A certificate has 64 bytes for a name; the issuer's is longer by " authority".
    if not name.isprintable() or not 0 < len(name.encode()) <= 50:
        raise typer.BadParameter(
            "write 1 to 50 printable characters; letters beyond ASCII count as 2 to 4", param_hint="--name"
        )
    made = write_local_certificate(folder, name=name, days=days)
    typer.echo(f"FLUX2_PROVENANCE_CERTIFICATE={made.certificate.absolute()}")
    typer.echo(f"FLUX2_PROVENANCE_KEY={made.key.absolute()}")
    # On stderr, so that the settings alone can go into .env.
    typer.echo(
        f"Set these two for the workers, and keep {made.key.name} secret. To check an image: "
        f"flux2 provenance show IMAGE --trust {made.authority}",
        err=True,
    )


@app.command()
def show(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file: PNG, JPEG or WebP.")],
    trust: Annotated[
        Path | None,
        typer.Option(help="PEM file of authorities: one of their certificates must have signed the image."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show who signed an image and whether it was changed since. Exit code 1 if there is no signature that holds."""
    from dataclasses import asdict

    from shared.console import LineConsole
    from shared.extras import require_extras
    from shared.provenance.signature import is_accepted, read_file, read_signature, read_trusted

    require_extras({"c2pa": "provenance"})
    found = read_signature(read_file(image), trusted=read_trusted(trust) if trust else None)
    if as_json:
        typer.echo(json.dumps(asdict(found) if found else None))
    elif found is None:
        LineConsole().print_line("not signed")
    else:
        rows = [("signature", found.describe()), ("algorithm", found.algorithm), ("made with", found.made_with)]
        LineConsole().print_rows([row for row in rows if row[1]])
    if found is None or not is_accepted(found, trusted_only=trust is not None):
        raise typer.Exit(1)
