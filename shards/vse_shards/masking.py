"""URLs without their secrets, wherever one is shown or kept."""

from __future__ import annotations

import re

_USER_INFO = re.compile(r"(\w://)[^/@\s]+@")
_SECRET = re.compile(
    r"([?&;][\w.-]*(?:sig|signature|token|secret|passw|pwd|credential|key)[\w.-]*=)[^&;\s#]+", re.I
)


def masked(text: str) -> str:
    """Return a text without the passwords and signatures of the URLs in it."""
    if "://" not in text:
        return text
    return _SECRET.sub(r"\1***", _USER_INFO.sub(r"\1***@", text))
