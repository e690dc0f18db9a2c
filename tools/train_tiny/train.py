"""Train the embedded tiny FLUX.2 on one GPU: autoencoder, transformer with its text encoder, guidance, adapters.

    python -m tools.train_tiny.train --out trained

Each stage has a budget of seconds, not of steps. After each stage, weights, a log of the losses and sample sheets are
written to `--out`. If `--stages` leaves out earlier stages, the remaining ones continue from the files there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from safetensors.torch import load_file

from tools.train_tiny.adapters import train_adapters
from tools.train_tiny.autoencoder import train_autoencoder
from tools.train_tiny.data import random_picture
from tools.train_tiny.feed import chunks
from tools.train_tiny.flow import TEACHER, Flow, Pools, distil_guidance, train_flow
from tools.train_tiny.models import build_autoencoder, build_transformer, load_in_place
from tools.train_tiny.pool import Artist
from tools.train_tiny.run import Run
from tools.train_tiny.text_encoder import TextEncoder, train_tokenizer
from worker.checkpoint.tensor_names import autoencoder_origins, transformer_origins

SCORED_PROMPTS = Path(__file__).resolve().parents[2] / "benchmarks/tiny_prompts.json"

#: Seconds of each stage on one H100; drawing, compiling and sampling included, the whole run takes 17.5 minutes.
STAGES = {"autoencoder": 100.0, "flow": 430.0, "guidance": 100.0, "adapters": 32.0}


def main() -> None:
    """Parse the options and run the named stages."""
    options = argparse.ArgumentParser()
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--device", default="cuda")
    options.add_argument("--scale", type=float, default=1.0, help="factor for the size of batches; small for a CPU")
    options.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    options.add_argument(
        "--seconds", nargs="+", type=float, help="budget of each named stage; for adapters, of each adapter"
    )
    options.add_argument("--workers", type=int, default=14)
    options.add_argument("--compile", action="store_true", help="compile the blocks; slower to start, faster to train")
    options.add_argument("--pictures", type=int, help="limit of a pool's size; such pools are never renewed; for a CPU")
    options.add_argument("--largest", type=int, default=1024, help="side of the largest pictures; smaller for a CPU")
    options.add_argument(
        "--few-pads", action="store_true", help="train guidance and adapters with few pads too; less work"
    )
    args = options.parse_args()
    seconds = dict(zip(args.stages, args.seconds or [STAGES[name] for name in args.stages], strict=True))
    torch.manual_seed(len(seconds))
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    if args.compile:
        dynamo: Any = torch._dynamo.config
        dynamo.cache_size_limit = 64
        dynamo.suppress_errors = True  # code that does not compile runs uncompiled
    run = Run(args.out, args.device, args.scale, compiled=args.compile, pictures=args.pictures)
    train(run, seconds, workers=args.workers, largest=args.largest, few_pads=args.few_pads)
    run.note("done", 0)


def train(run: Run, seconds: dict[str, float], *, workers: int, largest: int, few_pads: bool) -> None:
    """Run the stages in `seconds`, in order."""
    tokenizer = train_tokenizer()
    excluded = frozenset(case["prompt"].lower() for case in json.loads(SCORED_PROMPTS.read_text()))
    feed = chunks(tokenizer, random_picture, excluded=excluded, seed=len(seconds), workers=workers)
    artist = Artist(run)
    if "autoencoder" in seconds:
        autoencoder = train_autoencoder(run, feed, artist, seconds["autoencoder"])
    else:
        autoencoder = build_autoencoder().to(run.device).requires_grad_(False).eval()
        load_in_place(autoencoder, build_autoencoder(), run.out / "ae.safetensors", autoencoder_origins)
    if not seconds.keys() - {"autoencoder"}:
        return
    text, transformer = _models(run)
    flow = Flow(run, autoencoder, text, transformer, tokenizer, largest=largest, few_pads=few_pads)
    if seconds.keys() - {"autoencoder", "adapters"}:
        pools = Pools(run, flow.shares, feed, artist, autoencoder)
        run.note("pools", 0)
        if "flow" in seconds:
            train_flow(flow, pools, seconds["flow"])
        if "guidance" in seconds:
            teacher = build_transformer().to(run.device)
            load_in_place(teacher, build_transformer(), run.out / TEACHER, transformer_origins)
            distil_guidance(flow, teacher, pools, seconds["guidance"])
        del pools
    if "adapters" in seconds:
        train_adapters(flow, tokenizer, artist, seconds["adapters"], workers=workers)


def _models(run: Run) -> tuple[TextEncoder, Any]:
    """Return the saved text encoder and transformer, or new ones if nothing is saved."""
    text, transformer = TextEncoder().to(run.device), build_transformer().to(run.device)
    if (run.out / "flux2-dev.safetensors").exists():
        load_in_place(transformer, build_transformer(), run.out / "flux2-dev.safetensors", transformer_origins)
        text.load(load_file(run.out / "text_encoder" / "model.safetensors"))
    if run.compiled:
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks, *text.layers.values()):
            block.compile(dynamic=True)
    return text, transformer


if __name__ == "__main__":
    main()
