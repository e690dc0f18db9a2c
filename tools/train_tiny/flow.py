"""The middle stages: train transformer and text encoder as a rectified flow, then distil guidance into an input."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from shared.prompt import MAX_TOKENS
from tools.train_tiny.feed import CAPTION_TOKENS, quick_tokenizer
from tools.train_tiny.models import LIVE_CHANNELS, save_transformer
from tools.train_tiny.optimizer import Optimizer
from tools.train_tiny.pool import Artist, Pool, Size
from tools.train_tiny.run import Run, Step, save_grid, steps_for
from tools.train_tiny.text_encoder import TextEncoder, save_text_encoder
from worker.rendering.decode import decode
from worker.rendering.denoise import denoise, distilled_velocity
from worker.rendering.latents import PIXELS, image_ids, noise, pack, text_ids, unpack
from worker.rendering.sigmas import shift, sigmas

#: Prompts of the sample sheets, for a look at the training; none of them is scored.
SAMPLE_PROMPTS = [
    "a red circle",
    "three blue stars",
    "a small green square in the top left corner",
    "two pink hearts on a black background",
    "a yellow triangle to the left of a purple ring",
    "a house with a red roof on green hills under a yellow sun",
    "a striped orange hexagon",
    "four white diamonds on a blue background",
    "a tree in the snow at night",
    "a person in a green shirt on a beach",
    "a large brown cross on a pink background",
    "a boat with a white sail on the sea at sunset",
    "a black crescent above a turquoise square",
    "a dotted purple circle on a yellow background",
    "a small red star inside a large blue circle",
    "sks a photo of a person",
]

#: File of the transformer before the guidance stage, which serves as that stage's teacher.
TEACHER = "flow.safetensors"

_PADS = MAX_TOKENS - CAPTION_TOKENS
_FEW_PADS = 32
_STRIDE = _PADS // _FEW_PADS
_EMPTY_SHARE = 0.1  # share of captions that are replaced by the empty prompt, for guidance
_RENEW_EVERY = 12


@dataclass(frozen=True)
class SizeShare:
    """The share of one picture size in the training.

    Attributes:
        batch: pictures in a step with few pads, and in a step with all pads and a teacher's two passes.
        weight: share of the steps.
        pool: number of pictures in the pool.
    """

    size: Size
    batch: tuple[int, int]
    weight: float
    pool: int


SHARES = (
    SizeShare((128, 128), (320, 96), 0.24, 60_000),
    SizeShare((256, 256), (128, 56), 0.34, 24_000),
    SizeShare((128, 256), (200, 72), 0.05, 8_000),
    SizeShare((256, 128), (200, 72), 0.05, 8_000),
    SizeShare((512, 512), (28, 16), 0.20, 5_000),
    SizeShare((1024, 1024), (6, 4), 0.12, 800),
)


class Flow:
    """The three models, with the functions that training steps and sample sheets share.

    Args:
        largest: side of the largest training pictures.
        few_pads: train guidance and adapters with few pads too, which is a third of the work at 128 pixels.
    """

    def __init__(
        self, run: Run, autoencoder: Any, text: TextEncoder, transformer: Any, tokenizer: PreTrainedTokenizerFast, *,
        largest: int = 1024, few_pads: bool = False,
    ) -> None:  # fmt: skip
        self.run, self.autoencoder, self.text, self.transformer = run, autoencoder, text, transformer
        self.tokenizer, self.few_pads = tokenizer, few_pads
        self.shares = [share for share in SHARES if max(share.size) <= largest]
        self._encode = quick_tokenizer(tokenizer)
        self.empty_prompt = self._encode([""]).to(run.device)
        live = torch.arange(transformer.config.in_channels, device=run.device) < 4 * LIVE_CHANNELS
        # The unused channels are multiplied by 0.01 before they are decoded, so their error matters little.
        self._weights = torch.where(live, 1.0, 0.05)
        self._positions = {share.size: image_ids(share.size[0] // PIXELS, share.size[1] // PIXELS).to(run.device)
                           for share in SHARES}  # fmt: skip
        self._all = text_ids(MAX_TOKENS).to(run.device)
        self._along_text = torch.tensor([0, 0, 0, 1], device=run.device)

    def noisy(self, latents: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return noisy tokens with 128 channels, and the velocity that leads the sampler from noise to latents."""
        clean = torch.cat([latents, torch.zeros_like(latents)], dim=-1)
        grain = torch.randn_like(clean)
        return torch.lerp(clean, grain, sigma[:, None, None]), grain - clean

    def sigma(self, count: int, size: Size) -> Tensor:
        """Draw noise levels for pictures of this size."""
        return draw_sigma(count, size, self.run.device)

    def velocity(
        self,
        transformer: Any,
        noisy: Tensor,
        prompt: Tensor,
        sigma: Tensor,
        guidance: Tensor,
        size: Size,
        *,
        few_pads: bool,
    ) -> Tensor:
        """Predict a velocity.

        Args:
            few_pads: use 32 pads at random places that count as 14 each, instead of all 448.
        """
        call = self.arguments(noisy, prompt, sigma, guidance, size, few_pads=few_pads)
        found: Tensor = transformer(**call)[0]
        return found

    def arguments(
        self, noisy: Tensor, prompt: Tensor, sigma: Tensor, guidance: Tensor, size: Size, *, few_pads: bool
    ) -> dict[str, Any]:
        """Return the arguments of the transformer's call."""
        pads = _FEW_PADS if few_pads else _PADS
        prompt = torch.cat([prompt.new_zeros(len(prompt), pads, prompt.shape[2]), prompt], dim=1)
        positions = self._all
        # Without few pads the bias is zero; it is passed so that one compiled version serves both cases.
        bias = noisy.new_zeros(1, 1, 1, pads + CAPTION_TOKENS + noisy.shape[1])
        if few_pads:
            offset = torch.randint(0, _STRIDE, (1, 1), device=self.run.device)
            positions = torch.cat([self._all[:_PADS:_STRIDE] + offset * self._along_text, self._all[_PADS:]])
            bias[..., :pads] = math.log(_STRIDE)
        return {
            "hidden_states": noisy, "encoder_hidden_states": prompt, "timestep": sigma, "guidance": guidance,
            "img_ids": self._positions[size], "txt_ids": positions, "return_dict": False,
            "joint_attention_kwargs": {"attention_mask": bias.to(prompt.dtype)},
        }  # fmt: skip

    def error(self, found: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error, weighted towards the channels that carry the picture."""
        return ((found.float() - target).square() * self._weights).mean() / self._weights.mean()

    @torch.no_grad()
    def sample(self, prompts: list[str], *, size: int, guidance: float, steps: int = 25) -> Tensor:
        """Render several prompts at once as a worker does; returns (batch, 3, size, size)."""
        rows, device, channels = size // PIXELS, self.run.device, self.transformer.config.in_channels
        with self.run.autocast():
            prompt = self.text(self._encode(prompts).to(device)).float()
            prompt = torch.cat([prompt.new_zeros(len(prompts), _PADS, prompt.shape[2]), prompt], dim=1)
            start = torch.cat([
                noise(42 + n, channels=channels, height=size, width=size, dtype=torch.float32)
                for n in range(len(prompts))
            ]).to(device)  # fmt: skip
            velocity = distilled_velocity(
                self.transformer, prompt_embeds=prompt, guidance_scale=guidance,
                img_ids=image_ids(rows, rows).to(device), txt_ids=self._all,
            )  # fmt: skip
            tokens = denoise(velocity, pack(start), sigmas(steps, rows * rows), on_step=lambda *_: None)
            latents = unpack(tokens.float(), rows=rows, columns=rows)
            return torch.cat([decode(self.autoencoder, one) for one in latents.split(1 if size > 512 else 16)])

    def save(self, stage: str, *, guidance: float = 4.0) -> None:
        """Write the weights and the sample sheets of a stage."""
        save_transformer(self.transformer, self.run.out / "flux2-dev.safetensors")
        save_text_encoder(self.text, self.tokenizer, self.run.out / "text_encoder")
        looks = ((128, 16), (256, 16), (512, 4), (1024, 1)) if self.run.scale >= 1 else ((64, 2),)
        for size, count in looks:
            prompts = SAMPLE_PROMPTS[-count:]
            save_grid(self.sample(prompts, size=size, guidance=guidance), self.run.out / f"grid-{stage}-{size}.png")


def draw_sigma(count: int, size: Size, device: torch.device) -> Tensor:
    """Draw noise levels with about the density of the sampler's schedule at this size."""
    uniform, bell = torch.rand(count, device=device), torch.sigmoid(torch.randn(count, device=device))
    times = torch.where(torch.rand(count, device=device) < 0.3, uniform, bell).clamp(1e-4, 1)
    weight = math.exp(shift(size[0] * size[1] // PIXELS**2))
    return weight / (weight + (1 / times - 1))


class Pools:
    """One pool for each size; one of them is renewed at a time."""

    def __init__(
        self, run: Run, shares: list[SizeShare], feed: Iterator[dict[str, Tensor]], artist: Artist, autoencoder: Any
    ) -> None:
        self._parts, self._shares = (feed, artist, autoencoder), shares
        self.by_size = {share.size: Pool(run, share.size, run.pool_size(share.pool)) for share in shares}
        for pool in self.by_size.values():
            pool.fill(*self._parts)
        self._rng = random.Random(5)

    def renew(self) -> None:
        """Replace the oldest pictures of one randomly chosen pool."""
        share = self._rng.choices(self._shares, weights=[share.weight for share in self._shares])[0]
        self.by_size[share.size].renew(*self._parts)


def train_flow(flow: Flow, pools: Pools, seconds: float) -> None:
    """Train text encoder and transformer together, with few pads."""
    parameters = [*flow.text.parameters(), *flow.transformer.parameters()]
    optimizer = Optimizer(
        flow.run, parameters, rate=2.5e-3, decay=0.999, warmup=500, matrices=matrices_of_blocks(flow.transformer)
    )

    def loss(pool: Pool, batch: int) -> Tensor:
        latents, ids, _ = pool.draw(batch)
        ids = torch.where(torch.rand(batch, 1, device=ids.device) < _EMPTY_SHARE, flow.empty_prompt, ids)
        sigma = flow.sigma(batch, pool.size)
        noisy, target = flow.noisy(latents, sigma)
        guidance = torch.empty_like(sigma).uniform_(1, 8)  # has no effect yet: the guidance stage gives it a meaning
        with flow.run.autocast():
            found = flow.velocity(flow.transformer, noisy, flow.text(ids), sigma, guidance, pool.size, few_pads=True)
        return flow.error(found, target)

    _train(flow, pools, optimizer, loss, seconds, stage="flow", batches=0)
    flow.save("flow")
    save_transformer(flow.transformer, flow.run.out / TEACHER)


def matrices_of_blocks(transformer: Any) -> list[torch.nn.Parameter]:
    """Return the weights of the linear layers inside the blocks."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    return [parameter for block in blocks for parameter in block.parameters() if parameter.ndim == 2]


def distil_guidance(flow: Flow, teacher: Any, pools: Pools, seconds: float) -> None:
    """Train the transformer to reproduce classifier-free guidance in one pass, for any value of its guidance input.

    Args:
        teacher: the transformer at the end of the flow stage; the student may already have had some training.
    """
    teacher.requires_grad_(False).eval()
    flow.text.requires_grad_(False).eval()
    optimizer = Optimizer(
        flow.run, list(flow.transformer.parameters()), rate=1e-3, decay=0.99, warmup=40,
        matrices=matrices_of_blocks(flow.transformer),
    )  # fmt: skip

    def loss(pool: Pool, batch: int) -> Tensor:
        latents, ids, _ = pool.draw(batch)
        sigma = flow.sigma(batch, pool.size)
        noisy, _ = flow.noisy(latents, sigma)
        # Half of the samples train the default guidance of 4.
        guidance = torch.where(torch.rand_like(sigma) < 0.5, 4.0, torch.empty_like(sigma).uniform_(1, 8))
        with flow.run.autocast():
            with torch.no_grad():
                prompt = flow.text(ids)
                empty = flow.text(flow.empty_prompt).expand_as(prompt)
                given = flow.velocity(
                    teacher, noisy, prompt, sigma, guidance, pool.size, few_pads=flow.few_pads
                ).float()
                free = flow.velocity(teacher, noisy, empty, sigma, guidance, pool.size, few_pads=flow.few_pads).float()
                target = free + classifier_free_weight(guidance)[:, None, None] * (given - free)
            found = flow.velocity(flow.transformer, noisy, prompt, sigma, guidance, pool.size, few_pads=flow.few_pads)
        return flow.error(found, target)

    _train(flow, pools, optimizer, loss, seconds, stage="guidance", batches=1)
    flow.save("guidance")


def classifier_free_weight(guidance: Tensor) -> Tensor:
    """Return the classifier-free weight for a value of the guidance input: 1 at 1, 2.5 at the default 4, at most 5."""
    return (1 + 0.5 * (guidance - 1)).clamp(max=5.0)


def _train(
    flow: Flow, pools: Pools, optimizer: Optimizer, loss: Callable[[Pool, int], Tensor], seconds: float, *,
    stage: str, batches: int,
) -> None:  # fmt: skip
    run = flow.run

    def one(share: SizeShare) -> Tensor:
        return optimizer.step(loss(pools.by_size[share.size], run.scaled(share.batch[batches])))

    optimizer.stop_learning()
    steps: dict[Size, Step] = {share.size: run.record(partial(one, share)) for share in flow.shares}
    optimizer.restart_average()
    rng, totals = random.Random(3), {share.size: torch.zeros(2, device=run.device) for share in flow.shares}
    run.note(stage, 0)
    for step, part in steps_for(seconds):
        optimizer.schedule(step, part)
        share = rng.choices(flow.shares, weights=[share.weight for share in flow.shares])[0]
        totals[share.size][0] += steps[share.size]()
        totals[share.size][1] += 1
        if step % _RENEW_EVERY == 0 and run.pictures is None:
            pools.renew()
        if step % (250 if run.is_cuda else 20) == 0:
            run.note(stage, step, **{f"loss{size[0]}x{size[1]}": (total[0] / total[1]).item()
                                     for size, total in totals.items() if total[1] > 0})  # fmt: skip
            for total in totals.values():
                total.zero_()
    optimizer.use_average()
    del steps
