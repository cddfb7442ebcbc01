"""Names that came from elsewhere, on their way into a path."""

from __future__ import annotations

import re


def safe_name(name: object) -> str:
    """The name of one folder, made of what a job or a server says: "../../escaped" becomes "escaped".

    What is a plain name already stays as it is.
    """
    plain = re.sub(r"[^A-Za-z0-9._@-]+", "_", str(name))[:100].lstrip("._-")
    return plain or "unnamed"
