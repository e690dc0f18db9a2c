"""Run a transformer on several devices that hold the same weights, each for a part of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from worker.model.attention import replace_attention
from worker.model.device_group import DeviceGroup
from worker.model.heads import Angles
from worker.model.token_split import SequenceSplit, TokenSplit


def split_forward(transformer: Any, group: DeviceGroup) -> None:
    """Make a Flux2Transformer2DModel divide its passes among the devices of a group, if `group.is_split`.

    Call this before the first pass. Every device then returns the velocity of all tokens. Hooks of the transformer and
    of its blocks run as before.
    """
    replace_attention(transformer)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.attn.processor.group = group.name
    transformer.forward = partial(_forward, transformer, transformer.forward, group)


def _forward(transformer: Any, alone: Callable[..., tuple[Tensor]], group: DeviceGroup, **call: Any) -> tuple[Tensor]:
    """Run a pass; `call` has the arguments of Flux2Transformer2DModel's forward."""
    latents, prompt = call["hidden_states"], call["encoder_hidden_states"]
    if group.is_split:
        group.on_pass()
    split = group.split(text=prompt.shape[1], image=latents.shape[1], batch=len(latents))
    group.begin(split)
    if not group.has_part(split):
        return (torch.zeros_like(latents),)
    return alone(**call) if split.devices == 1 else _split_pass(transformer, group, split, **call)


def _split_pass(
    model: Any,
    group: DeviceGroup,
    split: TokenSplit,
    *,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    timestep: Tensor,
    img_ids: Tensor,
    txt_ids: Tensor,
    guidance: Tensor,
    return_dict: bool,
) -> tuple[Tensor]:
    """Compute this device's part of a pass; returns the velocity of all tokens.

    Source:
        Flux2Transformer2DModel.forward in diffusers' models/transformers/transformer_flux2.py.
    """
    assert not return_dict
    text_count, dtype = encoder_hidden_states.shape[1], hidden_states.dtype
    rows, text_rows, own_text = (
        split.single.image[group.rank],
        split.double.text[group.rank],
        split.single.text[group.rank],
    )
    embedded = model.time_guidance_embed(timestep.to(dtype) * 1000, guidance.to(dtype) * 1000)
    image = model.x_embedder(hidden_states[:, rows.start - text_count : rows.stop - text_count])
    text = model.context_embedder(encoder_hidden_states[:, text_rows.start : text_rows.stop])
    angles = _angles(model, txt_ids, img_ids)
    of_double, of_single = (_rows_of(angles, sequence, group.rank) for sequence in (split.double, split.single))
    modulations = model.double_stream_modulation_img(embedded), model.double_stream_modulation_txt(embedded)
    for block in model.transformer_blocks:
        text, image = block(
            hidden_states=image,
            encoder_hidden_states=text,
            temb_mod_img=modulations[0],
            temb_mod_txt=modulations[1],
            image_rotary_emb=of_double,
            joint_attention_kwargs=None,
        )
    joint = torch.cat([text[:, own_text.start - text_rows.start : own_text.stop - text_rows.start], image], dim=1)
    modulation = model.single_stream_modulation(embedded)
    for block in model.single_transformer_blocks:
        joint = block(
            hidden_states=joint,
            encoder_hidden_states=None,
            temb_mod=modulation,
            image_rotary_emb=of_single,
            joint_attention_kwargs=None,
        )
    normed = model.norm_out(joint[:, len(own_text) :], embedded)
    # The last layer's rows have other bits if they are computed in parts.
    return (model.proj_out(group.gather_image(normed)),)


def _angles(model: Any, txt_ids: Tensor, img_ids: Tensor) -> Angles:
    """Return the rotary angles of the whole sequence."""
    # Of text and image separately, as the model computes them.
    text, image = (model.pos_embed(ids[0] if ids.ndim == 3 else ids) for ids in (txt_ids, img_ids))
    return torch.cat([text[0], image[0]]), torch.cat([text[1], image[1]])


def _rows_of(angles: Angles, sequence: SequenceSplit, rank: int) -> Angles:
    parts = sequence.text[rank], sequence.image[rank]
    cosines, sines = (torch.cat([values[part.start : part.stop] for part in parts]) for values in angles)
    return cosines, sines
