"""Make sweeps and their folders as the API and `flux2 sweep` do, without either."""

import json
from itertools import product

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flux2_client.sweeps.folder import name_files
from flux2_client.sweeps.grid import SavedSweep

PROMPTS = ["sks a <b>fox</b>", "a house\u202e in the rain"]


def make_sweep(
    *,
    checkpoints=("500", "base"),
    multipliers=(0.6, 1.0),
    prompts=PROMPTS,
    seeds=None,
    sizes=("64x64",),
    steps=(4,),
    guidance_scales=(4.0,),
    failed=(),
):
    """Return the answer about an ended sweep.

    Args:
        seeds: None for the default of each prompt.
        failed: numbers of the images that failed, from 1.
    """
    adapters = [
        (label, multiplier) for label in checkpoints for multiplier in ([None] if label == "base" else multipliers)
    ]
    cells = []
    for number, ((label, multiplier), prompt, size, count, guidance, seed) in enumerate(
        (
            combined
            for adapter in adapters
            for combined in product([adapter], range(len(prompts)), sizes, steps, guidance_scales, seeds or [None])
        ),
        start=1,
    ):
        is_failed = number in failed
        cells.append(
            {
                "checkpoint": label,
                "multiplier": multiplier,
                "seed": 42 + prompt if seed is None else seed,
                "prompt": prompt,
                "size": size,
                "steps": count,
                "guidance_scale": guidance,
                "request_id": f"job-{adapters.index((label, multiplier))}",
                "index": number - 1,
                "status": "failed" if is_failed else "succeeded",
                "image": None if is_failed else _image(number - 1, prompts[prompt], size),
                "error": {"code": "run_failed", "message": "it <broke>"} if is_failed else None,
            }
        )
    return SavedSweep.model_validate(
        {
            "sweep_id": "0123456789abcdef",
            "status": "failed" if failed else "succeeded",
            "model": "flux2",
            "axes": [
                {"name": "checkpoint", "values": checkpoints},
                {"name": "multiplier", "values": multipliers},
                {"name": "prompt", "values": prompts},
            ],
            "cells": cells,
        }
    )


def _image(index, prompt, size):
    width, height = map(int, size.split("x"))
    return {
        "index": index,
        "format": "png",
        "width": width,
        "height": height,
        "prompt": prompt,
        "url": "https://store.example/image.png?signature=1",
        "url_expires_at": "2026-01-01T00:00:00Z",
        "sha256": "ab" * 32,
        "size_bytes": 10,
        "pipeline": {"engine": "exact", "precision": "bf16", "device": "cpu", "change": "none"},
        "timings": {"denoise": 1.5},
    }


def color_of(number):
    """Return the color of the image with this number, from 1."""
    return (number * 37 % 256, number * 91 % 256, 255 - number)


def save_images(sweep, folder):
    """Draw each image of a sweep in a color of its own, with its parameters; return the sweep with the files."""
    (folder / "images").mkdir()
    cells = []
    for number, (cell, name) in enumerate(zip(sweep.cells, name_files(sweep.cells), strict=True), start=1):
        if cell.status != "succeeded":
            cells.append(cell)
            continue
        file = f"images/{name}.png"
        texts = PngInfo()
        texts.add_itxt("flux2", json.dumps(_parameters(sweep, cell)))
        size = tuple(map(int, cell.size.split("x")))
        Image.new("RGB", size, color_of(number)).save(folder / file, pnginfo=texts)
        cells.append(cell.model_copy(update={"file": file}))
    return sweep.model_copy(update={"cells": tuple(cells)})


def _parameters(sweep, cell):
    width, height = map(int, cell.size.split("x"))
    is_base = cell.checkpoint == "base"
    path = f"run/a_{cell.checkpoint}.safetensors"
    return {
        "model": sweep.model,
        "engine": "exact",
        "output_format": "png",
        "prompt": sweep.prompts[cell.prompt],
        "neg": "",
        "width": width,
        "height": height,
        "seed": cell.seed,
        "sample_steps": cell.steps,
        "guidance_scale": cell.guidance_scale,
        "loras": [] if is_base else [{"path": path, "network_multiplier": cell.multiplier}],
        "adapters": [] if is_base else [{"path": path, "sha256": "cd" * 32}],
    }
