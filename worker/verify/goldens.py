"""Read a folder of goldens: its manifest, its cases, their tensors and the weights of its models.

A golden is a number that AI Toolkit's own code produced; tests/goldens/README.md describes the format. Widths, depths,
sizes, seeds, ranks and prompts come from the folder, so any folder of that format works.
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
    """One check of the verification.

    Attributes:
        dtype: `fp32`, `bf16`, or `-` if the case has no precision.
        entry: the record from manifest.json, schedule.json or noise.json.
    """

    type: CaseType
    name: str
    dtype: str
    entry: dict[str, Any]


class Goldens:
    """One folder of goldens.

    Raises:
        GoldensError: the manifest is missing, is not JSON, or has no list of cases.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = self._json("manifest.json")
        if not isinstance(self.manifest.get("cases"), list):
            raise GoldensError(f"{folder / 'manifest.json'} has no list of cases; is this a folder of goldens?")

    def cases(
        self, *, only: CaseType | None, dtype: Precision | None, types: Collection[CaseType] = tuple(CaseType)
    ) -> list[Case]:
        """Return the cases of a type and precision; cases without a precision always match.

        Args:
            types: the case types that the caller can run.

        Raises:
            GoldensError: no case matches, or the manifest has an unknown type.
        """
        found = [
            case
            for case in sorted(self._all(), key=lambda case: list(CaseType).index(case.type))
            if case.type in types and only in (None, case.type) and (dtype is None or case.dtype in ("-", dtype))
        ]
        if not found:
            raise GoldensError(f"{self.folder} has no case of type {only or 'any'} and precision {dtype or 'any'}")
        return found

    def adapter_case(self, name: str) -> dict[str, Any]:
        """Return the manifest's entry of an adapter that AI Toolkit wrote.

        Raises:
            GoldensError: the manifest has no adapter of that name.
        """
        for entry in self.manifest["cases"]:
            if (entry.get("type"), entry.get("name")) == (CaseType.ADAPTER, name):
                found: dict[str, Any] = entry
                return found
        raise GoldensError(f"{self.folder / 'manifest.json'} has no case of type {CaseType.ADAPTER} named {name!r}")

    def tensors(self, file: str) -> dict[str, Tensor]:
        """Load a tensor file that the manifest names, relative to the folder."""
        return load_file(self.folder / file)

    def transformer(self, model: str) -> Path:
        """Return the path of the transformer weights of `dev` or `klein`."""
        return self._weights(f"flux2_{model}*.safetensors")

    def autoencoder(self) -> Path:
        return self._weights("ae*.safetensors")

    def _weights(self, pattern: str) -> Path:
        found = sorted((self.folder / "weights").glob(pattern))
        if len(found) != 1:
            raise GoldensError(f"{self.folder}/weights has {len(found)} files {pattern}; exactly one is needed")
        return found[0]

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text())
        except (OSError, ValueError) as error:
            raise GoldensError(f"{self.folder / name} cannot be read as JSON: {error}") from error

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
    """Return the content of the JSON file next to `weights`, which states their parameters; empty without a file."""
    file = weights.with_suffix(".json")
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content


def load_embeds(goldens: Goldens, run: Mapping[str, Any]) -> dict[str, Any]:
    """Load the embeddings that a run names as FILE:TENSOR: `prompt_embeds` and, if named, `negative_prompt_embeds`."""
    named = {role: run[role].partition(":") for role in ("prompt_embeds", "negative_prompt_embeds") if role in run}
    return {role: goldens.tensors(file)[name] for role, (file, _, name) in named.items()}


def _expand(entry: dict[str, Any]) -> Iterator[Case]:
    """Yield one case for each precision that a manifest entry has results in."""
    try:
        type_ = CaseType(entry["type"])
    except ValueError as error:
        raise GoldensError(f"manifest.json has a case of unknown type {entry['type']!r}") from error
    name = entry.get("name") or Path(entry["file"]).stem
    for dtype in [entry["dtype"]] if "dtype" in entry else _precisions(entry):
        yield Case(type_, name, dtype, entry)


def _precisions(entry: dict[str, Any]) -> list[str]:
    return [precision.value for precision in Precision if f"latents_{precision}" in entry["tolerance"]]
