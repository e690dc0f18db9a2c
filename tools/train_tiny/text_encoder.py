"""Build the tiny model's text encoder: a Mistral 3 folder with a tokenizer trained on the generator's captions.

Control tokens have the same ids as in Mistral's Tekken tokenizer. The model has one layer more than the worker reads,
like the real model, whose upper layers never run.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PreTrainedTokenizerFast

from tools.train_tiny.data import random_picture, random_subject
from worker.model.text_encoder import MISTRAL
from worker.model.tokenizer import quiet_transformers

WIDTH = 96

_VOCABULARY = 1024
_CONTROL_TOKENS = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
]  # fmt: skip
PAD = _CONTROL_TOKENS.index("<pad>")

#: The trained layers: some before each hidden state that the worker reads. The others add nothing to the stream, so the
#: model has the depth and the reading points of the real one at a quarter of the training cost.
_TRAINED_LAYERS = (0, 1, 2, 10, 11, 20, 21)

# English text in addition to the captions, so that other prompts take about one token a word.
_CORPUS = """
a photo of a red fox in the snow at dawn, soft light, shallow depth of field
a portrait of a woman with green eyes, studio lighting, film grain, 85mm lens
an oil painting of a harbour with sailing boats under a stormy sky
a watercolor of a quiet village street in autumn, people walking in the rain
a wooden table with a bowl of ramen, steam rising, seen from above
a cat sleeping on a stack of old books beside a window
a robot watering flowers in a garden, children's book illustration
mountains and a lake in the morning mist, wide angle, high detail
the word hello written in neon on a brick wall, night, reflections on wet ground
a man holding a sign, a dog running on the beach, two birds on a branch
a blue car parked in front of a white house, cinematic, golden hour
an astronaut riding a horse, a castle on a hill, a bridge over a river
You are an AI that reasons about image descriptions. You give structured responses focusing on object relationships,
object attribution and actions without speculation.
"""

_CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['content'] is string %}
        {%- set text = message['content'] %}
    {%- else %}
        {%- set text = message['content'] | map(attribute='text') | join('') %}
    {%- endif %}
    {%- if message['role'] == 'system' %}
        {{- '[SYSTEM_PROMPT]' + text + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'user' %}
        {{- '[INST]' + text + '[/INST]' }}
    {%- else %}
        {{- text + eos_token }}
    {%- endif %}
{%- endfor %}
"""

_PROCESSOR = {
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
    "image_token": "[IMG]",
    "patch_size": 14,
    "processor_class": "PixtralProcessor",
    "spatial_merge_size": 2,
}


def train_tokenizer(*, captions: int = 40_000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on captions: their words become single tokens, and it can encode any text."""
    rng = random.Random(seed)
    lines = [random_picture(rng).caption for _ in range(captions)] + [
        random_subject(rng).caption for _ in range(captions // 20)
    ]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=_CONTROL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines + _CORPUS.splitlines() * 40, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        chat_template=_CHAT_TEMPLATE,
        model_max_length=131_072,
    )


class TextEncoder(nn.Module):
    """The trained layers of the text encoder, without the layers that add nothing."""

    def __init__(self) -> None:
        super().__init__()
        model = _build().model.language_model
        self.embed, self.rotary = model.embed_tokens, model.rotary_emb
        self.layers = nn.ModuleDict({str(index): model.layers[index] for index in _TRAINED_LAYERS})
        nn.init.normal_(self.embed.weight, std=0.5)
        # A pad's embedding is zero and stays zero through every layer, for any number of pads.
        self.embed.weight.data[PAD] = 0
        self.embed.weight.register_hook(_without_pad)
        for layer in self.layers.values():
            for name, parameter in layer.named_parameters():
                if parameter.ndim == 2:
                    last = name.endswith(("o_proj.weight", "down_proj.weight"))
                    nn.init.normal_(parameter, std=(0.3 if last else 1.0) / math.sqrt(parameter.shape[1]))

    def forward(self, ids: Tensor) -> Tensor:
        """Return (batch, tokens, 3 * width)."""
        hidden = self.embed(ids)
        tokens = ids.shape[1]
        positions = torch.arange(tokens, device=ids.device)[None]
        causal = torch.ones(tokens, tokens, dtype=torch.bool, device=ids.device).tril()
        # A pad attends to itself, a zero: torch before 2.5 gives NaN for a row that attends to nothing.
        seen = (ids != PAD)[:, None, None, :] | torch.eye(tokens, dtype=torch.bool, device=ids.device)
        mask = causal & seen
        rotary = self.rotary(hidden, positions)
        states = []
        for index in range(max(MISTRAL.hidden_states)):
            if str(index) in self.layers:
                out = self.layers[str(index)](hidden, attention_mask=mask, position_embeddings=rotary)
                hidden = out[0] if isinstance(out, tuple) else out
            if index + 1 in MISTRAL.hidden_states:
                states.append(hidden)
        return torch.cat(states, dim=-1)

    @torch.no_grad()
    def load(self, entries: Mapping[str, Tensor]) -> None:
        """Copy the trained layers from a saved model's tensors."""
        prefix = "language_model.model."
        self.embed.weight.copy_(entries[prefix + "embed_tokens.weight"])
        for index, layer in self.layers.items():
            for name, value in layer.state_dict().items():
                value.copy_(entries[f"{prefix}layers.{index}.{name}"])


def save_text_encoder(text: TextEncoder, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model, tokenizer, chat template and processor files into `folder`, with the real model's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    model = _build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Layers that never run or add nothing are zeros, which also compress well.
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        language = model.model.language_model
        language.embed_tokens.weight.copy_(text.embed.weight)
        for index, layer in text.layers.items():
            language.layers[int(index)].load_state_dict(layer.state_dict())
    with quiet_transformers():
        tokenizer.save_pretrained(folder)
        model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(_PROCESSOR, indent=2) + "\n")


def _build() -> Any:
    """Return the Mistral 3 model as transformers initialises it."""
    text = {
        "model_type": "mistral", "vocab_size": _VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": max(MISTRAL.hidden_states) + 1, "num_attention_heads": 3, "num_key_value_heads": 1,
        "head_dim": 32, "max_position_embeddings": 4096, "sliding_window": None, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "head_dim": 16, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    image_token = _CONTROL_TOKENS.index("[IMG]")
    config = Mistral3Config(
        text_config=text, vision_config=vision, image_token_index=image_token, tie_word_embeddings=True
    )
    return Mistral3ForConditionalGeneration(config)


def _without_pad(grad: Tensor) -> Tensor:
    grad = grad.clone()
    grad[PAD] = 0
    return grad
