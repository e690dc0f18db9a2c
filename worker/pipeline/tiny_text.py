"""The tiny model's text side: a Mistral 3 folder with a tokenizer trained here.

The control tokens have the ids they have in Mistral's Tekken tokenizer. There is one layer more than is read, as in the
real model, whose upper layers are never run either.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Mistral3Config, Mistral3ForConditionalGeneration, PreTrainedTokenizerFast

from worker.pipeline.text_encoder import HIDDEN_STATES, quiet_transformers

WIDTH = 32

_VOCABULARY = 768
_CONTROL_TOKENS = [
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
]  # fmt: skip

# Enough English about pictures that a prompt takes about as many tokens as words.
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


def write_text_encoder(folder: Path, generator: torch.Generator) -> None:
    """Write model, tokenizer, chat template and processor files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    with quiet_transformers():
        tokenizer.save_pretrained(folder)
        _model(generator).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(_PROCESSOR, indent=2) + "\n")


def _tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the corpus, so that any text can be encoded."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=_CONTROL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS.splitlines(), trainer)
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


def _model(generator: torch.Generator) -> Any:
    text = {
        "model_type": "mistral", "vocab_size": _VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": max(HIDDEN_STATES) + 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 16, "max_position_embeddings": 4096, "sliding_window": None, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e9},
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "head_dim": 16, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    image_token = _CONTROL_TOKENS.index("[IMG]")
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=image_token)
    model: Any = Mistral3ForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.ndim > 1:
                fan_in = 1 if "embed_tokens" in name else parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model.to(torch.bfloat16)
