"""AI Toolkit's engine: its own transformer, autoencoder, pipeline and scheduler, over the weights of this project.

No weight is loaded twice. Its modules share the tensors of diffusers' modules, so an adapter that is merged into one is
merged into the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from shared.errors import CheckpointError
from shared.job import Engine as EngineName
from worker.checkpoint.tensor_files import OPTIONAL
from worker.checkpoint.tensor_names import Origin, autoencoder_origins, join_rows, tensor_parts, transformer_origins
from worker.model.components import Components
from worker.rendering.denoise import OnEstimate, OnStep, TransformerInputs
from worker.rendering.engine import DenoisingInputs, package_versions
from worker.rendering.latents import PIXELS
from worker.rendering.toolkit_checkout import Toolkit


class ToolkitEngine:
    """Runs modules of AI Toolkit's classes.

    Args:
        transformer: a `Flux2`.
        autoencoder: an `AutoEncoder`.
        copies: tensors of the transformer that cannot be shared, each with the parts from which it is joined.
    """

    name: ClassVar[EngineName] = "ai-toolkit"
    requirement: ClassVar[str] = "AI_TOOLKIT_PATH must name a checkout, and FLUX2_MODEL_PRECISION must be bf16 or fp32"
    supports_tiling: ClassVar[bool] = False
    # AI Toolkit's modules share our weights but not the hooks that wait for them.
    waits_for_blocks: ClassVar[bool] = False
    measures_fp8_error: ClassVar[bool] = False
    # Its pipeline computes its schedule from the number of steps and takes no other.
    takes_sigmas: ClassVar[bool] = False
    encodes_references: ClassVar[bool] = True

    def __init__(
        self,
        toolkit: Toolkit,
        transformer: Any,
        autoencoder: Any,
        *,
        copies: Sequence[tuple[Tensor, Sequence[Tensor]]] = (),
    ) -> None:
        self.transformer = transformer
        self._copies = copies
        self._pipeline = toolkit.pipeline(
            scheduler=toolkit.scheduler(**toolkit.scheduler_config),
            vae=autoencoder,
            text_encoder=None,
            tokenizer=None,
            transformer=transformer,
            is_guidance_distilled=transformer.use_guidance_embed,
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self.versions = {**package_versions(), "ai-toolkit": toolkit.version}

    @classmethod
    def from_components(cls, components: Components, toolkit: Toolkit) -> ToolkitEngine:
        """Return AI Toolkit's engine over the weights of `components`.

        Raises:
            CheckpointError: its classes cannot hold them.
        """
        ours = components.transformer
        with torch.device("meta"):
            transformer = toolkit.transformer(toolkit.transformer_params(**_transformer_params(ours)))
        copies = _share(transformer, ours, transformer_origins(ours))
        return cls(toolkit, transformer, share_autoencoder(toolkit, components.autoencoder), copies=copies)

    @property
    def autoencoder(self) -> Any:
        """AI Toolkit's `AutoEncoder`, with the encoder."""
        return self._pipeline.vae

    def predict(self, call: TransformerInputs) -> Tensor:
        self._refresh()
        prediction: Tensor = self.transformer(
            x=call.latents,
            x_ids=call.img_ids,
            timesteps=call.timestep,
            ctx=call.prompt_embeds,
            ctx_ids=call.txt_ids,
            guidance=call.guidance,
        )
        return prediction

    def denoise(
        self, noise: Tensor, run: DenoisingInputs, *, on_step: OnStep, on_estimate: OnEstimate | None = None
    ) -> Tensor:
        self._refresh()
        rows, columns = noise.shape[2:]
        with self._count_steps(run, on_step):
            latents: Tensor = self._pipeline(
                prompt_embeds=run.prompt_embeds,
                negative_prompt_embeds=run.negative_prompt_embeds,
                height=rows * PIXELS,
                width=columns * PIXELS,
                num_inference_steps=run.steps,
                guidance_scale=run.guidance_scale,
                latents=noise,
                output_type="latent",
                return_dict=False,
                control_img_list=None if run.references is None else list(run.references.images),
            )[0]
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        autoencoder = self._pipeline.vae
        decoded: Tensor = autoencoder.decode(latents.to(autoencoder.dtype)).float()
        return decoded

    def image(self, decoded: Tensor) -> Image.Image:
        image: Image.Image = self._pipeline.image_processor.postprocess(decoded[None], output_type="pil")[0]
        return image

    def _refresh(self) -> None:
        # Before each run, because a swap changes the parts. Only the last modulation is a copy: its two halves are in
        # another order in diffusers.
        for copy, parts in self._copies:
            torch.cat(list(parts), out=copy)

    @contextmanager
    def _count_steps(self, run: DenoisingInputs, on_step: OnStep) -> Iterator[None]:
        """Call `on_step` after each step; its errors end the run."""
        # By counting passes, because the pipeline has no callback.
        passes, done = 1 if run.negative_prompt_embeds is None else 2, 0

        def count(*_: Any) -> None:
            nonlocal done
            done += 1
            if done % passes == 0:
                on_step(done // passes, run.steps)

        handle = self.transformer.register_forward_hook(count)
        try:
            yield
        finally:
            handle.remove()


def assign_weights(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Make `state` the weights of one of AI Toolkit's modules, without a copy, and prepare it for inference.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
    """
    try:
        missing, unexpected = module.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"AI Toolkit's {type(module).__name__}: {error}") from error
    absent = sorted(set(missing) - OPTIONAL)
    if absent or unexpected:
        raise CheckpointError(
            f"the weights do not fit AI Toolkit's {type(module).__name__}: missing {absent}, unknown {unexpected}"
        )
    module.requires_grad_(False).eval()


def _share(theirs: nn.Module, ours: nn.Module, origins: Mapping[str, Origin]) -> list[tuple[Tensor, Sequence[Tensor]]]:
    """Assign our module's tensors to AI Toolkit's module; return the tensors that are copies, each with its parts."""
    parts = tensor_parts(ours, origins)
    state = {name: join_rows(tensors) for name, tensors in parts.items()}
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    for name, tensor in state.items():
        if name in shapes and shapes[name] == (*tensor.shape, 1, 1):  # a 1x1 convolution that diffusers runs as linear
            state[name] = tensor[:, :, None, None]
    assign_weights(theirs, state)
    # Compare storages, not addresses: a view of all parts begins where the first part begins.
    return [
        (state[name], tensors)
        for name, tensors in parts.items()
        if state[name].untyped_storage().data_ptr() != tensors[0].untyped_storage().data_ptr()
    ]


def _transformer_params(transformer: Any) -> dict[str, Any]:
    """Return a Flux2Transformer2DModel's sizes under AI Toolkit's parameter names."""
    config = transformer.config
    return {
        "in_channels": config.in_channels,
        "context_in_dim": config.joint_attention_dim,
        "hidden_size": config.num_attention_heads * config.attention_head_dim,
        "num_heads": config.num_attention_heads,
        "depth": config.num_layers,
        "depth_single_blocks": config.num_single_layers,
        "axes_dim": list(config.axes_dims_rope),
        "theta": config.rope_theta,
        "mlp_ratio": config.mlp_ratio,
        "use_guidance_embed": config.guidance_embeds,
    }


def share_autoencoder(toolkit: Toolkit, ours: Any) -> Any:
    """Return an `AutoEncoder` over the weights of an AutoencoderKLFlux2.

    Raises:
        CheckpointError: the class cannot hold them.
    """
    encoder_widths = ours.config.block_out_channels
    decoder_widths = ours.config.decoder_block_out_channels or encoder_widths
    with torch.device("meta"):
        theirs = toolkit.autoencoder(toolkit.autoencoder_params(**_autoencoder_params(ours.config, decoder_widths)))
        # One call cannot express every pair of an encoder and a decoder of different widths.
        if encoder_widths != decoder_widths:
            wide = toolkit.autoencoder(toolkit.autoencoder_params(**_autoencoder_params(ours.config, encoder_widths)))
            theirs.encoder = wide.encoder
    _share(theirs, ours, autoencoder_origins(ours))
    return theirs


def _autoencoder_params(config: Any, widths: Sequence[int]) -> dict[str, Any]:
    """Return an AutoencoderKLFlux2's sizes under AI Toolkit's parameter names, with the same widths on both sides."""
    # The class takes one base width and integer multiples of it.
    unit = math.gcd(*widths)
    return {
        "in_channels": config.in_channels,
        "out_ch": config.out_channels,
        "ch": unit,
        "ch_mult": [width // unit for width in widths],
        "num_res_blocks": config.layers_per_block,
        "z_channels": config.latent_channels,
    }
