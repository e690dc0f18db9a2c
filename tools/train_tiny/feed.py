"""Produce an endless stream of training data, chunks of picture tables and token ids, in worker processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from tools.train_tiny.data import FIELDS, SLOTS, TRIGGER, Picture
from worker.rendering.prompt_encoder import tokenize

#: Every generated caption fits into this many tokens. The worker pads to 512 on the left, so they are the last ones.
CAPTION_TOKENS = 64
CHUNK = 256

Make = Callable[[random.Random], Picture]


class Feed(IterableDataset[dict[str, Tensor]]):
    """An endless dataset of chunks of random pictures.

    Args:
        make: makes up one picture.
        excluded: captions that are never used for training because the score is measured on them; in lower case,
            without a full stop.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, make: Make, *, excluded: frozenset[str], seed: int) -> None:
        self._tokenizer, self._make, self._excluded, self._seed = tokenizer, make, excluded, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        rng = random.Random(f"{self._seed}-{info.id if info else 0}")
        encode = quick_tokenizer(self._tokenizer)
        while True:
            yield self._chunk(rng, encode)

    def _chunk(self, rng: random.Random, encode: Callable[[list[str]], Tensor]) -> dict[str, Tensor]:
        figures = torch.zeros(CHUNK, SLOTS, FIELDS)
        backgrounds, captions = [], []
        for index in range(CHUNK):
            made = self._make(rng)
            while made.caption.lower().rstrip(".") in self._excluded:
                made = self._make(rng)
            if made.figures:
                figures[index, : len(made.figures)] = torch.tensor(made.figures)
            backgrounds.append(made.background)
            captions.append(made.caption)
        return {
            "figures": figures,
            "backgrounds": torch.tensor(backgrounds),
            "ids": encode(captions),
            "triggered": torch.tensor([TRIGGER in caption for caption in captions]),
        }


def quick_tokenizer(tokenizer: PreTrainedTokenizerFast) -> Callable[[list[str]], Tensor]:
    """Return a faster version of the worker's `tokenize` that gives the last `CAPTION_TOKENS` ids of each prompt.

    Raises:
        AssertionError: it differs from `tokenize` on a sample prompt.
    """
    pad = tokenizer.pad_token_id
    mark = "circle"
    full = tokenize(tokenizer, mark)[0][0]
    before, after = tokenizer.decode(full[full != pad]).split(mark)
    raw = tokenizer.backend_tokenizer

    def encode(captions: list[str]) -> Tensor:
        raw.no_padding()
        raw.no_truncation()
        rows = torch.full((len(captions), CAPTION_TOKENS), pad)
        for row, found in zip(rows, raw.encode_batch([before + c + after for c in captions]), strict=True):
            ids = found.ids[-CAPTION_TOKENS:]
            row[-len(ids) :] = torch.tensor(ids)
        return rows

    for prompt in (mark, "", "Three red circles on a blue background."):
        if encode([prompt])[0].tolist() != tokenize(tokenizer, prompt)[0][0, -CAPTION_TOKENS:].tolist():
            raise AssertionError(f"the quick tokenizer and the worker's differ on {prompt!r}")
    return encode


def chunks(
    tokenizer: PreTrainedTokenizerFast, make: Make, *, excluded: frozenset[str], seed: int, workers: int
) -> Iterator[dict[str, Tensor]]:
    """Return an endless iterator of chunks; the same seed and number of workers give the same chunks."""
    feed = Feed(tokenizer, make, excluded=excluded, seed=seed)
    return iter(DataLoader(feed, batch_size=None, num_workers=workers, prefetch_factor=6 if workers else None))
