"""Turn prompts into embeddings."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from cachetools import LRUCache
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from shared.prompt import check_prompt
from worker.model.text_encoder import MISTRAL, QWEN, TextEncoderFamily, family_of

MAX_TOKENS = 512


def tokenize(
    tokenizer: PreTrainedTokenizerFast, prompt: str, *, family: TextEncoderFamily = MISTRAL
) -> tuple[Tensor, Tensor]:
    """Return input ids and attention mask, each (1, 512); longer text is cut at the end.

    Raises:
        InvalidRequest: see `shared.prompt.check_prompt`.
    """
    text = _CHATS[family](tokenizer, prompt)
    encoded = tokenizer(
        text,
        # As the processor does: templates write the first token themselves, and it must not occur twice.
        add_special_tokens=not (tokenizer.bos_token and text.startswith(tokenizer.bos_token)),
        # Pad tokens keep their rows, and the transformer attends to them: FLUX.2 was trained that way.
        padding="max_length",
        truncation=True,
        max_length=MAX_TOKENS,
        return_tensors="pt",
    )
    return encoded["input_ids"], encoded["attention_mask"]


def embed(text_encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return (batch, tokens, 3 * width): each token's hidden states of the family's three layers, concatenated."""
    output = text_encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    chosen = family_of(text_encoder.config).hidden_states
    return torch.cat([output.hidden_states[index] for index in chosen], dim=-1)


def _mistral_chat(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    check_prompt(prompt)
    # The message format and the system message are diffusers', which the trainer uses too.
    messages = format_input([prompt])[0]
    text: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
    return str(text)


def _qwen_chat(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    # Qwen3 receives the prompt without a system message, with thinking switched off.
    messages = [{"role": "user", "content": prompt}]
    text: Any = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
    return str(text)


_CHATS: dict[TextEncoderFamily, Callable[[PreTrainedTokenizerFast, str], str]] = {
    MISTRAL: _mistral_chat,
    QWEN: _qwen_chat,
}


class PromptEncoder:
    """Encodes prompts and caches the most recent ones in host memory; threads may share it.

    Args:
        cache_size: number of cached prompts, 0 or more; one takes 15.7 MB at full size.
    """

    def __init__(
        self, text_encoder: Any, tokenizer: PreTrainedTokenizerFast, *, device: torch.device, cache_size: int
    ) -> None:
        self._text_encoder = text_encoder
        self._tokenizer = tokenizer
        self._family = family_of(text_encoder.config)
        self._device = device
        # A job's items often differ in their seeds only.
        self._cache: LRUCache[str, Tensor] = LRUCache(cache_size)
        # One pass at a time: a streamed text encoder cannot interleave two (`worker.model.layer_streaming`).
        self._lock = threading.Lock()

    def check(self, prompt: str) -> None:
        """Refuse a prompt that `encode` would refuse, without encoding it.

        Raises:
            InvalidRequest: see `shared.prompt.check_prompt`.
        """
        if self._family is MISTRAL:  # Qwen3 has no image token that a prompt could contain
            check_prompt(prompt)

    def encode(self, prompt: str) -> Tensor:
        """Return the prompt's embeddings, (1, 512, width), on the device.

        Raises:
            InvalidRequest: see `shared.prompt.check_prompt`.
        """
        with self._lock:
            embeds: Tensor | None = self._cache.get(prompt)
            if embeds is None:
                embeds = self._encode(prompt)
                if self._cache.maxsize > 0:
                    self._cache[prompt] = embeds
        return embeds.to(self._device)

    def _encode(self, prompt: str) -> Tensor:
        ids, mask = tokenize(self._tokenizer, prompt, family=self._family)
        return embed(self._text_encoder, ids.to(self._device), mask.to(self._device)).cpu()
