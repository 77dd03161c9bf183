"""HTML documents from a package's templates; one file that needs no network."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template


def document(
    package: str,
    template: str,
    title: str,
    *,
    style: str = "",
    script: str = "",
    reload_seconds: int | None = None,
    **parts: str,
) -> str:
    """Fill the body ``template`` of ``package`` with ``parts``, in a frame with its style.css.

    Args:
        package: the package of the template and its style.css, such as "vse_scale.report".
        template: the name of its file.
        title: plain text, escaped here.
        style: CSS to follow that of style.css.
        script: JavaScript for the end of the page.
        reload_seconds: after which a browser opens the page again; None: never.
        parts: HTML, by the names in the template.
    """
    folder = files(package)
    reload = f'<meta http-equiv="refresh" content="{reload_seconds}">\n' if reload_seconds else ""
    frame = (files("vse_scale.html") / "document.html").read_text("utf-8")
    return Template(frame).substitute(
        head=reload,
        title=escape(title),
        style=(folder / "style.css").read_text("utf-8") + style,
        body=Template((folder / template).read_text("utf-8")).substitute(parts),
        script=script,
    )
