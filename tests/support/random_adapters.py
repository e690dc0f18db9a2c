"""Random adapters of every kind and layout, and the weights that they must give, from formulas in float64.

The formulas use nothing of this project: names, rows, scales and products are stated here a second time.
"""

import json
import math
import random

import torch
from safetensors.torch import load_file, save_file

from worker.model.fp8 import fp8_layers
from worker.verify.golden_models import adapter_ref

# The modules of diffusers' transformer whose rows follow each other in a layer of Black Forest Labs.
DOUBLE = {
    "img_attn.qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "img_attn.proj": ["attn.to_out.0"],
    "img_mlp.0": ["ff.linear_in"],
    "img_mlp.2": ["ff.linear_out"],
    "txt_attn.qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "txt_attn.proj": ["attn.to_add_out"],
    "txt_mlp.0": ["ff_context.linear_in"],
    "txt_mlp.2": ["ff_context.linear_out"],
}
SINGLE = {"linear1": ["attn.to_qkv_mlp_proj"], "linear2": ["attn.to_out"]}
MODULES = {
    **{f"double_blocks.{n}.{layer}": [f"transformer_blocks.{n}.{m}" for m in names]
       for n in range(2) for layer, names in DOUBLE.items()},
    **{f"single_blocks.{n}.{layer}": [f"single_transformer_blocks.{n}.{m}" for m in names]
       for n in range(2) for layer, names in SINGLE.items()},
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "single_stream_modulation.lin": ["single_stream_modulation.linear"],
    "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    "final_layer.linear": ["proj_out"],
}  # fmt: skip
FUSED = {"to_q": "to_qkv", "add_q_proj": "to_added_qkv"}
SWAPPED = "final_layer.adaLN_modulation.1"


@torch.no_grad()
def effective_weights(components):
    """Return the weight of each layer of Black Forest Labs, with hooks, as the outputs for unit vectors show it.

    Float8 layers round their input, so what they store is read instead.
    """
    transformer, weights = components.transformer, {}
    float8 = fp8_layers(transformer)
    for layer, paths in MODULES.items():
        modules = [transformer.get_submodule(path) for path in paths]
        unit_vectors = torch.eye(modules[0].weight.shape[1], dtype=components.dtype, device=components.device)
        block, _, name = paths[0].rpartition(".attn.")
        fused = getattr(transformer.get_submodule(f"{block}.attn"), FUSED[name], None) if name in FUSED else None
        if f"{paths[0]}.weight" in float8:
            rows = [module.weight.float() * module.scale for module in modules]
        else:
            rows = [module(unit_vectors).T for module in (modules if fused is None else [fused])]
        whole = torch.cat(rows)
        weights[layer] = torch.cat(whole.chunk(2)[::-1]) if layer == SWAPPED else whole
    return weights


def every_row(layer, sizes):
    return list(range(sizes[layer][0]))


def bfl_names(pattern, *, dots=True):
    def targets(sizes):
        return [(pattern.format(layer if dots else layer.replace(".", "_")), layer, every_row(layer, sizes))
                for layer in MODULES]  # fmt: skip

    return targets


def diffusers_names(pattern, *, dots=True):
    def targets(sizes):
        found = []
        for layer, modules in MODULES.items():
            rows = every_row(layer, sizes)
            half, part = len(rows) // 2, len(rows) // len(modules)
            if layer == SWAPPED:
                rows = rows[half:] + rows[:half]
            for number, module in enumerate(modules):
                name = module if dots else module.replace(".", "_")
                found.append((pattern.format(name), layer, rows[number * part : (number + 1) * part]))
        return found

    return targets


def split_names(sizes):
    found = []
    for layer in MODULES:
        rows = every_row(layer, sizes)
        parts = {"qkv": (1, 1, 1), "linear1": (1, 1, 1, 6)}.get(layer.rpartition(".")[2])
        if parts is None:
            found.append((f"transformer.{layer}", layer, rows))
            continue
        unit, start = len(rows) // sum(parts), 0
        for number, size in enumerate(parts):
            found.append((f"transformer.{layer}.{number}", layer, rows[start * unit : (start + size) * unit]))
            start += size
    return found


