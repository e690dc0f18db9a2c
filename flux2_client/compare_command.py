"""`flux2 compare`: render prompts two ways, and write a page that shows them side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flux2_client.options import (
    ApiKey,
    Format,
    Json,
    Model,
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
    from flux2_client.comparison import Comparison

# The heavy modules are imported when the command runs: `--help` must not wait for them.

_WAY = (
    "Setting of one way, e.g. sample_steps=25, preset=turbo, sigmas=1,0.5, engine=fast or lora=PATH@1; may be repeated."
)


def compare(
    a: Annotated[list[str] | None, typer.Option("--a", metavar="NAME=VALUE", help=_WAY)] = None,
    b: Annotated[list[str] | None, typer.Option("--b", metavar="NAME=VALUE", help="The same of the other way.")] = None,
    prompt: Prompts = None,
    prompts: PromptsFile = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="PATH[@MULTIPLIER]", help="Adapter of both ways; may be repeated.")
    ] = None,
    seed: Seeds = None,
    size: Size = None,
    model: Model = None,
    trigger: Trigger = None,
    image_format: Format = None,
    output: Annotated[Path, typer.Option(file_okay=False, help="Folder of the page and its images.")] = Path(
        "compare-output"
    ),
    as_json: Json = False,
    url: Url = None,
    profile: Profile = None,
    api_key: ApiKey = None,
) -> None:
    """Render prompts two ways and write a page of pairs, differences and PSNR. Exit code 3 if images are missing."""
    from flux2_client.comparison import run_comparison
    from flux2_client.comparison_page import write_page
    from flux2_client.report import open_report
    from flux2_client.request_source import Description
    from flux2_client.terminal import Session
    from flux2_client.way import Way
    from shared.outputs import output_folder

    described = Description(
        prompts=prompt,
        prompts_file=Path(prompts) if prompts else None,
        loras=lora,
        seeds=seed,
        size=size,
        sigmas=None,
        prompt_fields={},
        request_fields={"model": model, "trigger_word": trigger, "output_format": image_format},
    )
    try:
        request = described.compose()
        ways = Way.parse("A", a or []), Way.parse("B", b or [])
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    if ways[0].settings == ways[1].settings:
        raise typer.BadParameter("both ways are the same; give --a or --b another setting, e.g. --b preset=turbo")
    session = Session(url, profile, api_key, patient=True)
    session.submits = True

    async def run(client: AsyncClient) -> int:
        with open_report(as_json=as_json) as report:
            comparison, code = await run_comparison(client, request, ways, output, session=session, report=report)
        page = write_page(comparison, output)
        _print_summary(comparison, page, as_json=as_json)
        return code

    # Before anything is rendered, so that a mistyped path costs no GPU time.
    with output_folder(output):
        session.run(run)


def _print_summary(comparison: Comparison, page: Path, *, as_json: bool) -> None:
    from flux2_client.comparison_page import describe_psnr, describe_seconds
    from flux2_client.report import print_json
    from shared.console import LineConsole
    from shared.plurals import counted

    ways, psnr = (comparison.a, comparison.b), comparison.psnr_db
    if as_json:
        # JSON has no infinity, which is the PSNR of equal images.
        median, lowest = (
            None if value is None or math.isinf(value) else value
            for value in (comparison.median_psnr_db, psnr[0] if psnr else None)
        )
        print_json(
            {
                "event": "compared",
                "page": str(page),
                "pairs": len(psnr),
                "equal": sum(map(math.isinf, psnr)),
                "median_psnr_db": median,
                "lowest_psnr_db": lowest,
                "median_denoise_s": {way.label: comparison.median_denoise_s(way) for way in ways},
            }
        )
        return
    rows = [("", "settings", "images", "denoising, median")]
    rows += [
        (
            way.label,
            way.title,
            f"{len(comparison.renderings(way))} of {len(comparison.pairs)}",
            describe_seconds(comparison.median_denoise_s(way)),
        )
        for way in ways
    ]
    console = LineConsole()
    console.print_rows(rows)
    pairs = counted(len(psnr), "pair", "pairs")
    console.print_line(f"PSNR of {pairs}: median {describe_psnr(comparison.median_psnr_db)}")
    console.print_line(f"page: {page}")
