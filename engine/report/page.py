"""A page in one file: text by Jinja with everything escaped, charts by plotly inside the page, nothing fetched."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from terminal import spelt_out

_TEMPLATES = Path(__file__).parent / "templates"
#: Kept for text and tables when the rest of a page is shared out.
_TEXT_BYTES = 300_000


class MissingExtraError(ValueError):
    """A package of an extra is not installed."""


@cache
def _plotly() -> tuple[str, str]:
    """Plotly's script, compressed as base64, and the hash by which the page lets it run.

    Raises:
        MissingExtraError: Plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError("charts need plotly: pip install -e '.[report]'") from error
    script = get_plotlyjs()
    return base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode(), _hash(script)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def media_bytes(megabytes: float, charts: list[dict[str, Any]]) -> int:
    """What is left for pictures and sounds of a page of so many megabytes (10^6 bytes).

    Raises:
        ValueError: Nothing is.
        MissingExtraError: Plotly is not installed.
    """
    taken = len(_plotly()[0]) + len(_json(charts)) + _TEXT_BYTES
    left = int(megabytes * 1e6) - taken
    if left < 0:
        raise ValueError(
            f"the page takes {taken / 1e6:.1f} MB without pictures and sounds: give --megabytes more"
        )
    return left


def render(template: str, charts: list[dict[str, Any]], media: Mapping[str, str], **values: Any) -> bytes:
    """A page.

    Args:
        template: Its file in ``templates``, which extends ``base.html``.
        charts: What `engine.report.charts` makes; the template refers to them by number.
        media: ``data:`` URIs by name.
        values: What the template shows. All text of them is escaped.

    Raises:
        MissingExtraError: Plotly is not installed.
    """
    plotly, plotly_hash = _plotly()
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    page = environment.get_template(template).render(
        **values,
        policy=f"default-src 'none'; img-src data: blob:; media-src data:; style-src 'unsafe-inline'; "
        f"script-src {_hash(script)} {plotly_hash}",
        style=Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        plotly=plotly,
        data=Markup(_json({"charts": charts, "media": dict(media)})),
    )
    return page.encode()


def _shown(value: Any) -> Any:
    """Text of others, with what would turn its direction around spelt out; our own markup as it is."""
    return spelt_out(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _json(value: Any) -> str:
    """JSON that ends no script element."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