AB, DOWN_UP = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
LAYOUTS = {
    "ai-toolkit": (bfl_names("diffusion_model.{}"), AB),
    "peft": (bfl_names("base_model.model.{}"), AB),
    "kohya": (bfl_names("lora_unet_{}", dots=False), DOWN_UP),
    "diffusers": (diffusers_names("transformer.{}"), AB),
    "diffsynth": (diffusers_names("{}"), ("lora_A.default.weight", "lora_B.default.weight")),
    "lycoris": (diffusers_names("lycoris_{}", dots=False), DOWN_UP),
    "onetrainer": (split_names, DOWN_UP),
}

# What PEFT's patterns leave out of a module's name.
PREFIXES = {
    "ai-toolkit": "diffusion_model.",
    "peft": "base_model.model.",
    "kohya": "lora_unet_",
    "diffusers": "transformer.",
    "lycoris": "lycoris_",
    "onetrainer": "transformer.",
}

KINDS = ["lora", "dora", "column dora", "loha", "row loha", "column loha", "lokr", "row lokr", "column lokr", "diff"]
ALPHAS = ["none", "tensor", "list", "config", "patterns", "rslora", "plain"]


# Precision, mode, and how far a weight may be from the formula: float32's and bfloat16's rounding, float8's steps of
# 1/16.
LIMITS = [
    ("fp32", "merged", 2e-6),
    ("bf16", "merged", 3e-3),
    ("fp8", "merged", 4e-2),
    ("fp32", "live", 3e-6),
    ("bf16", "live", 8e-3),
    ("qfloat8", "live", 8e-3),
]


class Draw(random.Random):
    """Random choices, and random matrices of the same seed."""

    def __init__(self, seed):
        super().__init__(seed)
        self._values = torch.Generator().manual_seed(seed)

    def normal(self, *shape):
        return torch.randn(shape, generator=self._values)

    def between(self, low, high, like):
        return low + (high - low) * torch.rand(like.shape, generator=self._values)


