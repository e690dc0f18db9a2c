"""The list of settings: tables by section for the page, and the example file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from pydantic import BaseModel

from shared.settings import Settings
from tools.reference.markdown import code, paragraphs, table

_EXAMPLE_HEAD: Final = (
    "# Copy to .env and uncomment what you change. docs/reference/settings.md explains each setting.\n"
)
_OTHERS: Final = "Variables that other tools read too."
_TITLES: Final = {"Api": "API"}


class _Setting(NamedTuple):
    variable: str
    default: str
    meaning: str


def write_tables() -> str:
    """Return a table for each section, with the section's docstring above it."""
    parts = []
    others = []
    for section, info in Settings.model_fields.items():
        if isinstance(info.default, BaseModel):
            kind = type(info.default)
            title = kind.__name__.removesuffix("Settings")
            parts += [f"## {_TITLES.get(title, title)}\n", paragraphs(kind.__doc__ or "") + "\n"]
            parts.append(_table(_of_section(section, kind)))
        else:
            others.append(_Setting(str(info.validation_alias), "", info.description or ""))
    parts += ["## Other tools\n", _OTHERS + "\n", _table(others)]
    return "\n".join(parts)


def write_example() -> str:
    """Return `.env.example`: every setting with its default, commented out."""
    parts = [_EXAMPLE_HEAD]
    others = []
    for section, info in Settings.model_fields.items():
        if isinstance(info.default, BaseModel):
            kind = type(info.default)
            parts.append(f"# {paragraphs(kind.__doc__ or '')}\n" + "".join(map(_line, _of_section(section, kind))))
        else:
            others.append(_line(_Setting(str(info.validation_alias), "", info.description or "")))
    return "\n".join([*parts, f"# {_OTHERS}\n" + "".join(others)])


def _line(setting: _Setting) -> str:
    return f"# {setting.meaning}\n#{setting.variable}={setting.default}\n"


def _of_section(section: str, kind: type[BaseModel]) -> Iterator[_Setting]:
    for name, field in kind.model_fields.items():
        default = "" if field.default is None else str(field.default)
        yield _Setting(f"FLUX2_{section}_{name}".upper(), default, field.description or "")


def _table(settings: Iterator[_Setting] | list[_Setting]) -> str:
    rows = ((code(each.variable), code(each.default), each.meaning) for each in settings)
    return table(["variable", "default", "meaning"], rows)
