"""Links of the documents lead somewhere, on a code host and in the site of `make docs`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe import findings, tab, too_wide
from documents import PATHS, ROOT, Page, code_host_anchors, page_of, rendered

# Types a text, and waits for the addresses of what is found.
_SEARCH = """(async () => {
  const input = document.querySelector(".md-search__input");
  input.focus();
  input.value = "%s";
  input.dispatchEvent(new Event("keyup"));
  for (let tries = 0; tries < 200; tries++) {
    const links = [...document.querySelectorAll("a.md-search-result__link")];
    if (links.length) return links.map(link => link.href).join(" ");
    await new Promise(resolve => setTimeout(resolve, 100));
  }
  return "";
})()"""


@pytest.mark.parametrize("path", PATHS)
def test_links_lead_to_files_and_headings_of_the_repository(path: str) -> None:
    page = rendered(path)
    for link in page.links:
        url = urlsplit(link)
        if url.scheme:
            continue
        assert not url.path.startswith("/"), f"{path}: {link} is absolute"
        target = Path(os.path.normpath(ROOT / Path(path).parent / url.path)) if url.path else None
        assert target is None or target.exists(), f"{path}: {link} leads nowhere"
        if url.fragment:
            there = page if target is None else rendered(str(target.relative_to(ROOT)))
            assert url.fragment in code_host_anchors(there), f"{path}: {link}: no such heading"


def test_a_code_host_numbers_headings_that_repeat() -> None:
    html = "<h1>A b</h1><h2>What `x`, and <code>y_z</code>?</h2><h2>A b</h2>"
    assert code_host_anchors(page_of(html)) == {"a-b", "what-x-and-y_z", "a-b-1"}


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(site)],
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_is_whole_and_needs_no_network(site: Path) -> None:
    pages = {path: page_of(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 15
    for path, page in pages.items():
        if path.name != "404.html":  # written for the root of a server
            _check_page(site, path, page, pages)
    reference = (site / "reference" / "vse_scale.html").read_text(encoding="utf-8")
    # A docstring's sections are laid out, and the code's own markup is not left over.
    assert "encode_captions" in reference
    assert "Raises:" in reference
    listed = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for words in ("vse-scale serve", "vse-shards build", "--resume-with", "--max-rejects"):
        assert words in listed
    for path in site.glob("reference/*.html"):
        assert ":class:`" not in path.read_text(encoding="utf-8"), path


@pytest.mark.slow
def test_every_page_fits_a_phone_and_axe_finds_nothing_on_one_of_each_kind(
    site: Path, tmp_path: Path
) -> None:
    assert too_wide(tmp_path / "all", [page.as_uri() for page in site.rglob("*.html")]) == []
    kinds = (
        "index.html",
        "recipes.html",
        "reference/configuration.html",
        "reference/vse_scale.html",
    )
    assert findings(tmp_path / "some", [(site / kind).as_uri() for kind in kinds]) == []


@pytest.mark.slow
def test_the_search_of_the_site_finds_pages_without_a_server(site: Path, tmp_path: Path) -> None:
    with tab(tmp_path / "profile") as page:
        page.open((site / "index.html").as_uri())
        found = page.value(_SEARCH % "mined indices")
    assert "07-shared-choices.html" in found


def _check_page(site: Path, path: Path, page: Page, pages: dict[Path, Page]) -> None:
    html = path.read_text(encoding="utf-8")
    for tag in ("<script src=", "<img src=", '<link rel="stylesheet" href='):
        assert f'{tag}"http' not in html.replace(" alt=", " "), f"{path}: {tag} from the network"
    for link in page.links:
        url = urlsplit(link)
        if url.scheme or link == "#":
            continue
        target = Path(os.path.normpath(path.parent / unquote(url.path))) if url.path else path
        assert target.is_file(), f"{path.relative_to(site)}: {link} is not there"
        if url.fragment and target in pages:
            assert unquote(url.fragment) in pages[target].anchors, (
                f"{path.relative_to(site)}: {link}: no such anchor"
            )


@pytest.mark.slow
def test_broken_links_fail_the_build(tmp_path: Path) -> None:
    for entry in ROOT.iterdir():
        if entry.name not in ("docs", ".git"):
            (tmp_path / entry.name).symlink_to(entry)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    broken = ("no-such-page.md", "data.md#no-such-heading", "../launch/no_such_file")
    with (tmp_path / "docs" / "training.md").open("a", encoding="utf-8") as file:
        file.write("".join(f"\n[x]({link})\n" for link in broken))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "built")
    assert done.returncode != 0
    for link in broken:
        assert re.search(rf"'training.md' contains an? .*link '{link}'", done.stderr), done.stderr
