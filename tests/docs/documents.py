"""The documents of the repository: their links, headings, code and fenced blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import markdown

ROOT = Path(__file__).parents[2]
PATHS = sorted(
    str(path.relative_to(ROOT))
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / name / "README.md" for name in ("kernels", "shards")),
        *(ROOT / "docs").rglob("*.md"),
    )
)
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *``` *$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, "" where none is given, and its first line's number."""

    path: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.path}:{self.line}"


def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def blocks(path: str) -> list[Block]:
    text = text_of(path)
    return [
        Block(path, text.count("\n", 0, found.start(3)) + 1, found[2], found[3])
        for found in _FENCE.finditer(text)
    ]


def examples(path: str, language: str) -> list[Block]:
    return [block for block in blocks(path) if block.language == language]


@dataclass
class Page:
    """What a page of HTML refers to, and what can be referred to in it."""

    links: list[str]  # href and src
    anchors: set[str]  # id
    headings: list[str]
    code: list[str]  # inline code


def page_of(html: str) -> Page:
    reader = _Reader()
    reader.feed(html)
    return reader.page


def rendered(path: str) -> Page:
    return page_of(markdown.markdown(text_of(path), extensions=["tables", "pymdownx.superfences"]))


def code_host_anchors(page: Page) -> set[str]:
    """The anchors that GitHub and its like make from headings."""
    found: set[str] = set()
    for heading in page.headings:
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        repeated = sum(known == slug or known.startswith(f"{slug}-") for known in found)
        found.add(f"{slug}-{repeated}" if slug in found else slug)
    return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page([], set(), [], [])
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.page.links += [value for key in ("href", "src") if (value := given.get(key))]
        if anchor := given.get("id"):
            self.page.anchors.add(anchor)
        if re.fullmatch("h[1-6]", tag):
            self.page.headings.append("")
        if tag == "code" and "pre" not in self._open:
            self.page.code.append("")
        if tag not in ("img", "br", "hr", "link", "meta", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if any(re.fullmatch("h[1-6]", tag) for tag in self._open):
            self.page.headings[-1] += data
        if "code" in self._open and "pre" not in self._open:
            self.page.code[-1] += data
