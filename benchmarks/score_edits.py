"""Score the embedded demonstration model's edits of figures that it was never trained on.

A worker's renderer gets the picture of a figure as reference image, the edit adapter, and an instruction that names
only what changes. An output passes if `benchmarks.pictures` finds one figure with the right colour, shape, place, size
and background: those of the reference, but for the change. Two controls render the same instructions without a
reference, and with the reference of another case: they must fail. The exit code is 1 if the share of outputs that pass
is below `PASSING`, or above `CONTROL_PASSING` for a control.
"""

from __future__ import annotations

import hashlib
import io
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image

from benchmarks.pictures import background_colour, figures
from shared.job import AdapterRef, ItemSpec, ReferenceRef
from shared.settings import ModelSettings
from tools.train_tiny.data import FIELDS, SLOTS, Picture
from tools.train_tiny.drawing import draw
from tools.train_tiny.edits import Edit, random_edit
from worker.model.demo_model import EDIT, write_tiny_adapter, write_tiny_checkpoint
from worker.model.load import load_components
from worker.rendering.decode import to_image
from worker.rendering.renderer import Renderer

CASES = 24
# Shares of the cases.
PASSING = 0.5
CONTROL_PASSING = 0.1
SIDE = 128
_SEED = 42
# Of the picture's half side, between the figure in the reference and the one in the output.
_FARTHEST = 0.12
_LARGEST_CHANGE = 0.2  # of the radius


def held_out_edits(count: int = CASES) -> list[Edit]:
    """Return the cases, always the same."""
    return [random_edit(random.Random(f"score {number}"), held_out=True) for number in range(count)]


def drawn(picture: Picture) -> Image.Image:
    """Draw a table of figures as the training does."""
    table = torch.zeros(1, SLOTS, FIELDS)
    table[0, : len(picture.figures)] = torch.tensor(picture.figures)
    return to_image(draw(table, torch.tensor([picture.background]), height=SIDE, width=SIDE)[0])


@dataclass(frozen=True)
class Verdict:
    """What is right in an output.

    Attributes:
        colour: the colours of the figure and of the background.
        place: the figure's place and size.
        shape: the figure's shape.
        seen: the output in words.
    """

    colour: bool
    place: bool
    shape: bool
    seen: str

    @property
    def passed(self) -> bool:
        return self.colour and self.place and self.shape


def judge(edit: Edit, output: Image.Image) -> Verdict:
    """Compare an output with the edit."""
    ground = background_colour(output)
    found = figures(output)
    if len(found) != 1:
        return Verdict(colour=False, place=False, shape=False, seen=f"{len(found)} figures on {ground}")
    [figure], [wanted] = found, figures(drawn(edit.after))
    apart = max(abs(figure.x - wanted.x), abs(figure.y - wanted.y))
    growth = figure.radius / wanted.radius - 1
    return Verdict(
        colour=(figure.colour, ground) == (edit.colour, edit.background),
        place=apart <= _FARTHEST and abs(growth) <= _LARGEST_CHANGE,
        shape=figure.shape == edit.shape,
        seen=f"{figure.colour} {figure.shape or 'shape without name'} on {ground}, {apart:.2f} off, size {growth:+.0%}",
    )


@dataclass(frozen=True)
class Editor:
    """The model with its edit adapter, and a store of reference images."""

    renderer: Renderer
    adapter: Path
    stored: dict[str, bytes]

    def edit(self, instruction: str, reference: Image.Image | None, *, steps: int = 25) -> Image.Image:
        """Return what the model makes of a reference image, or of no image."""
        content = self.adapter.read_bytes()
        adapter = AdapterRef(
            path=self.adapter.name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content), multiplier=1.0
        )
        spec = ItemSpec(
            model="flux2", prompt=instruction, neg="", width=SIDE, height=SIDE, requested_width=SIDE,
            requested_height=SIDE, seed=_SEED, num_inference_steps=steps, guidance_scale=4.0, adapters=(adapter,),
            output_format="png", references=() if reference is None else (self._store(reference),),
        )  # fmt: skip
        image: Any = self.renderer.render(spec, [self.adapter], on_progress=lambda _: None).image
        return image

    def _store(self, image: Image.Image) -> ReferenceRef:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
        self.stored[sha256] = buffer.getvalue()
        return ReferenceRef(slot=1, sha256=sha256)


