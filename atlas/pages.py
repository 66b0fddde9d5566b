"""Self-contained HTML pages: tables, bars as SVG, nilearn pictures embedded; dark and light.

Text is escaped where it enters a page; only what this module made itself is `Html`.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .errors import require

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #5b636e; --line: #d5d9df; --back: #fff;
  --bar: #2f6db5 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #9aa3af; --line: #383e47;
  --back: #15181c; --bar: #6aa5ea } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--back) }
h2 { margin: 2.5rem 0 .5rem; padding-bottom: .2rem; border-bottom: 2px solid var(--line) }
h3 { margin: 1.5rem 0 .3rem } p { margin: .5rem 0; max-width: 60rem }
table { border-collapse: collapse; font-size: .9rem }
td, th { padding: .2rem .7rem; text-align: left; vertical-align: top }
th { color: var(--soft); font-weight: 600 } .n { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums }
tr { border-bottom: 1px solid var(--line) } tr.group { color: var(--soft) }
tr.group td { padding-top: .8rem; font-weight: 600 }
img { max-width: 100%; display: block; margin: .5rem 0; background: #fff; border-radius: 4px }
svg { max-width: 100%; display: block } svg rect { fill: var(--bar) }
svg line { stroke: var(--line) } svg text { fill: var(--soft); font: 11px system-ui, sans-serif }
.bar { display: block; height: .8rem; margin-top: .35rem; background: var(--bar) }
.note { color: var(--soft) } .wide { overflow-x: auto } code { overflow-wrap: anywhere }
.box { max-height: 21rem; overflow: auto; border: 1px solid var(--line); margin: .5rem 0 }
.box th { position: sticky; top: 0; background: var(--back) }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr)); gap: 0 2rem }
@media print { .box { max-height: none } }
"""


class Html(str):
    """Text that is HTML already and is not escaped again."""


class Number(str):
    """Text of a number: a table cell on the right."""


def escape(text: object) -> Html:
    """Escape text from outside; what is `Html` stays."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def page(title: str, *body: Html) -> str:
    """Return a whole page that asks for nothing from outside."""
    title = escape(title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def heading(text: str, level: int = 2) -> Html:
    """Return a heading."""
    return Html(f"<h{level}>{escape(text)}</h{level}>")


def paragraph(text: object, note: bool = False) -> Html:
    """Return a paragraph; a note is set back."""
    return Html(f"<p{' class=note' if note else ''}>{escape(text)}</p>")


def join(parts: Iterable[Html]) -> Html:
    """Put pieces one after another."""
    return Html("".join(parts))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Html:
    """Return a table; integers and `Number` stand on the right, a row of one cell is a heading."""
    numbers = [False] * len(head)
    body = []
    for row in rows:
        if len(row) == 1:
            cell = f"<td colspan={len(head)}>{escape(row[0])}</td>"
            body.append(f"<tr class=group>{cell}</tr>")
            continue
        for k, value in enumerate(row):
            numbers[k] |= isinstance(value, int | Number)
        body.append(f"<tr>{''.join(map(_cell, row))}</tr>")
    top = "".join(f"<th{' class=n' if n else ''}>{escape(t)}</th>" for t, n in zip(head, numbers))
    return Html(f"<div class=wide><table><tr>{top}</tr>{''.join(body)}</table></div>")


def _cell(value: object) -> str:
    if isinstance(value, int):
        value = Number(f"{value:,}")
    return f"<td{' class=n' if isinstance(value, Number) else ''}>{escape(value)}</td>"


def box(content: Html) -> Html:
    """Return content that scrolls: long lists."""
    return Html(f'<div class=box tabindex="0">{content}</div>')


def side_by_side(*parts: Html) -> Html:
    """Return pieces beside one another where the window is wide enough."""
    return Html(f"<div class=side>{''.join(f'<div>{part}</div>' for part in parts)}</div>")


def share_bar(share: float) -> Html:
    """Return a bar whose length is a share of its cell."""
    return Html(f'<span class=bar style="width:{100 * share:.2f}%"></span>')


def bars(
    counts: Sequence[float],
    names: Sequence[str],
    what: str,
    ticks: Sequence[tuple[float, str]] = (),
    size: tuple[int, int] = (720, 160),
) -> Html:
    """Draw bars as SVG.

    Parameters
    ----------
    counts : sequence of float
    names : sequence of str
        Of each bar, shown where the pointer rests.
    what : str
        What is shown, for those who cannot see it.
    ticks : sequence of (position, text)
        Below; position k is the left edge of bar k.
    size : (width, height)
    """
    width, height = size
    floor, top = height - 16, max(max(counts, default=0), 1e-12)
    step = width / max(len(counts), 1)
    parts = []
    for k, (count, name) in enumerate(zip(counts, names)):
        tall = max((floor - 2) * count / top, 1.0 if count else 0.0)  # one study is seen, too
        parts.append(
            f'<rect x="{k * step:.1f}" y="{floor - tall:.1f}" width="{max(step - 1, 1):.1f}" '
            f'height="{tall:.1f}"><title>{escape(name)}</title></rect>'
        )
    parts.append(f'<line x1="0" x2="{width}" y1="{floor}" y2="{floor}"/>')
    for at, text in ticks:
        x = at * step
        anchor = "start" if x < 15 else "end" if x > width - 15 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{height - 3}" text-anchor="{anchor}">{text}</text>')
    return Html(
        f'<svg role="img" aria-label="{escape(what)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{"".join(parts)}</svg>'
    )


def pyplot() -> Any:
    """Return matplotlib.pyplot, which draws without a screen."""
    require("matplotlib", "data").use("Agg")
    return require("matplotlib.pyplot", "data")


def picture(figure: Any, alt: str) -> Html:
    """Embed a matplotlib figure and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    pyplot().close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Html(f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">')


def strongest(image: Any, share: float = 0.2) -> dict[str, float]:
    """Return nilearn's threshold and vmax that show the strongest share of a map's cells."""
    values = np.abs(image.get_fdata())
    values = values[values > 0] if values.any() else values
    return {
        "threshold": float(np.quantile(values, 1 - share)),
        "vmax": max(float(np.quantile(values, 0.9995)), 1e-6),
    }


def glass(axes: Any, image: Any, title: str | None = None, **kwargs: Any) -> Any:
    """Draw the strongest fifth of a map's cells on a glass brain; returns nilearn's display."""
    plot: Callable[..., Any] = require("nilearn.plotting", "data").plot_glass_brain
    settings = {"display_mode": "lyrz", "colorbar": True, **strongest(image), **kwargs}
    return plot(image, axes=axes, title=title, **settings)
