"""Endless chunks of picture tables and token ids, made by worker processes while the GPU trains."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from tools.train_tiny.data import FIELDS, SLOTS, TRIGGER, Picture
from worker.rendering.prompt_encoder import tokenize

#: Tokens that any caption of the generator fits in; the product pads to 512 on the left, so these are the last ones.
SHORT = 64
CHUNK = 256

Make = Callable[[random.Random], Picture]


class Feed(IterableDataset[dict[str, Tensor]]):
    """Chunks of pictures as `make` draws them.

    Args:
        held: captions never to be drawn, in lower case without a full stop: those that the score is measured on.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, make: Make, *, held: frozenset[str], seed: int) -> None:
        self._tokenizer, self._make, self._held, self._seed = tokenizer, make, held, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        rng = random.Random(f"{self._seed}-{info.id if info else 0}")
        encode = encoder(self._tokenizer)
        while True:
            yield self._chunk(rng, encode)

    def _chunk(self, rng: random.Random, encode: Callable[[list[str]], Tensor]) -> dict[str, Tensor]:
        figures = torch.zeros(CHUNK, SLOTS, FIELDS)
        backgrounds, captions = [], []
        for index in range(CHUNK):
            made = self._make(rng)
            while made.caption.lower().rstrip(".") in self._held:
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


def encoder(tokenizer: PreTrainedTokenizerFast) -> Callable[[list[str]], Tensor]:
    """Return a quick equal of the product's `tokenize`: the last `SHORT` ids of each prompt.

    Raises:
        AssertionError: the two differ.
    """
    pad = tokenizer.pad_token_id
    mark = "circle"
    full = tokenize(tokenizer, mark)[0][0]
    before, after = tokenizer.decode(full[full != pad]).split(mark)
    raw = tokenizer.backend_tokenizer

    def encode(captions: list[str]) -> Tensor:
        raw.no_padding()
        raw.no_truncation()
        rows = torch.full((len(captions), SHORT), pad)
        for row, found in zip(rows, raw.encode_batch([before + c + after for c in captions]), strict=True):
            ids = found.ids[-SHORT:]
            row[-len(ids) :] = torch.tensor(ids)
        return rows

    for prompt in (mark, "", "Three red circles on a blue background."):
        if encode([prompt])[0].tolist() != tokenize(tokenizer, prompt)[0][0, -SHORT:].tolist():
            raise AssertionError(f"the quick encoding of {prompt!r} is not the product's")
    return encode


def chunks(
    tokenizer: PreTrainedTokenizerFast, make: Make, *, held: frozenset[str], seed: int, workers: int
) -> Iterator[dict[str, Tensor]]:
    """Return an endless iterator of chunks; with one seed and number of workers always the same."""
    feed = Feed(tokenizer, make, held=held, seed=seed)
    return iter(DataLoader(feed, batch_size=None, num_workers=workers, prefetch_factor=6 if workers else None))
