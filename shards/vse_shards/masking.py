"""URLs without their secrets, wherever one is shown or kept."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

MASK = "***"  # in the place of a secret
_USER_INFO = re.compile(r"(\w://)[^/\s]+@")
# A password with a slash, and no port, drive of Windows or chain: whoever parses the URL ends the
# host at the slash, and may tell what is before it.
# Lengths have bounds, here and below: a stranger's text would take hours where each start is
# followed to its end.
_SLASHED = re.compile(
    r"(\w://)(?![A-Za-z]:[/\\])[^/\s:@\[]*:(?!:|\d{1,5}/)[^\s@/]*/[^\s@]{0,1000}@"
)
_SECRET = re.compile(
    r"([?&;#](?:[\w.-]{0,200}"
    r"(?:sig|token|secret|pass|pwd|credential|key|auth(?!or)|jwt|hmac|hdn|sas)[\w.-]{0,200}"
    r"|code|pw)=)[^&;\s#]+",
    re.I,
)


def masked(text: str) -> str:
    """Return a text without the passwords and signatures of the URLs in it."""
    if "://" not in text:
        return text
    for pattern in (_USER_INFO, _SLASHED):
        text = pattern.sub(rf"\1{MASK}@", text)
    return _SECRET.sub(rf"\1{MASK}", text)


def masked_about(url: str, text: str) -> str:
    """Return ``text``, a storage's words about ``url``, as `masked`, and without its user's part.

    Some take ``user:password@bucket`` for the name of a bucket, and repeat it without the scheme.
    """
    found = re.search(r"\w://([^/\s]+)@", url)
    for part in {found[1], unquote(found[1])} if found else ():
        text = text.replace(part, MASK)
    return masked(text)


def is_cut_short(url: str) -> bool:
    """Return whether the password of a URL holds a slash, where every reader ends it."""
    return _SLASHED.match(url, url.find("://") - 1) is not None


def masked_values(value: Any) -> Any:
    """Return JSON-like content with every text in it as `masked` gives it."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: masked_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked_values(inner) for inner in value]
    return value
