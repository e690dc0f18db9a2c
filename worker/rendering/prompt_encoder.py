"""Turn prompts into embeddings."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from cachetools import LRUCache
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from shared.prompt import IMAGE_TOKEN, MAX_TOKENS, check_prompt
from worker.model.text_encoder import MISTRAL, QWEN, TextEncoderFamily, family_of


class EncodedPrompt(NamedTuple):
    """A prompt's embeddings, (1, 512, width), and its length.

    Attributes:
        tokens: number of tokens with the chat template, before the cut.
        unused: the end of the prompt, which was cut; empty if all of it is among the first 512 tokens, None if the
            template changed the prompt, so that the place of the cut is unknown.
    """

    embeds: Tensor
    tokens: int
    unused: str | None

    @property
    def is_cut(self) -> bool:
        """Whether tokens were cut: the prompt's, or only those that end the template."""
        return self.tokens > MAX_TOKENS


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
        add_special_tokens=_lacks_first_token(tokenizer, text),
        # Pad tokens keep their rows, and the transformer attends to them: FLUX.2 was trained that way.
        padding="max_length",
        truncation=True,
        max_length=MAX_TOKENS,
        return_tensors="pt",
    )
    return encoded["input_ids"], encoded["attention_mask"]


def measure_cut(
    tokenizer: PreTrainedTokenizerFast, prompt: str, *, family: TextEncoderFamily = MISTRAL
) -> tuple[int, str | None]:
    """Return `tokens` and `unused` of a prompt; see `EncodedPrompt`."""
    text = _CHATS[family](tokenizer, prompt)
    encoded: Any = tokenizer(
        text,
        add_special_tokens=_lacks_first_token(tokenizer, text),
        return_offsets_mapping=True,
        # Otherwise transformers warns that the text is too long.
        verbose=False,
    )
    tokens = len(encoded["input_ids"])
    # The template may strip the prompt, and image tokens are removed from it.
    words = prompt.replace(IMAGE_TOKEN, "").strip()
    begin = text.rfind(words)
    if tokens <= MAX_TOKENS:
        return tokens, ""
    if begin < 0:
        return tokens, None
    kept_chars = encoded["offset_mapping"][MAX_TOKENS - 1][1]
    return tokens, text[max(begin, kept_chars) : begin + len(words)].strip()


def _lacks_first_token(tokenizer: PreTrainedTokenizerFast, text: str) -> bool:
    # As the processor does: templates write the first token themselves, and it must not occur twice.
    return not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))


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
        self._cache: LRUCache[str, EncodedPrompt] = LRUCache(cache_size)
        # One pass at a time: a streamed text encoder cannot interleave two (`worker.model.layer_streaming`).
        self._lock = threading.Lock()

    def check(self, prompt: str) -> None:
        """Refuse a prompt that `encode` would refuse, without encoding it.

        Raises:
            InvalidRequest: see `shared.prompt.check_prompt`.
        """
        if self._family is MISTRAL:  # Qwen3 has no image token that a prompt could contain
            check_prompt(prompt)

    def encode(self, prompt: str) -> EncodedPrompt:
        """Return the prompt with its embeddings on the device.

        Raises:
            InvalidRequest: see `shared.prompt.check_prompt`.
        """
        with self._lock:
            encoded: EncodedPrompt | None = self._cache.get(prompt)
            if encoded is None:
                encoded = self._encode(prompt)
                if self._cache.maxsize > 0:
                    self._cache[prompt] = encoded
        return encoded._replace(embeds=encoded.embeds.to(self._device))

    def _encode(self, prompt: str) -> EncodedPrompt:
        ids, mask = tokenize(self._tokenizer, prompt, family=self._family)
        embeds = embed(self._text_encoder, ids.to(self._device), mask.to(self._device)).cpu()
        tokens: int = int(mask.sum())
        unused: str | None = ""
        # Without a pad token the prompt may have been longer.
        if tokens == MAX_TOKENS:
            tokens, unused = measure_cut(self._tokenizer, prompt, family=self._family)
        return EncodedPrompt(embeds, tokens, unused)
