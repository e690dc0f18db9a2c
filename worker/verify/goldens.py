"""Read a folder of goldens: its manifest, the cases in it, its tensors and which weights they were made with.

The format is tests/goldens/README.md. Widths, depths, sizes, seeds, ranks and prompts are whatever the folder says.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from shared.errors import GoldensError
from worker.verify.outcome import CaseType, Precision


@dataclass(frozen=True)
class Case:
    """One line of the verification; `entry` is the manifest's, or schedule.json's or noise.json's."""

    type: CaseType
    name: str
    dtype: str
    entry: dict[str, Any]


class Goldens:
    """One folder of goldens.

    Raises:
        GoldensError: there is no manifest that can be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = self._json("manifest.json")
        if not isinstance(self.manifest.get("cases"), list):
            raise GoldensError(f"{folder / 'manifest.json'}: no list of cases")

    def cases(
        self, *, only: CaseType | None, dtype: Precision | None, types: Collection[CaseType] = tuple(CaseType)
    ) -> list[Case]:
        """Return the cases of a type and precision, those without a precision included.

        Args:
            types: what can be asked for.

        Raises:
            GoldensError: there is none, or the manifest has a type that is not known.
        """
        found = [
            case
            for case in sorted(self._all(), key=lambda case: list(CaseType).index(case.type))
            if case.type in types and only in (None, case.type) and (dtype is None or case.dtype in ("-", dtype))
        ]
        if not found:
            raise GoldensError(f"{self.folder}: no case of type {only or 'any'} and precision {dtype or 'any'}")
        return found

    def tensors(self, file: str) -> dict[str, Tensor]:
        """Return the tensors of a file that the manifest names."""
        return load_file(self.folder / file)

    def transformer(self, model: str) -> Path:
        """Return the weights of `dev` or `klein`."""
        return self._weights(f"flux2_{model}*.safetensors")

    def autoencoder(self) -> Path:
        """Return the autoencoder's weights."""
        return self._weights("ae*.safetensors")

    def _weights(self, pattern: str) -> Path:
        found = sorted((self.folder / "weights").glob(pattern))
        if len(found) != 1:
            raise GoldensError(f"{self.folder}/weights: {len(found)} files {pattern}; exactly one is needed")
        return found[0]

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text())
        except (OSError, ValueError) as error:
            raise GoldensError(f"{self.folder / name}: cannot be read as JSON: {error}") from error

    def _all(self) -> Iterator[Case]:
        for entry in self._entries("schedule.json"):
            name = f"{entry['num_steps']} steps, {entry['image_seq_len']} tokens"
            yield Case(CaseType.SCHEDULE, name, "-", entry)
        for entry in self._entries("noise.json"):
            size = "x".join(str(length) for length in entry["shape"])
            yield Case(CaseType.NOISE, f"seed {entry['seed']}, {size}", entry["dtype"], entry)
        for entry in self.manifest["cases"]:
            yield from _expand(entry)

    def _entries(self, name: str) -> Sequence[dict[str, Any]]:
        entries: list[dict[str, Any]] = self._json(name)["entries"] if (self.folder / name).is_file() else []
        return entries


def sidecar(weights: Path) -> dict[str, Any]:
    """Return what the JSON file beside `weights` says of them; nothing if there is none."""
    file = weights.with_suffix(".json")
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content


def given_embeds(goldens: Goldens, run: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the embeddings, `prompt_embeds` and any negative ones, that a run names as FILE:TENSOR."""
    named = {role: run[role].partition(":") for role in ("prompt_embeds", "negative_prompt_embeds") if role in run}
    return {role: goldens.tensors(file)[name] for role, (file, _, name) in named.items()}


def _expand(entry: dict[str, Any]) -> Iterator[Case]:
    """Turn a manifest entry into one case for each precision that it has results in."""
    try:
        type_ = CaseType(entry["type"])
    except ValueError as error:
        raise GoldensError(f"manifest.json: a case of unknown type {entry['type']!r}") from error
    name = entry.get("name") or Path(entry["file"]).stem
    for dtype in [entry["dtype"]] if "dtype" in entry else _precisions(entry):
        yield Case(type_, name, dtype, entry)


def _precisions(entry: dict[str, Any]) -> list[str]:
    return [precision.value for precision in Precision if f"latents_{precision}" in entry["tolerance"]]