class Drawn:
    """One random update: the tensors of a module, and its formula."""

    def __init__(self, kind, weight, draw, *, down_up, dtype):
        self.kind, self.tensors, self.rank, self._weight = kind, {}, None, weight
        self._draw, self._dtype = draw, dtype
        out, columns = weight.shape
        getattr(self, f"_{kind.rpartition(' ')[2].replace('dora', 'lora')}")(out, columns, down_up)
        axis, *_ = kind.split() if " " in kind else ("row",) if kind == "dora" else ("",)
        self._axis = {"row": 1, "column": 0}.get(axis)
        if self._axis is not None:
            lengths = weight.double().norm(dim=self._axis, keepdim=True)
            factor = draw.between(0.7, 1.3, lengths)
            name, flat = "dora_scale", False
            if self._axis == 1:
                name, flat = draw.choice(
                    [("dora_scale", False), ("dora_scale", True), ("magnitude", True), ("lora_magnitude_vector", True),
                     ("lora_magnitude_vector.weight", True)]
                )  # fmt: skip
            self.magnitude = self._keep(name, lengths.float() * factor, flat=flat).view(lengths.shape)

    def merged(self, *, scale, multiplier):
        """Return the weight with the update, in float64."""
        total = self._weight.double() + multiplier * scale * self.delta
        if self._axis is None:
            return total
        return total * (self.magnitude / total.norm(dim=self._axis, keepdim=True))

    def _keep(self, name, values, *, flat=False):
        """Add a tensor to the file; return the values that it stores, in float64."""
        stored = values.to(self._dtype)
        self.tensors[name] = stored.flatten() if flat else stored
        return stored.double()

    def _lora(self, out, columns, down_up):
        self.rank = self._draw.choice([1, 2, 3, 5, 8, 70])
        down = self._keep(down_up[0], self._draw.normal(self.rank, columns))
        up = self._keep(down_up[1], self._draw.normal(out, self.rank) * 0.1 / math.sqrt(self.rank))
        self.delta = up @ down

    def _loha(self, out, columns, _):
        self.rank = self._draw.choice([1, 2, 3, 5, 9])
        products = []
        for number in (1, 2):
            left = self._keep(f"hada_w{number}_a", self._draw.normal(out, self.rank) * 0.3 / math.sqrt(self.rank))
            products.append(left @ self._keep(f"hada_w{number}_b", self._draw.normal(self.rank, columns)))
        self.delta = products[0] * products[1]

    def _lokr(self, out, columns, _):
        rows, width = self._draw.choice([1, 2, 4, 8]), self._draw.choice([1, 2, 4, 8])
        shapes = {"w1": (rows, width), "w2": (out // rows, columns // width)}
        decomposed = self._draw.choice([(), ("w1",), ("w2",), ("w1", "w2")])
        self.rank = self._draw.choice([1, 2, 3]) if decomposed else None
        factors = {}
        for name, shape in shapes.items():
            size = 0.1 if name == "w2" else 1.0
            if name in decomposed:
                left = self._keep(
                    f"lokr_{name}_a", self._draw.normal(shape[0], self.rank) * size / math.sqrt(self.rank)
                )
                factors[name] = left @ self._keep(f"lokr_{name}_b", self._draw.normal(self.rank, shape[1]))
            else:
                factors[name] = self._keep(f"lokr_{name}", self._draw.normal(*shape) * size)
        # kron, block by block
        self.delta = torch.cat(
            [torch.cat([entry * factors["w2"] for entry in row], dim=1) for row in factors["w1"]], dim=0
        )

    def _diff(self, out, columns, _):
        self.delta = self._keep("diff", self._draw.normal(out, columns) * 0.1)


def write_file(path, *, layout, kind, alpha, base, draw, whole=False):
    """Write a random adapter; return its updates as (layer, rows, update, scale).

    Args:
        base: the layers' weights on the host.
        whole: update every module; otherwise a few, most of them such that hold a part of a layer's rows.
    """
    name_targets, down_up = LAYOUTS[layout]
    # A magnitude has no place for an adapter's name, and one file holds one adapter.
    down_up = AB if layout == "diffsynth" and kind.endswith("dora") else down_up
    sizes = {layer: tuple(weight.shape) for layer, weight in base.items()}
    everything = name_targets(sizes)
    in_parts = [target for target in everything if "qkv" in target[1] or target[1] == SWAPPED or "linear1" in target[1]]
    others = [target for target in everything if target not in in_parts]
    chosen = everything if whole else draw.sample(in_parts, 5) + draw.sample(others, 3)
    dtype = draw.choice([torch.float32, torch.bfloat16, torch.float16])
    tensors, metadata, found, names = {}, {}, [], {}
    for module, layer, rows in chosen:
        update = Drawn(kind, base[layer][rows], draw, down_up=down_up, dtype=dtype)
        number = draw.choice([0.5, 1.0, 2.0, 4.0, 6.0])
        scale = 1.0
        if update.rank is not None and alpha in ("tensor", "list"):
            stored = torch.tensor(number, dtype=dtype)
            update.tensors["alpha"] = stored.view(1) if alpha == "list" else stored
            scale = number / update.rank
        tensors |= {f"{module}.{name}": tensor.contiguous() for name, tensor in update.tensors.items()}
        names[module] = (update, number)
        found.append([layer, rows, update, scale])
    if alpha in ("config", "patterns", "rslora", "plain") and any(update.rank for update, _ in names.values()):
        metadata = _state_alpha(alpha, found, names, layout)
    save_file(tensors, path, metadata)
    return found


def _state_alpha(alpha, found, names, layout):
    """Return the header's metadata for a source of alpha, and set the scales that it stands for."""
    ranked = {module: each for module, each in names.items() if each[0].rank is not None}
    stripped = {module: module.removeprefix(PREFIXES.get(layout, "")) for module in ranked}
    own = {id(update): number for update, number in ranked.values()} if alpha == "patterns" else {}
    for entry in found:
        rank = entry[2].rank
        if rank is not None:
            entry[3] = own.get(id(entry[2]), 3.0) / (math.sqrt(rank) if alpha == "rslora" else rank)
    if alpha == "plain":
        return {"lora_alpha": "3.0"}
    config = {
        "r": 64,
        "lora_alpha": 3,
        "rank_pattern": {stripped[module]: update.rank for module, (update, _) in ranked.items()},
        "use_rslora": alpha == "rslora",
    }
    if own:
        config["alpha_pattern"] = {stripped[module]: number for module, (_, number) in ranked.items()}
    prefix = "transformer." if layout == "diffusers" else ""
    return {"lora_adapter_metadata": json.dumps({f"{prefix}{key}": value for key, value in config.items()})}


def random_files(seed):
    """Yield layout, kind and source of alpha: each kind with each layout, while the sources of alpha take turns."""
    for number, layout in enumerate(LAYOUTS):
        for shift, kind in enumerate(KINDS):
            alpha = ALPHAS[(number + shift + seed) % len(ALPHAS)]
            if alpha in ("config", "patterns", "rslora", "plain") and kind.endswith("lokr"):
                alpha = "tensor"  # PEFT's config has no such LoKr
            yield layout, kind, alpha


def distance(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def hold_to_formulas(swapper, files, *, base, mode, limit, folder, whole=False):
    """Activate adapters one after the other, and compare every layer's weight with the formula's or the base model's.

    Args:
        files: layout, kind and source of alpha of each adapter.
        base: the dense weights that adapters are merged into, on the host.
        limit: of the relative L2 distance of a layer's weight.
    """
    components = swapper.components
    dense, path, worst = effective_weights(components), folder / "made.safetensors", 0.0
    for seed, (layout, kind, alpha) in enumerate(files):
        draw, what = Draw(seed), f"{kind} of {layout} with alpha {alpha}"
        updates = write_file(path, layout=layout, kind=kind, alpha=alpha, base=base, draw=draw, whole=whole)
        multiplier = draw.choice([1.0, 0.5, -0.7, 1.3])

        _, (report,) = swapper.activate([(adapter_ref(path, multiplier), path)], mode=mode)
        found = effective_weights(components)

        touched = {layer for layer, *_ in updates}
        expected, slack = {layer: base[layer].double() for layer in touched}, dict.fromkeys(touched, 1.0)
        for layer, rows, update, scale in updates:
            expected[layer][rows] = update.merged(scale=scale, multiplier=multiplier)
            if (kind, mode) == ("dora", "live"):
                # AI Toolkit rounds the update before the lengths shrink it, so the error grows with the update.
                ratio = scale * abs(multiplier) * update.delta.norm() / expected[layer][rows].norm()
                slack[layer] = max(slack[layer], float(ratio))
        for layer, weight in found.items():
            if layer in touched:
                error = distance(weight.cpu(), expected[layer]) / slack[layer]
                worst = max(worst, error)
                assert error < limit, (layer, what)
            else:
                assert torch.equal(weight, dense[layer]), (layer, what)
        assert report.layers_touched == len(touched), what
    swapper.activate([])
    restored = effective_weights(components)

    assert all(torch.equal(weight, dense[layer]) for layer, weight in restored.items())
    assert swapper.count_corrupted() == 0
    assert worst > 0


def write_wide_transformer(tiny, path, *, factor):
    """Write a transformer like `tiny`, whose hidden size is so many times as large, with random weights.

    Args:
        tiny: a file of Black Forest Labs' names with heads of 16 channels; the heads of the new one have 128.
    """
    draw, tensors = Draw(1), {}
    for name, tensor in load_file(tiny).items():
        # The sizes of latents, embeddings of the prompt, and those of the time and the guidance stay.
        kept = {"img_in.weight": 1, "txt_in.weight": 1, "final_layer.linear.weight": 0, "time_in.in_layer.weight": 1,
                "guidance_in.in_layer.weight": 1}.get(name)  # fmt: skip
        if tensor.ndim == 1:
            tensors[name] = torch.ones(128, dtype=tensor.dtype)
            continue
        shape = [size if axis == kept else size * factor for axis, size in enumerate(tensor.shape)]
        tensors[name] = (draw.normal(*shape) / math.sqrt(shape[1])).to(tensor.dtype)
    save_file(tensors, path)
