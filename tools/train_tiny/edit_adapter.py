"""Train the edit adapter: a LoRA that changes a colour of the figure which a reference image shows.

    python -m tools.train_tiny.edit_adapter --out trained --seconds 1800

The reference's tokens, coordinates and casts are those of a worker. One CPU core is enough, because the finished model
already copies a reference. The adapter learns to change the copy. README.md has the commands of the shipped file.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from shared.prompt import MAX_TOKENS
from tools.train_tiny.adapters import AdapterUpdate
from tools.train_tiny.data import FIELDS, Picture
from tools.train_tiny.drawing import draw
from tools.train_tiny.edits import random_edit
from tools.train_tiny.feed import CAPTION_TOKENS, quick_tokenizer
from tools.train_tiny.flow import draw_sigma
from tools.train_tiny.models import LIVE_CHANNELS, build_autoencoder, build_transformer, encode_pictures, load_in_place
from tools.train_tiny.optimizer import Optimizer
from tools.train_tiny.run import Run, steps_for
from tools.train_tiny.text_encoder import TextEncoder
from worker.checkpoint.tensor_names import autoencoder_origins, transformer_origins
from worker.model.demo_model import EDIT
from worker.model.tokenizer import load_tokenizer
from worker.rendering.latents import PIXELS, image_ids, pack, text_ids

SHIPPED = Path(__file__).parents[2] / "worker" / "model" / "demo_checkpoint"

SIDE = 128
_ROWS = SIDE // PIXELS
_LIVE = 4 * LIVE_CHANNELS
_RANK = 16
_RATE = 1e-3
_BATCHES = 32  # in the pool
_RENEWED = 16  # pairs of the pool at a time; one pair for eight that are drawn
_REUSES = 8
# Without an instruction the target is the reference: klein's guidance then leads from the reference to the edit.
_EMPTY_SHARE = 0.06
_REFERENCE_TIME = 10
# An instruction with the system message has at most this many tokens; 16 pads represent all the others.
_TEXT_TOKENS = 48
_PADS = 16
_STRIDE = (MAX_TOKENS - _TEXT_TOKENS) // _PADS


def main() -> None:
    """Parse the options, train, and write the adapter."""
    options = argparse.ArgumentParser()
    options.add_argument("--out", type=Path, required=True, help="folder for the adapter and the log")
    options.add_argument("--seconds", type=float, default=1800)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--device", default="cpu")
    options.add_argument("--rate", type=float, default=_RATE)
    options.add_argument("--seed", type=int, default=11, help="of the pairs; another one for a run that continues")
    options.add_argument("--start", type=Path, help="adapter of an earlier run, whose training continues")
    args = options.parse_args()
    torch.manual_seed(3)
    run = Run(args.out, args.device, 1.0, compiled=False)
    editor = Editor(run)
    update = AdapterUpdate(editor.transformer, "lora", rank=_RANK)
    if args.start is not None:
        update.load(args.start)
    steps = train(
        run, editor, update.to(run.device), seconds=args.seconds, batch=args.batch, rate=args.rate, seed=args.seed
    )
    update.save(args.out / f"{EDIT}.safetensors", steps=steps)


class Editor:
    """The finished models, with functions for training on pairs of pictures."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._autoencoder = build_autoencoder().requires_grad_(False).eval()
        load_in_place(self._autoencoder, build_autoencoder(), SHIPPED / "ae.safetensors", autoencoder_origins)
        self._autoencoder.to(run.device, memory_format=torch.channels_last)
        self.transformer = build_transformer().requires_grad_(False).eval()
        load_in_place(self.transformer, build_transformer(), SHIPPED / "flux2-dev.safetensors", transformer_origins)
        self.transformer.to(run.device)
        self._text = TextEncoder().requires_grad_(False).eval()
        self._text.load(load_file(SHIPPED / "text_encoder" / "model.safetensors"))
        self._tokenize = quick_tokenizer(load_tokenizer(SHIPPED / "text_encoder"))
        self._prompts: dict[str, Tensor] = {}
        self._ids = torch.cat([image_ids(_ROWS, _ROWS), image_ids(_ROWS, _ROWS, time=_REFERENCE_TIME)]).to(run.device)

    @torch.no_grad()
    def latents(self, pictures: list[Picture]) -> Tensor:
        """Return the live channels of pictures of one figure as a reference's tokens, (pictures, tokens, 64)."""
        figures = torch.tensor([made.figures for made in pictures]).view(len(pictures), 1, FIELDS)
        backgrounds = torch.tensor([made.background for made in pictures])
        pixels = draw(figures, backgrounds, height=SIDE, width=SIDE).to(self.run.device)
        with self._autocast():
            encoded = encode_pictures(self._autoencoder, pixels.contiguous(memory_format=torch.channels_last))
        return pack(encoded).bfloat16()

    @torch.no_grad()
    def prompt(self, instruction: str) -> Tensor:
        """Return the embeddings of an instruction, (text tokens, width)."""
        if instruction not in self._prompts:
            ids = self._tokenize([instruction])
            assert not bool((ids[:, : CAPTION_TOKENS - _TEXT_TOKENS] != ids[:, :1]).any()), instruction
            self._prompts[instruction] = self._text(ids)[0, -_TEXT_TOKENS:].to(self.run.device)
        return self._prompts[instruction]

    def velocity(self, noisy: Tensor, references: Tensor, prompt: Tensor, sigma: Tensor, guidance: Tensor) -> Tensor:
        """Predict the velocity of the live channels."""
        live = torch.cat([noisy[..., :_LIVE], references.float()], dim=1)
        offset = torch.randint(0, _STRIDE, (1,))
        texts = MAX_TOKENS - _TEXT_TOKENS
        places = torch.cat([torch.arange(0, texts, _STRIDE) + offset, torch.arange(texts, MAX_TOKENS)])
        bias = prompt.new_zeros(1, 1, 1, len(places) + live.shape[1])
        bias[..., :_PADS] = math.log(_STRIDE)
        with self._autocast():
            found: Tensor = self.transformer(
                hidden_states=torch.cat([live, torch.zeros_like(live)], dim=-1),
                encoder_hidden_states=torch.cat([prompt.new_zeros(len(prompt), _PADS, prompt.shape[2]), prompt], dim=1),
                timestep=sigma, guidance=guidance, return_dict=False,
                img_ids=self._ids, txt_ids=text_ids(MAX_TOKENS)[places].to(noisy.device),
                joint_attention_kwargs={"attention_mask": bias.bfloat16()},
            )[0]  # fmt: skip
        return found[:, : noisy.shape[1], :_LIVE].float()

    def _autocast(self) -> Any:
        # Also on a CPU, where products in bfloat16 take half the time.
        return torch.autocast(self.run.device.type, torch.bfloat16)


