"""Write a page of results that needs no server: the images are in the file itself."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flux2_client.client import Image
from flux2_client.html_page import escape, write_html
from flux2_client.tables import describe_adapter

_STYLE: Final = """
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 16px; }
img { border-radius: 6px; }
figcaption { margin-top: 8px; overflow-wrap: anywhere; }
small { display: block; opacity: 0.75; }
"""


@dataclass(frozen=True)
class ResultFile:
    """An image of a job, and the file that has it."""

    image: Image
    file: Path


@dataclass(frozen=True)
class ResultGroup:
    """The images of one job; `title` says what it shows."""

    title: str
    results: Sequence[ResultFile]


def write_result_page(path: Path, groups: Sequence[ResultGroup], *, title: str) -> None:
    """Write the page; each image links to its own file, which is next to it."""
    body = [f"<h1>{escape(title)}</h1>", *map(_section, groups)]
    write_html(path, body, title=title, style=_STYLE)


def _section(group: ResultGroup) -> str:
    figures = "".join(_figure(result) for result in group.results)
    return f'<h2>{escape(group.title)}</h2>\n<div class="images">\n{figures}</div>'


def _figure(result: ResultFile) -> str:
    image, data = result.image, base64.b64encode(result.file.read_bytes()).decode()
    facts = "".join(f"<small>{escape(fact)}</small>" for fact in _facts(image))
    return (
        f'<figure><a href="{escape(result.file.name)}"><img src="data:image/{image.format};base64,{data}" '
        f'width="{image.width}" height="{image.height}" alt="{escape(image.prompt or "")}"></a>'
        f"<figcaption>{escape(image.prompt or '')}{facts}</figcaption></figure>\n"
    )


def _facts(image: Image) -> Iterator[str]:
    yield f"seed {image.seed}, {image.width}x{image.height}"
    for adapter in image.adapters:
        yield describe_adapter(adapter)
    yield ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in image.timings.items())
