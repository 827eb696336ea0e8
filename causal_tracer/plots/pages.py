"""Standalone HTML pages: self-contained, with Plotly's script inside, so that they open offline."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

LEAST_WIDTH = "least_width"
"""The key in a figure's `layout.meta` for its minimum width in pixels; below it the texts in cells would overlap."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .8rem .3rem 0; text-align: left;
         font-variant-numeric: tabular-nums; }
dl { display: flex; flex-wrap: wrap; gap: 0 2rem; } dt { color: #555; } dd { margin: 0; }
pre { background: #f4f4f4; padding: 1rem; overflow-x: auto; font-size: .85rem; } figure { margin: 1rem 0; }
.wide { overflow-x: auto; }
figcaption { color: #555; font-size: .9rem; }
"""


def figure_html(figure: go.Figure) -> str:
    """Return a figure as HTML for a `standalone_page`. It scrolls if the page is narrower than its `LEAST_WIDTH`."""
    drawn: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    width = (figure.layout.meta or {}).get(LEAST_WIDTH)
    return drawn if width is None else f'<div class="wide"><div style="min-width:{int(width)}px">{drawn}</div></div>'


def table_html(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of plain texts as HTML for a `standalone_page`."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    # A table that is wider than the page scrolls, and tabindex lets the keyboard do it.
    return f'<div class="ct-scroll" tabindex="0" role="region" aria-label="Table">{table}</div>'


def standalone_page(title: str, body: str) -> str:
    """Return a complete HTML page.

    Args:
        title: The page's title, as plain text.
        body: The HTML of the body, which can contain results of `figure_html` and `table_html`.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head>\n"
        f"<body>{body}</body></html>\n"
    )
