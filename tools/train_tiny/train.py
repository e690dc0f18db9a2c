"""Train the embedded tiny FLUX.2 on one GPU: autoencoder, transformer with its text encoder, guidance, adapters.

    python -m tools.train_tiny.train --out trained

Every stage has a budget of seconds, not of steps. Weights, a log of the losses and sheets of samples are written after
each stage, and a stage whose predecessors are left out goes on from their files in `--out`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from safetensors.torch import load_file
from torch import nn

from tools.train_tiny.adapters import train_adapters
from tools.train_tiny.autoencoder import train_autoencoder
from tools.train_tiny.data import picture
from tools.train_tiny.feed import chunks
from tools.train_tiny.flow import TEACHER, Flow, Pools, distil, train_flow
from tools.train_tiny.models import build_autoencoder, build_transformer
from tools.train_tiny.pool import Artist
from tools.train_tiny.run import Run
from tools.train_tiny.text import TextEncoder, train_tokenizer
from worker.checkpoint.fill import TensorFiles, fill
from worker.checkpoint.tensor_names import autoencoder_origins, transformer_origins

HELD = Path(__file__).resolve().parents[2] / "benchmarks/tiny_prompts.json"

#: Seconds of each stage on one H100, where the whole takes 17.5 minutes with drawing, compiling and sampling.
STAGES = {"autoencoder": 100.0, "flow": 430.0, "guidance": 100.0, "adapters": 32.0}


def main() -> None:
    """Run the stages that are named."""
    options = argparse.ArgumentParser()
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--device", default="cuda")
    options.add_argument("--scale", type=float, default=1.0, help="of batches; small for a CPU")
    options.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    options.add_argument("--seconds", nargs="+", type=float, help="one for each stage named; of one adapter")
    options.add_argument("--workers", type=int, default=14)
    options.add_argument("--compile", action="store_true", help="compile the blocks; slower to start")
    options.add_argument("--pictures", type=int, help="most that are kept of one size, never renewed; for a CPU")
    options.add_argument("--largest", type=int, default=1024, help="side of the largest pictures; less for a CPU")
    options.add_argument("--few-pads", action="store_true", help="in the last two stages as well; less work")
    args = options.parse_args()
    seconds = dict(zip(args.stages, args.seconds or [STAGES[name] for name in args.stages], strict=True))
    torch.manual_seed(len(seconds))
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    if args.compile:
        dynamo: Any = torch._dynamo.config
        dynamo.cache_size_limit = 64
        dynamo.suppress_errors = True  # what does not compile runs as it is
    run = Run(args.out, args.device, args.scale, compiled=args.compile, pictures=args.pictures)
    train(run, seconds, workers=args.workers, largest=args.largest, few=args.few_pads)
    run.note("done", 0)


def train(run: Run, seconds: dict[str, float], *, workers: int, largest: int, few: bool) -> None:
    """Run the stages that have seconds, in order."""
    tokenizer = train_tokenizer()
    held = frozenset(case["prompt"].lower() for case in json.loads(HELD.read_text()))
    feed = chunks(tokenizer, picture, held=held, seed=len(seconds), workers=workers)
    artist = Artist(run)
    if "autoencoder" in seconds:
        autoencoder = train_autoencoder(run, feed, artist, seconds["autoencoder"])
    else:
        autoencoder = build_autoencoder().to(run.device).requires_grad_(False).eval()
        _load(autoencoder, build_autoencoder(), run.out / "ae.safetensors", autoencoder_origins)
    if not seconds.keys() - {"autoencoder"}:
        return
    text, transformer = _models(run)
    flow = Flow(run, autoencoder, text, transformer, tokenizer, largest=largest, few=few)
    if seconds.keys() - {"autoencoder", "adapters"}:
        pools = Pools(run, flow.shares, feed, artist, autoencoder)
        run.note("pools", 0)
        if "flow" in seconds:
            train_flow(flow, pools, seconds["flow"])
        if "guidance" in seconds:
            teacher = build_transformer().to(run.device)
            _load(teacher, build_transformer(), run.out / TEACHER, transformer_origins)
            distil(flow, teacher, pools, seconds["guidance"])
        del pools
    if "adapters" in seconds:
        train_adapters(flow, tokenizer, artist, seconds["adapters"], workers=workers)


def _models(run: Run) -> tuple[TextEncoder, Any]:
    """Return text encoder and transformer as they were saved, or new ones."""
    text, transformer = TextEncoder().to(run.device), build_transformer().to(run.device)
    if (run.out / "flux2-dev.safetensors").exists():
        _load(transformer, build_transformer(), run.out / "flux2-dev.safetensors", transformer_origins)
        text.load(load_file(run.out / "text_encoder" / "model.safetensors"))
    if run.compiled:
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks, *text.layers.values()):
            block.compile(dynamic=True)
    return text, transformer


def _load(module: nn.Module, twin: nn.Module, file: Path, origins: Any) -> None:
    """Fill a module in place; `fill` itself replaces parameters, and with them what hangs on them."""
    fill(twin, TensorFiles((file,)), origins(twin), device=torch.device("cpu"), dtype=torch.float32)
    module.load_state_dict(twin.state_dict())


if __name__ == "__main__":
    main()
