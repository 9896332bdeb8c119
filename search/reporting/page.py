"""The page itself: one HTML file with its data, style, script and plotly.js, which asks the network for nothing.

What users named (layers, tasks, runs) reaches the page in two ways only: through Jinja's escaping, and as JSON in which
no character can end the element around it. The page's own policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from search.errors import UserError
from search.report import short_count

_PARTS = "search.reporting"
#: In this order, in one function of their own: `start` uses what the others define.
_SCRIPTS = ("base.js", "front.js", "trial.js", "story.js", "start.js")


def render(content: Mapping[str, Any]) -> str:
    """The whole page for what `report_content` gathered. Raises `UserError` where plotly or Jinja is not installed."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise UserError("the report needs jinja2: pip install jinja2") from None
    environment = Environment(
        loader=PackageLoader("search", "reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"count": short_count, "figure": figure, "percent": percent}
    library, script = plotly_script(), _script()
    return environment.get_template("page.html").render(
        content=content,
        complete=[trial for trial in content["trials"] if trial["status"] == "complete"],
        data=safe_json(content),
        style=_part("page.css"),
        library=library,
        script=script,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"script-src {_hash(library)} {_hash(script)}; base-uri 'none'; form-action 'none'",
    )


@cache
def plotly_script() -> str:
    """plotly.min.js as the Python package ships it. Raises `UserError` where that is not installed."""
    try:
        script = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    except (ModuleNotFoundError, OSError):
        raise UserError("the report needs plotly: pip install plotly") from None
    # No text of the library ends its element; should one ever, the page would break instead of the reader.
    return script.replace("</script", "<\\/script")


def safe_json(content: Mapping[str, Any]) -> str:
    """JSON that can stand in a script element: in no text of it does HTML, or an old JavaScript, see an end."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def figure(value: float | None, digits: int = 4) -> str:
    """`0.06401`; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:#.{digits}g}".rstrip(".")


def percent(value: float | None) -> str:
    """`99.33 %` of 0.9933; a dash for what is not known."""
    return "–" if value is None or not math.isfinite(value) else f"{100.0 * value:.2f} %"


def _part(name: str) -> str:
    return (resources.files(_PARTS) / name).read_text(encoding="utf-8")


def _script() -> str:
    """The page's own script."""
    return "\n".join(['"use strict";', "(function () {", *map(_part, _SCRIPTS), "})();", ""])


def _hash(script: str) -> str:
    """A script as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