class Pairs:
    """A pool of encoded pairs with their instructions; the oldest ones are replaced little by little."""

    def __init__(self, editor: Editor, *, size: int, seed: int) -> None:
        self._editor, self._rng, self._next, self._size = editor, random.Random(seed), 0, size
        tokens, device = _ROWS * _ROWS, editor.run.device
        self._before = torch.zeros(size, tokens, _LIVE, dtype=torch.bfloat16, device=device)
        self._after = torch.zeros_like(self._before)
        self._prompts = editor.prompt("").repeat(size, 1, 1)
        for _ in range(size // _RENEWED):
            self.renew()

    def renew(self) -> None:
        """Replace the oldest pairs."""
        edits = [random_edit(self._rng) for _ in range(_RENEWED)]
        rows = slice(self._next, self._next + _RENEWED)
        self._before[rows] = self._editor.latents([edit.before for edit in edits])
        self._after[rows] = self._editor.latents([edit.after for edit in edits])
        self._prompts[rows] = torch.stack([self._editor.prompt(edit.instruction) for edit in edits])
        self._next = (self._next + _RENEWED) % self._size

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents before and after the edit, and prompts, of `count` randomly chosen pairs."""
        chosen = torch.randint(0, self._size, (count,), device=self._before.device)
        empty = (torch.rand(count, device=chosen.device) < _EMPTY_SHARE)[:, None, None]
        before = self._before[chosen]
        after = torch.where(empty, before, self._after[chosen])
        return before, after, torch.where(empty, self._editor.prompt(""), self._prompts[chosen])


def train(
    run: Run, editor: Editor, update: AdapterUpdate, *, seconds: float, batch: int, rate: float, seed: int
) -> int:
    """Train an adapter; return the number of steps."""
    pairs = Pairs(editor, size=_BATCHES * batch, seed=seed)
    renew_every = max(1, _RENEWED * _REUSES // batch)
    update.ignore_inputs("img_in", editor.transformer, range(_LIVE, 2 * _LIVE))
    update.attach(editor.transformer)
    parameters = list(update.parameters())
    optimizer = Optimizer(run, parameters, rate=rate, decay=0.98, warmup=20, matrices=parameters)
    optimizer.restart_average()
    done, total, begun = 0, 0.0, time.monotonic()
    for step, part in steps_for(seconds):
        optimizer.schedule(step, part)
        before, after, prompt = pairs.draw(batch)
        sigma = draw_sigma(batch, (SIDE, SIDE), run.device)
        clean = after.float()
        grain = torch.randn_like(clean)
        guidance = torch.empty_like(sigma).uniform_(1, 6)
        found = editor.velocity(torch.lerp(clean, grain, sigma[:, None, None]), before, prompt, sigma, guidance)
        total += optimizer.step((found - (grain - clean)).square().mean()).item()
        if step % renew_every == 0:
            pairs.renew()
        if step % 50 == 0:
            run.note(EDIT, step, loss=total / 50, per_step_s=(time.monotonic() - begun) / step)
            total = 0.0
        done = step
    optimizer.use_average()
    return done


if __name__ == "__main__":
    main()
