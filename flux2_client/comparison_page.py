"""Write the page of a comparison: pairs side by side, for people to judge without a network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flux2_client.comparison import IMAGES
from flux2_client.html_page import PAGE, escape, write_html
from flux2_client.similarity import DIFFERENCE_GAIN
from shared.plurals import counted

if TYPE_CHECKING:
    from flux2_client.comparison import Comparison, Pair, Rendering
    from flux2_client.way import Way

_STYLE: Final = """
table { border-collapse: collapse; }
th, td { padding: .3rem .8rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8884; }
section { margin: 2.5rem 0; }
section h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
.images { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .6rem; }
figure { margin: .6rem 0 0; }
figcaption, p { color: #777; }
"""


def write_page(comparison: Comparison, folder: Path) -> Path:
    """Write the page next to the folder of its images; return its path."""
    page = folder / PAGE
    title = f"A: {comparison.a.title} | B: {comparison.b.title}"
    write_html(page, _body(comparison), title=title, style=_STYLE)
    return page


def describe_psnr(value: float | None) -> str:
    """Return a PSNR with its unit, in words if it is no number."""
    if value is None:
        return "not measured"
    return "equal" if math.isinf(value) else f"{value:.1f} dB"


def describe_seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} s"


def _body(comparison: Comparison) -> Iterator[str]:
    yield "<h1>Comparison</h1>"
    yield from _summary(comparison)
    for pair in comparison.pairs:
        yield from _section(comparison, pair)


def _summary(comparison: Comparison) -> Iterator[str]:
    yield "<table><tr><th></th><th>settings</th><th>as rendered</th><th>images</th><th>denoising, median</th></tr>"
    for way in (comparison.a, comparison.b):
        found = comparison.renderings(way)
        ran = "<br>".join(escape(text) for text in dict.fromkeys(rendering.ran for rendering in found))
        yield (
            f"<tr><th>{way.label}</th><td>{escape(way.title)}</td><td>{ran}</td>"
            f"<td>{len(found)} of {len(comparison.pairs)}</td>"
            f"<td>{describe_seconds(comparison.median_denoise_s(way))}</td></tr>"
        )
    yield "</table>"
    psnr = comparison.psnr_db
    lowest = describe_psnr(psnr[0] if psnr else None)
    yield (
        f"<p>PSNR of {counted(len(psnr), 'pair', 'pairs')}: median {describe_psnr(comparison.median_psnr_db)}, lowest "
        f"{lowest}. It says how much the pixels differ, not which image is better: other noise levels may draw another "
        f"picture of the same prompt. Difference images are {DIFFERENCE_GAIN} times as bright as the difference.</p>"
    )


def _section(comparison: Comparison, pair: Pair) -> Iterator[str]:
    yield f"<section><h2>{pair.number}. {escape(pair.prompt) or '(empty prompt)'}</h2>"
    psnr = describe_psnr(pair.similarity.psnr_db if pair.similarity else None)
    yield f'<p>seed {pair.seed}, PSNR {psnr}</p><div class="images">'
    yield _figure(comparison.a, pair.a)
    yield _figure(comparison.b, pair.b)
    if pair.difference is not None:
        yield _image(pair.difference, "Difference")
    yield "</div></section>"


def _figure(way: Way, rendering: Rendering | None) -> str:
    if rendering is None:
        return f"<figure><figcaption>{way.label}: no image; it failed or was canceled</figcaption></figure>"
    return _image(rendering.file, f"{way.label}: {way.title}, {describe_seconds(rendering.denoise_s)}")


def _image(file: str, caption: str) -> str:
    address, text = escape(f"{IMAGES}/{file}"), escape(caption)
    return (
        f'<figure><a href="{address}"><img loading="lazy" src="{address}" alt="{text}"></a>'
        f"<figcaption>{text}</figcaption></figure>"
    )
