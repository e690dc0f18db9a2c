"""Options of `flux2 keys create` and `flux2 keys update`: what a key allows."""

from __future__ import annotations

from typing import Annotated, Final

import typer

Roles = Annotated[
    list[str] | None,
    typer.Option(
        "--role",
        help="submit, read or admin; repeat it for several. A new key has submit and read. admin sees the jobs of "
        "every tenant.",
    ),
]
Days = Annotated[float | None, typer.Option(min=0.001, max=36_500, help="Days, from now, until the key expires.")]
QueuedItems = Annotated[int | None, typer.Option(min=1, help="Images that may wait for a worker.")]
ItemsPerDay = Annotated[int | None, typer.Option(min=1, help="Images accepted in one day, by UTC.")]
MegapixelSteps = Annotated[
    float | None, typer.Option(min=0.001, help="Megapixels times denoising steps accepted in one day.")
]
MaxMegapixels = Annotated[float | None, typer.Option(min=0.001, help="Size of the largest image.")]
MaxSteps = Annotated[int | None, typer.Option(min=1, help="Denoising steps of one image.")]
Models = Annotated[
    list[str] | None, typer.Option("--model", help="Model id that jobs may name; repeat it for several.")
]
Engines = Annotated[
    list[str] | None, typer.Option("--engine", help="Engine that jobs may name; repeat it for several.")
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", help="Pattern of adapters that jobs may name, e.g. 'team/*' or 'hf://acme/*'; repeat it."
    ),
]

#: The field of `KeyLimits` that each option sets.
LIMIT_FIELDS: Final = {
    "queued-items": "queued_items",
    "items-per-day": "items_per_day",
    "megapixel-steps-per-day": "megapixel_steps_per_day",
    "max-megapixels": "max_megapixels",
    "max-steps": "max_steps",
    "model": "models",
    "engine": "engines",
    "adapter": "adapters",
}
Unlimited = Annotated[
    list[str] | None,
    typer.Option("--unlimited", metavar="LIMIT", help="Limit to remove, e.g. max-steps or adapter; repeat it."),
]
