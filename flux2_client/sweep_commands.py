"""`flux2 sweep`: every combination of checkpoints, multipliers and other parameters, and the best of them."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flux2_client.options import DEFAULT_PARALLEL, ApiKey, Deadline, Json, Parallel, Profile, Url

if TYPE_CHECKING:
    from flux2_client.async_client import AsyncClient

# The heavy modules are imported when a command runs: `--help` must not wait for them.

app = typer.Typer(pretty_exceptions_enable=False)

_SweepId = Annotated[str, typer.Argument(metavar="ID", help="Id of a sweep.")]
_Prompt = Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Text of an image; may be repeated.")]
_Prompts = Annotated[
    str | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        allow_dash=True,
        metavar="FILE",
        help="File with a prompt, or a JSON object, on each line; - reads stdin.",
    ),
]


@app.callback(invoke_without_command=True)
def sweep(
    context: typer.Context,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LABEL=]PATH",
            help="Adapter to compare: a path under the adapter root, an address, or a file of this host, which is "
            "uploaded; may be repeated.",
        ),
    ] = None,
    training_run: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            metavar="FOLDER|CONFIG",
            help="Output folder of an AI Toolkit training: all of its checkpoints, and the sample prompts of its "
            "config.",
        ),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Compare the base model, without an adapter, too.")] = False,
    multiplier: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Multipliers of each checkpoint, e.g. 0.6,0.8,1. Default: 1.")
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(metavar="SEEDS", help="Seeds: 7, 1..8 or 1,2,3. Default: 42 plus the prompt's index."),
    ] = None,
    prompt: _Prompt = None,
    prompts: _Prompts = None,
    size: Annotated[str | None, typer.Option(metavar="SIZES", help="Sizes in pixels, e.g. 1024,768x1024.")] = None,
    steps: Annotated[str | None, typer.Option(metavar="NUMBERS", help="Denoising steps, e.g. 20,25.")] = None,
    guidance: Annotated[str | None, typer.Option(metavar="NUMBERS", help="Guidance scales, e.g. 3.5,4.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="PATH[@MULTIPLIER]", help="Adapter of every image; may be repeated.")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with the reference images of the training run's samples; may be repeated.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Id of the model. Default: the training run's, or flux2.")] = None,
    engine: Annotated[str | None, typer.Option(help="exact, ai-toolkit or fast. Default: exact.")] = None,
    preset: Annotated[str | None, typer.Option(help="Preset of the model for what the prompts leave open.")] = None,
    trigger: Annotated[str | None, typer.Option(help=r"Replaces \[trigger] in every prompt.")] = None,
    image_format: Annotated[str | None, typer.Option("--format", help="png, jpeg or webp. Default: png.")] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="0 is rendered first, 9 last. Default: 5.")] = None,
    deadline: Deadline = None,
    output: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder of the results. Default: sweep-ID.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the sweep would take, and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the sweep is submitted.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the images, and save them.")] = True,
    parallel: Parallel = DEFAULT_PARALLEL,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Repeating the command with this key and the same sweep starts nothing new.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """Render every combination of checkpoints, multipliers, seeds, prompts, sizes, steps and guidance scales.

    Without one of the commands below, it shows an estimate, submits the sweep, saves the images, and writes a page, a
    contact sheet and a table of them. Exit code 3 if only some images succeeded.
    """
    from flux2_client.report import print_message
    from flux2_client.request_source import Description
    from flux2_client.sweeps.folder import open_unused
    from flux2_client.sweeps.sweep_request import SweepAxes, compose_sweep
    from flux2_client.sweeps.sweep_submission import (
        default_folder,
        prepare_sweep,
        print_estimate,
        submit_sweep,
        watch_sweep,
    )
    from flux2_client.sweeps.training_run import read_training_run
    from flux2_client.terminal import SUCCEEDED, Session

    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    run = read_training_run(training_run, image_folders=tuple(images or ())) if training_run else None
    described = Description(
        prompts=prompt,
        prompts_file=Path(prompts) if prompts else None,
        loras=lora,
        seeds=None,
        size=None,
        sigmas=None,
        prompt_fields={},
        request_fields={
            "model": model,
            "preset": preset,
            "engine": engine,
            "trigger_word": trigger,
            "output_format": image_format,
            "priority": priority,
            "deadline_s": deadline,
        },
        entries=run.prompts if run else (),
    )
    axes = SweepAxes(multipliers=multiplier, seeds=seed, sizes=size, steps=steps, guidance_scales=guidance)
    try:
        composed = compose_sweep(described, axes, checkpoints=checkpoint or (), run=run, with_base=base)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    for warning in run.warnings if run else ():
        print_message(f"warning: {warning}")
    session = Session(url, profile, api_key, patient=True)
    session.submits = True

    async def main(client: AsyncClient) -> int:
        prepared = await prepare_sweep(client, composed)
        is_asked = sys.stdin.isatty() and not yes
        if dry_run or is_asked:
            print_estimate(prepared, as_json=as_json)
        if dry_run or (is_asked and not typer.confirm("Submit it?", default=True, err=True)):
            return SUCCEEDED
        sweep_id, warnings = await submit_sweep(client, prepared, key=idempotency_key, as_json=as_json)
        for warning in warnings:
            print_message(f"warning: {warning}")
        if not wait:
            return SUCCEEDED
        folder = output or default_folder(sweep_id)
        return await watch_sweep(client, sweep_id, folder, session=session, parallel=parallel, as_json=as_json)

    is_new = not (idempotency_key or dry_run)
    with open_unused(output) if output and is_new else nullcontext():
        session.run(main)


@app.command()
def watch(
    sweep_id: _SweepId,
    output: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder of the results. Default: sweep-ID.")
    ] = None,
    parallel: Parallel = DEFAULT_PARALLEL,
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """Wait until a sweep has ended, save its images, and write what shows them; also goes on where another stopped."""
    from flux2_client.sweeps.sweep_submission import default_folder, watch_sweep
    from flux2_client.terminal import Session

    session = Session(url, profile, api_key, patient=True)

    async def main(client: AsyncClient) -> int:
        folder = output or default_folder(sweep_id)
        return await watch_sweep(client, sweep_id, folder, session=session, parallel=parallel, as_json=as_json)

    session.run(main)


@app.command()
def status(
    sweep_id: _SweepId, as_json: Json = False, url: Url = None, profile: Profile = None, api_key: ApiKey = None
) -> None:
    """Show the state of a sweep and of each of its jobs."""
    from flux2_client.tables import print_answer, print_sweep
    from flux2_client.terminal import SUCCEEDED, Session

    async def main(client: AsyncClient) -> int:
        print_answer(await client.sweep_status(sweep_id), print_sweep, as_json=as_json)
        return SUCCEEDED

    Session(url, profile, api_key).run(main)


@app.command()
def cancel(
    sweep_id: _SweepId, as_json: Json = False, url: Url = None, profile: Profile = None, api_key: ApiKey = None
) -> None:
    """Cancel the unfinished images of a sweep; finished images stay."""
    from flux2_client.tables import print_answer, print_canceled
    from flux2_client.terminal import SUCCEEDED, Session

    async def main(client: AsyncClient) -> int:
        print_answer(await client.cancel_sweep(sweep_id), print_canceled, as_json=as_json)
        return SUCCEEDED

    Session(url, profile, api_key).run(main)


@app.command("list")
def list_sweeps(
    tenant: Annotated[
        str | None, typer.Option(help="Only sweeps of this tenant; for keys with the role admin.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Number of sweeps; 0 lists all.")] = 50,
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """List sweeps, newest first."""
    from flux2_client.tables import print_listing, print_sweeps
    from flux2_client.terminal import SUCCEEDED, Session

    async def main(client: AsyncClient) -> int:
        sweeps = client.sweeps(tenant=tenant)
        await print_listing(sweeps, print_sweeps, limit=limit, as_json=as_json, empty="no such sweeps")
        return SUCCEEDED

    Session(url, profile, api_key).run(main)


@app.command()
def best(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a sweep.", exists=True, file_okay=False)],
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|CHECKPOINT:MULTIPLIER",
            help="What to render with: the file that the sweep's page downloads, or a checkpoint and a multiplier. "
            "Default: best.json in FOLDER.",
        ),
    ] = None,
    prompt: _Prompt = None,
    prompts: _Prompts = None,
    seed: Annotated[
        str | None,
        typer.Option(help="Seeds of each new prompt: 7, 1..8 or 1,2,3. Default: 42 plus the prompt's index."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="File to write the request to.")
    ] = None,
) -> None:
    """Print the request that renders a sweep's prompts, or new ones, with the best of it, for `flux2 submit`."""
    import json

    from flux2_client.composition import parse_seeds
    from flux2_client.request_source import collect_prompts
    from flux2_client.sweeps.best import best_request, read_pick
    from flux2_client.sweeps.folder import read_sweep
    from shared.outputs import write_file

    try:
        new = collect_prompts(prompt or (), Path(prompts) if prompts else None)
        if seed is not None and not new:
            raise ValueError("--seed is for new prompts; give -p PROMPT or --prompts FILE")
        seeds = [] if seed is None else parse_seeds(seed)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    held = read_sweep(folder)
    request = best_request(held, folder, read_pick(pick, held, folder), prompts=new, seeds=seeds)
    text = json.dumps(request, ensure_ascii=False, indent=2) + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        write_file(output, text.encode())


def _refuse_options(context: typer.Context) -> None:
    """Refuse options before the name of a command, which would have no effect."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise typer.BadParameter(
            f"--{given[0].replace('_', '-')} has no effect before the command {context.invoked_subcommand!r}; put the "
            "command's own options behind its name"
        )
