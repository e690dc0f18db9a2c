"""The goldens' tiny model as a checkpoint on disk, for the tests of worker/. Torch is imported where it is needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from shared.adapters.identity import sha256_of
from shared.job import AdapterRef
from shared.settings import ModelSettings


@pytest.fixture(scope="session")
def cases(goldens: Path) -> Callable[..., list[dict[str, Any]]]:
    """Select entries of the goldens' manifest, e.g. `cases(type="sampling", model="dev")`."""
    manifest = json.loads((goldens / "manifest.json").read_text())["cases"]

    def select(**wanted: Any) -> list[dict[str, Any]]:
        found = [case for case in manifest if all(case.get(key) == value for key, value in wanted.items())]
        assert found, f"no golden with {wanted}"
        return found

    return select


@pytest.fixture(scope="session")
def checkpoint(goldens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The goldens' weights under the names of the real files; the tokenizer pads on the left."""
    folder = tmp_path_factory.mktemp("checkpoint")
    shutil.copy(goldens / "weights/flux2_dev_tiny.safetensors", folder / "flux2-dev.safetensors")
    shutil.copy(goldens / "weights/ae_tiny.safetensors", folder / "ae.safetensors")
    shutil.copytree(goldens / "text/mistral_tiny", folder / "text_encoder")
    shutil.copytree(goldens / "text/mistral_processor_pad_left", folder / "text_encoder", dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def model_settings(checkpoint: Path) -> Callable[[str], ModelSettings]:
    """Settings that name the goldens' checkpoint in a precision."""

    def make(precision: str) -> ModelSettings:
        return ModelSettings(path=str(checkpoint), text_encoder=str(checkpoint / "text_encoder"), precision=precision)

    return make


@pytest.fixture(scope="session")
def _loaded(model_settings: Callable[[str], ModelSettings]) -> dict[str, Any]:
    """Each precision, loaded once; its transformer is only for tests that leave it as it is."""
    import torch

    from worker.model.load import load_components

    cpu = torch.device("cpu")
    return {name: load_components(model_settings(name), device=cpu, hf_token=None) for name in ("fp32", "bf16")}


@pytest.fixture
def components(_loaded: dict[str, Any], checkpoint: Path) -> Callable[[str], Any]:
    """The goldens' model in a precision, with a transformer of the test's own."""

    def make(precision: str) -> Any:
        from worker.checkpoint.locate import ModuleFiles
        from worker.model.modules import load_transformer

        shared = _loaded[precision]
        files = ModuleFiles("bfl", (checkpoint / "flux2-dev.safetensors",))
        return replace(shared, transformer=load_transformer(files, device=shared.device, dtype=shared.dtype))

    return make


@pytest.fixture(scope="session")
def write_over() -> Callable[[Path], None]:
    """Write zeros over all values of a safetensors file, in place."""

    def write(file: Path) -> None:
        with file.open("r+b") as opened:
            values = 8 + int.from_bytes(opened.read(8), "little")
            opened.seek(values)
            opened.write(bytes(file.stat().st_size - values))

    return write


@pytest.fixture
def failing_at_layer() -> Callable[..., Any]:
    """Make one merge raise an error: the one with this number, counted from 1; `first` is called before."""
    from worker.lora import merge

    @contextmanager
    def failing(number: int, error: BaseException, *, first: Callable[[], None] = lambda: None) -> Iterator[None]:
        numbers = count(1)

        def weight_delta(*args: Any, **kwargs: Any) -> Any:
            if next(numbers) == number:
                first()
                raise error
            return merge.weight_delta(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("worker.lora.apply.weight_delta", weight_delta)
            yield

    return failing


@pytest.fixture(scope="session")
def sample() -> Callable[..., Any]:
    """Denoise given embeddings to latents (batch, 128, rows, columns), as `Renderer` does after encoding."""
    import torch

    from worker.rendering import denoise, latents, sigmas

    @torch.no_grad()
    def run(transformer: Any, prompt_embeds: Any, run: dict[str, Any], start: Any = None, wrap: Any = None) -> Any:
        rows, columns = run["height"] // 16, run["width"] // 16
        if start is None:
            size = {"channels": 128, "height": run["height"], "width": run["width"]}
            start = latents.noise(run["seed"], **size, dtype=prompt_embeds.dtype)
        velocity = denoise.distilled_velocity(
            transformer,
            prompt_embeds=prompt_embeds,
            img_ids=latents.image_ids(rows, columns),
            txt_ids=latents.text_ids(prompt_embeds.shape[1]),
            guidance_scale=run["guidance_scale"],
        )
        schedule = sigmas.sigmas(run["num_inference_steps"], rows * columns)
        velocity = wrap(velocity) if wrap else velocity
        tokens = denoise.denoise(velocity, latents.pack(start), schedule, on_step=lambda *_: None)
        return latents.unpack(tokens, rows=rows, columns=columns)

    return run


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Hold a tensor to a golden within the manifest's tolerance: `max_abs`, `rel_l2` or both."""

    def check(got: Any, expected: Any, tolerance: dict[str, float]) -> None:
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        difference, size = (got - expected).double(), expected.double().norm()
        errors = {"max_abs": difference.abs().max().item(), "rel_l2": (difference.norm() / size).item()}
        assert {name: errors[name] for name in tolerance if errors[name] > tolerance[name]} == {}

    return check


@pytest.fixture(scope="session")
def adapter_ref() -> Callable[..., AdapterRef]:
    """Name an adapter file as the API does when it accepts a job."""

    def make(path: Path, multiplier: float = 1.0) -> AdapterRef:
        size = path.stat().st_size
        return AdapterRef(path=path.name, sha256=sha256_of(path), size_bytes=size, multiplier=multiplier)

    return make


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes tensors, and metadata if given, to a file `source.safetensors`, and returns its path."""
    from safetensors.torch import save_file

    def write(tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
        file = tmp_path / "source.safetensors"
        save_file(tensors, file, metadata)
        return file

    return write
