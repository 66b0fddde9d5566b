"""Self-contained HTML pages: skeleton, tables, pictures. No external request, light and dark."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .errors import require

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 }
td, th { padding: .2rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #8886 }
td.text, th.text { text-align: left } img { max-width: 100%; display: block; margin: .5rem 0;
background: #fff } .note { opacity: .75 } .scroll { overflow-x: auto }
"""


def page(title: str, about: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return a page.

    Parameters
    ----------
    title, about : str
        Text; escaped here.
    sections : iterable of (heading, HTML)
    """
    parts = "\n".join(f"<h2>{html.escape(head)}</h2>{body}" for head, body in sections)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n{paragraph(about, note=True)}\n{parts}\n</html>\n"
    )


def paragraph(text: str, note: bool = False) -> str:
    """Return a paragraph of text; escaped here."""
    return f'<p class="note">{html.escape(text)}</p>' if note else f"<p>{html.escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], text: Sequence[int] = ()) -> str:
    """Return a table; numbers get thousands separators, columns `text` are set to the left."""

    def cell(tag: str, k: int, value: object) -> str:
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        kind = ' class="text"' if k in text else ""
        return f"<{tag}{kind}>{html.escape(shown)}</{tag}>"

    lines = [("th", head), *(("td", row) for row in rows)]
    body = "".join(
        f"<tr>{''.join(cell(tag, k, value) for k, value in enumerate(line))}</tr>"
        for tag, line in lines
    )
    return f'<div class="scroll"><table>{body}</table></div>'


def pyplot() -> Any:
    """Return matplotlib.pyplot, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")
    return require("matplotlib.pyplot", "data")


def picture(figure: Any, alt: str) -> str:
    """Return a figure as an embedded picture, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    pyplot().close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def glass_brain(axes: Any, image: Any, title: str, **kwargs: Any) -> Any:
    """Draw the strongest fifth of a map's cells on a glass brain; returns nilearn's display."""
    values = np.abs(image.get_fdata())
    values = values[values > 0] if values.any() else values
    options = {
        "display_mode": "lyrz",
        "colorbar": True,
        "threshold": float(np.quantile(values, 0.8)),
        "vmax": max(float(np.quantile(values, 0.9995)), 1e-6),
    }
    plotting = require("nilearn.plotting", "data")
    return plotting.plot_glass_brain(image, axes=axes, title=title, **{**options, **kwargs})
