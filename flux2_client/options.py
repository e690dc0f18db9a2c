"""Options that several of the client's commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flux2_client.file_names import DEFAULT_TEMPLATE, FIELDS, check_template


def _checked_template(template: str) -> str:
    try:
        return check_template(template)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


Url = Annotated[
    str | None,
    typer.Option(help="Address of the API; default: FLUX2_CLIENT_URL, the profile's, or http://127.0.0.1:8000."),
]
Profile = Annotated[
    str | None,
    typer.Option(help="Profile of ~/.config/flux2/config.toml that has the address; default: FLUX2_CLIENT_PROFILE."),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        help="API key; default: FLUX2_API_KEY, or the profile's api_key. Other users of this host may see options.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line; messages go to stderr.")]
Prompts = Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Text of an image; may be repeated.")]
# A text: typer does not know the dash of an option that is a path.
PromptsFile = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        exists=True,
        dir_okay=False,
        allow_dash=True,
        metavar="FILE",
        help="File with a prompt, or a JSON object, on each line; - reads stdin.",
    ),
]
Seeds = Annotated[
    str | None,
    typer.Option("--seed", help="Seeds of each prompt: 7, 1..8 or 1,2,3. Default: 42 plus the prompt's index."),
]
Size = Annotated[str | None, typer.Option(metavar="WxH|N", help="Size in pixels. Default: 1024.")]
Model = Annotated[str | None, typer.Option(help="Id of the model. Default: flux2.")]
Trigger = Annotated[str | None, typer.Option(help=r"Replaces \[trigger] in every prompt.")]
Format = Annotated[str | None, typer.Option("--format", help="png, jpeg or webp. Default: png.")]
Deadline = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Cancel the images that no worker has started by then."),
]
RequestIds = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of jobs.")]
Output = Annotated[Path | None, typer.Option(file_okay=False, help="Wait, and save the images in this folder.")]
Name = Annotated[
    str,
    typer.Option(
        callback=_checked_template,
        help="Template of a file's name, from " + ", ".join(f"{{{name}}}" for name in FIELDS),
    ),
]
Parallel = Annotated[int, typer.Option(min=1, max=64, help="Images to download at the same time.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that hold something else.")]

DEFAULT_NAME = DEFAULT_TEMPLATE
DEFAULT_PARALLEL = 8