def load_editor(folder: Path, adapter: Path | None = None) -> Editor:
    """Write the embedded model into `folder` and load it in float32 on the CPU.

    Args:
        adapter: the edit adapter; by default the embedded one.
    """
    write_tiny_checkpoint(folder)
    if adapter is None:
        adapter = folder / "adapters" / f"{EDIT}.safetensors"
        write_tiny_adapter(adapter, EDIT)
    settings = ModelSettings(path=str(folder), text_encoder=str(folder / "text_encoder"), precision="fp32")
    components = load_components(settings, device=torch.device("cpu"), hf_token=None)
    stored: dict[str, bytes] = {}
    return Editor(Renderer(components, prompt_cache=4, load_reference=stored.__getitem__), adapter, stored)


class Given(StrEnum):
    """Which reference image an instruction gets."""

    OWN = "own"
    NONE = "none"
    OTHER = "other"


def main(
    cases: Annotated[int, typer.Option(help="Number of edits.")] = CASES,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    sheet: Annotated[
        Path | None, typer.Option(help="Save all edits on one sheet, each reference to the left of its output.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Edit adapter to score. Default: the embedded one.")] = None,
    given: Annotated[
        list[Given] | None,
        typer.Option(help="Reference image: the case's own, none, or another's. Default: all three."),
    ] = None,
) -> None:
    """Render every edit, print the mistakes in each output, and print the scores."""
    edits = held_out_edits(cases)
    own = [drawn(edit.before) for edit in edits]
    references: dict[Given, Sequence[Image.Image | None]] = {
        Given.OWN: own,
        Given.NONE: [None] * cases,
        Given.OTHER: [*own[1:], own[0]],
    }
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        editor = load_editor(Path(folder), adapter)
        for kind in given or list(Given):
            outputs = [
                editor.edit(edit.instruction, reference, steps=steps)
                for edit, reference in zip(edits, references[kind], strict=True)
            ]
            verdicts = [judge(edit, output) for edit, output in zip(edits, outputs, strict=True)]
            if kind is Given.OWN:
                _print_verdicts(edits, verdicts)
                if sheet is not None:
                    save_sheet(own, outputs, sheet)
            passed = sum(verdict.passed for verdict in verdicts)
            parts = ", ".join(
                f"{part} {sum(getattr(verdict, part) for verdict in verdicts)}" for part in ("colour", "place", "shape")
            )
            typer.echo(f"reference {kind.value}: {passed} of {cases} ({parts})")
            failed |= passed < PASSING * cases if kind is Given.OWN else passed > CONTROL_PASSING * cases
    if failed:
        raise typer.Exit(1)


def _print_verdicts(edits: Sequence[Edit], verdicts: Sequence[Verdict]) -> None:
    for edit, verdict in zip(edits, verdicts, strict=True):
        typer.echo(f"{'ok  ' if verdict.passed else 'FAIL'} {edit.shape}: {edit.instruction}: {verdict.seen}")


def save_sheet(
    references: Sequence[Image.Image], outputs: Sequence[Image.Image], file: Path, *, columns: int = 6
) -> None:
    """Save pairs of pictures on one sheet."""
    gap = 8
    sheet = Image.new(
        "RGB", (columns * (2 * SIDE + gap) - gap, -(-len(outputs) // columns) * (SIDE + gap) - gap), "white"
    )
    for index, pair in enumerate(zip(references, outputs, strict=True)):
        left, top = index % columns * (2 * SIDE + gap), index // columns * (SIDE + gap)
        for number, picture in enumerate(pair):
            sheet.paste(picture, (left + number * SIDE, top))
    sheet.save(file)


if __name__ == "__main__":
    typer.run(main)
