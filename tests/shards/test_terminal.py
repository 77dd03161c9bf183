"""No value of others steers a terminal: each is written out in every line of `vse-shards`.

Names and texts that wrote to the clipboard, set titles or forged lines hurt users of precizer
(precizer/precizer#123), oans (martinus/oans#202) and openSUSE's osc (openSUSE/osc#1490).
"""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from seals import reseal

from vse_shards import cli
from vse_shards.terminal import printable, printable_lines, tell, tell_json

EVIL = {
    "clipboard": "\x1b]52;c;Y3VybA==\x07",
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H",
    "C1": "\x9b2J",
    "bidi": "\u202egpj.exe\u202c",
    "isolate": "\u2066x\u2069",
    "mark": "a\u200fb",
    "line": "x\nvse-shards: error: forged",
    "return": "secret\rshown",
    "separator": "a\u2028b",
    "delete": "a\x7fb",
    "null": "a\x00b",
}


# Each run of the commands takes seconds: all at once, and what forges a line.
TOGETHER = {"all": "".join(v for n, v in EVIL.items() if n not in ("line", "null"))}
TOGETHER |= {name: EVIL[name] for name in ("line", "null")}
DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def is_clean(text):
    """By Unicode's own classes, not by the pattern of the code."""
    import unicodedata

    return all(
        c == "\n"
        or (
            unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp")
            and unicodedata.bidirectional(c) not in DIRECTIONS
        )
        for c in text
    )


def writes_out(evil, text):
    """Whether the first letters are there as escapes; a line may leave out the middle."""
    written = evil.encode("unicode_escape").decode()[:15]
    return written in text.replace("\\\\", "\\")  # as within quotes


@pytest.mark.parametrize("name", EVIL)
def test_what_steers_is_written_out(name):
    shown = printable(EVIL[name])
    assert is_clean(shown)
    assert "\n" not in shown
    assert "\\" in shown


def test_what_people_write_is_left_as_it_is():
    for text in ("a cat", "naïve café", "猫が寝る", "שלום", "قطة", "🐈‍⬛ 👩🏽‍🚀", "C:\\x", "ไทย"):
        assert printable(text) == text
    assert printable_lines("a\nb\tc") == "a\nb\\tc"


def test_a_terminal_that_lacks_a_letter(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    tell("猫 é", file=stream)
    assert stream.buffer.getvalue() == b"\\u732b \xe9\n"
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    tell_json({"a\x7f": "\x1b\u202e"})
    assert is_clean(sys.stdout.getvalue())
    assert json.loads(sys.stdout.getvalue()) == {"a\x7f": "\x1b\u202e"}


@pytest.fixture
def said(capfd, monkeypatch):
    """Run a command in this process; return all that it printed and its exit code."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vse-shards", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        found = capfd.readouterr()
        assert is_clean(found.out + found.err), ascii(found.out + found.err)
        forged = [line for line in found.err.splitlines() if line.startswith("vse-shards: error: ")]
        assert len(forged) == (code != 0)
        return code, found.out + found.err

    return run


def write_rows(folder, rows):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        folder / "good.png"
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("name", TOGETHER)
def test_captions_ids_and_names_in_every_command(name, tmp_path, said):
    evil = TOGETHER[name]
    rows = [
        # A caption that holds NUL is a reject.
        {
            "image": "good.png",
            "caption": "a" if name == "null" else f"a {evil}",
            "image_id": f"1{evil}",
        },
        {"image": f"no{evil}.png", "caption": evil, "image_id": f"2{evil}"},
        {"image": f"../{evil}", "caption": evil},
        {"image": f"ftp://{evil}", "caption": evil},
        {"image": "good.png", "caption": 3, "image_id": evil, "split": evil},
    ]
    source = write_rows(tmp_path, rows)
    build = ["build", "--source", "jsonl", "--input", source, "--workers", "1"]
    refused = 0 if name == "null" else 2  # no path holds NUL: the row is malformed, not missing
    for expected, *options in (
        (refused, "strict"),
        (0, "dry", "--dry-run", "--allow-missing"),
        (2, "split", "--split", f"{evil}=train"),
        (2, "column", "--column", f"caption={evil}"),
    ):
        code, text = said(*build, "--out", tmp_path / options[0], *options[1:])
        assert code == expected, text
        assert writes_out(evil, text)
    code, _ = said(
        *build, "--out", tmp_path / "out", "--allow-missing", "--max-rejects", "9", "--json"
    )
    assert code == 0
    for command in ("info", "verify"):
        assert said(command, tmp_path / "out")[0] == 0
    assert said("preview", tmp_path / "out", "--out", tmp_path / "page.html")[0] == 0
    for command in (
        ["append", tmp_path / "out", "--source", "jsonl", "--input", source, "--workers", "1"],
        ["build", "--source", f"{evil}:x", "--input", source, "--out", tmp_path / "other"],
    ):
        code, text = said(*command)
        assert code == (refused if command[0] == "append" else 2), text
        assert writes_out(evil, text)


@pytest.mark.parametrize("name", ["all", "line"])
def test_names_of_files_and_manifests(name, tmp_path, said):
    evil = TOGETHER[name].replace("/", "")
    folder = tmp_path / f"in{evil}"
    folder.mkdir()
    code, text = said("info", folder)
    assert code == 2
    assert writes_out(evil, text)
    source = write_rows(folder, [{"image": "good.png", "caption": "a cat"}])
    out = tmp_path / f"out{evil}"
    code, text = said("build", "--source", "jsonl", "--input", source, "--out", out)
    assert code == 0
    assert writes_out(evil, text)
    (folder / f"x{evil}.jsonl").write_text("{")
    code, text = said("build", "--source", "jsonl", "--input", folder, "--out", tmp_path / "all")
    assert code == 0
    assert writes_out(evil, text)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["splits"][evil] = manifest["splits"].pop("train")
    (out / "manifest.json").write_text(json.dumps(manifest))
    reseal(out / "manifest.json")
    for command in (["info"], ["verify"], ["verify", "--json"]):
        code, text = said(command[0], out, *command[1:])
        assert code == 2
        assert "is no name of a split" in text
        assert writes_out(evil, text.partition("manifest.json")[2])
