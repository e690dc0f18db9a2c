"""One of the two ways in which `flux2 compare` renders the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from flux2_client.composition import parse_lora, parse_sigmas

_PROMPT_FIELDS: Final[Mapping[str, Callable[[str], Any]]] = {
    "sample_steps": int,
    "sigmas": parse_sigmas,
    "guidance_scale": float,
    "neg": str,
}
_REQUEST_FIELDS: Final = ("model", "preset", "engine", "adapter_mode")
_LORA: Final = "lora"
# A way with one of the first gets nothing of the second from the prompts: otherwise both ways might render the same.
_REPLACED: Final[Mapping[str, frozenset[str]]] = {
    "sample_steps": frozenset({"sigmas"}),
    "sigmas": frozenset({"sample_steps"}),
    "preset": frozenset({"sample_steps", "sigmas", "guidance_scale"}),
}


@dataclass(frozen=True)
class Way:
    """What one way changes in the request that both share.

    Attributes:
        label: `A` or `B`.
        settings: as they were given, `NAME=VALUE`.
        prompt_fields: fields that each prompt gets, whatever it has itself.
        request_fields: fields of the request itself.
        loras: adapters after those of both.
    """

    label: str
    settings: tuple[str, ...]
    prompt_fields: Mapping[str, Any]
    request_fields: Mapping[str, Any]
    loras: tuple[Mapping[str, Any], ...]

    @classmethod
    def parse(cls, label: str, settings: Sequence[str]) -> Self:
        """Read the settings of a way.

        Raises:
            ValueError: a setting is unknown, given twice or has no such value.
        """
        prompt_fields: dict[str, Any] = {}
        request_fields: dict[str, Any] = {}
        loras = []
        for setting in settings:
            name, equals, value = setting.partition("=")
            if not equals or name not in (*_PROMPT_FIELDS, *_REQUEST_FIELDS, _LORA):
                known = ", ".join((*_PROMPT_FIELDS, *_REQUEST_FIELDS, _LORA))
                raise ValueError(f"{setting!r} is no setting; write NAME=VALUE with one of: {known}")
            if name in prompt_fields or name in request_fields:
                raise ValueError(f"{name} is given twice for {label}; leave one of the two out")
            if name == _LORA:
                loras.append(parse_lora(value))
            elif name in _REQUEST_FIELDS:
                request_fields[name] = value
            else:
                prompt_fields[name] = _parse(name, value)
        return cls(label, tuple(settings), prompt_fields, request_fields, tuple(loras))

    @property
    def title(self) -> str:
        return ", ".join(self.settings) or "the request as it is"

    def apply(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request that renders this way."""
        given = {*self.prompt_fields, *self.request_fields}
        replaced = frozenset[str]().union(*(fields for name, fields in _REPLACED.items() if name in given))
        prompts = [
            {**{name: value for name, value in prompt.items() if name not in replaced}, **self.prompt_fields}
            for prompt in request["prompts"]
        ]
        return {**request, **self.request_fields, "prompts": prompts, "loras": [*request["loras"], *self.loras]}


def _parse(name: str, value: str) -> Any:
    try:
        return _PROMPT_FIELDS[name](value)
    except ValueError as error:
        raise ValueError(f"{name}={value} has no such value: {error}") from error
