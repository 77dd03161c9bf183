"""URLs without their secrets, wherever one is shown or kept."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"  # in the place of a secret
_USER_INFO = re.compile(r"(\w://)[^/@\s]+@")
_SECRET = re.compile(
    r"([?&;][\w.-]*(?:sig|signature|token|secret|passw|pwd|credential|key)[\w.-]*=)[^&;\s#]+", re.I
)


def masked(text: str) -> str:
    """Return a text without the passwords and signatures of the URLs in it."""
    if "://" not in text:
        return text
    return _SECRET.sub(rf"\1{MASK}", _USER_INFO.sub(rf"\1{MASK}@", text))


def masked_values(value: Any) -> Any:
    """Return JSON-like content with every text in it as `masked` gives it."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: masked_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked_values(inner) for inner in value]
    return value
