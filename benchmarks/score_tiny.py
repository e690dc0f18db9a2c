"""Score the embedded demonstration model on 60 prompts that it was never trained on.

A worker's renderer draws each prompt of tiny_prompts.json. A picture passes if `benchmarks.pictures` finds exactly the
figures that the prompt names, with their colour, shape, count, place and size, and nothing else. The exit code is 1 if
fewer than 54 pass.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image

from benchmarks.pictures import figures, mistakes
from shared.job import ItemSpec
from shared.settings import ModelSettings
from worker.model.demo_model import write_tiny_checkpoint
from worker.model.load import load_components
from worker.rendering.renderer import Renderer

PROMPTS = Path(__file__).with_name("tiny_prompts.json")
PASSING = 54
SEED = 42


def main(
    size: Annotated[int, typer.Option(help="Side of the pictures, in pixels.")] = 128,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 4.0,
    sheet: Annotated[Path | None, typer.Option(help="Save all pictures on one sheet.")] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint to score. Default: the embedded one.")] = None,
) -> None:
    """Render every prompt, print the mistakes in each picture, and print the score."""
    cases = json.loads(PROMPTS.read_text())
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            model = Path(folder) / "tiny"
            write_tiny_checkpoint(model)
        renderer = load_renderer(model)
        pictures = [render(renderer, case["prompt"], size=size, steps=steps, guidance=guidance) for case in cases]
    passed = 0
    for case, picture in zip(cases, pictures, strict=True):
        wrong = mistakes(case, figures(picture))
        passed += not wrong
        typer.echo(f"{'ok  ' if not wrong else 'FAIL'} {case['prompt']}" + (f": {'; '.join(wrong)}" if wrong else ""))
    if sheet is not None:
        _save_sheet(pictures, sheet)
    typer.echo(f"{passed} of {len(cases)}")
    if passed < PASSING:
        raise typer.Exit(1)


def load_renderer(model: Path) -> Renderer:
    """Load a checkpoint in float32 on the CPU."""
    settings = ModelSettings(path=str(model), text_encoder=str(model / "text_encoder"), precision="fp32")
    return Renderer(load_components(settings, device=torch.device("cpu"), hf_token=None), prompt_cache=4)


def render(renderer: Renderer, prompt: str, *, size: int, steps: int, guidance: float) -> Image.Image:
    """Render one prompt without adapters."""
    spec = ItemSpec(
        model="flux2", prompt=prompt, neg="", width=size, height=size, requested_width=size, requested_height=size,
        seed=SEED, num_inference_steps=steps, guidance_scale=guidance, adapters=(), output_format="png",
    )  # fmt: skip
    image: Any = renderer.render(spec, [], on_progress=lambda _: None).image
    return image


def _save_sheet(pictures: list[Image.Image], file: Path, *, columns: int = 10) -> None:
    side = pictures[0].width
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * side, index // columns * side))
    sheet.save(file)


if __name__ == "__main__":
    typer.run(main)
