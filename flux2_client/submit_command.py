"""`flux2 submit`: from prompts, or a request file, to jobs and to images on this disk."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flux2_client.options import (
    DEFAULT_NAME,
    DEFAULT_PARALLEL,
    ApiKey,
    Deadline,
    Format,
    Json,
    Model,
    Name,
    Output,
    Overwrite,
    Parallel,
    Profile,
    Prompts,
    PromptsFile,
    Seeds,
    Size,
    Trigger,
    Url,
)

if TYPE_CHECKING:
    from flux2_client.async_client import AsyncClient

# The heavy modules are imported when a command runs: `--help` must not wait for them.


def submit(
    file: Annotated[str | None, typer.Argument(help="Request file with the API's JSON; - reads stdin.")] = None,
    prompt: Prompts = None,
    prompts: PromptsFile = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH[@MULTIPLIER]", help="Adapter under the adapter root; may be repeated."),
    ] = None,
    ctrl_img: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|ADDRESS",
            help="Reference image of every prompt: a file of this host, which is uploaded, or https://, s3:// or "
            "upload:SHA256.",
        ),
    ] = None,
    ctrl_img_2: Annotated[
        str | None, typer.Option("--ctrl-img-2", metavar="FILE|ADDRESS", help="Second reference image.")
    ] = None,
    ctrl_img_3: Annotated[
        str | None, typer.Option("--ctrl-img-3", metavar="FILE|ADDRESS", help="Third reference image.")
    ] = None,
    seed: Seeds = None,
    size: Size = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. Default: the model's.")] = None,
    sigmas: Annotated[
        str | None,
        typer.Option(
            metavar="LEVELS", help="Noise levels instead of --steps, e.g. 1,0.75,0.5,0.25; the final 0 is implied."
        ),
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale. Default: the model's.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Preset of the model for what the prompts leave open, e.g. turbo.")
    ] = None,
    model: Model = None,
    engine: Annotated[str | None, typer.Option(help="exact, ai-toolkit or fast. Default: exact.")] = None,
    trigger: Trigger = None,
    image_format: Format = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="0 is rendered first, 9 last. Default: 5.")] = None,
    deadline: Deadline = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all images are rendered.")] = False,
    output: Output = None,
    name: Name = DEFAULT_NAME,
    parallel: Parallel = DEFAULT_PARALLEL,
    overwrite: Overwrite = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Repeating the command with this key and the same request starts nothing new.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """Submit images, and with --output wait for them and save them. Exit code 3 if only some images succeeded."""
    from flux2_client.destination import open_destination
    from flux2_client.following import follow_jobs
    from flux2_client.report import open_report
    from flux2_client.request_source import Description, load_request
    from flux2_client.submission import submit_request
    from flux2_client.terminal import SUCCEEDED, Session

    described = Description(
        prompts=prompt,
        prompts_file=Path(prompts) if prompts else None,
        loras=lora,
        seeds=seed,
        size=size,
        sigmas=sigmas,
        prompt_fields={
            "sample_steps": steps,
            "guidance_scale": guidance,
            "ctrl_img": ctrl_img,
            "ctrl_img_2": ctrl_img_2,
            "ctrl_img_3": ctrl_img_3,
        },
        request_fields={
            "model": model,
            "preset": preset,
            "engine": engine,
            "trigger_word": trigger,
            "output_format": image_format,
            "priority": priority,
            "deadline_s": deadline,
        },
    )
    try:
        request = load_request(file, described)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    session = Session(url, profile, api_key, patient=True)
    session.submits = True

    async def run(client: AsyncClient) -> int:
        with open_report(as_json=as_json) as report:
            await submit_request(client, request, session=session, report=report, key=idempotency_key)
            if not (wait or session.to):
                return SUCCEEDED
            return await follow_jobs(client, session.jobs, report=report, to=session.to)

    with open_destination(output, name, parallel, overwrite) if output else nullcontext() as session.to:
        session.run(run)
