"""A source of which too much is unusable ends the build, and the same command works when mended."""

from __future__ import annotations

import json
import re

import pytest

from vse_shards.errors import SourceError
from vse_shards.threshold import RejectLimit


@pytest.mark.parametrize(
    ("text", "allowed"),
    [("", {100: 10, 5000: 50}), ("0", {5000: 0}), ("7", {100: 7, 5000: 7}),
     ("5%", {100: 5, 5000: 250}), ("0.1%", {5000: 5}), ("100%", {100: 100})],
)  # fmt: skip
def test_the_limit_is_a_number_or_a_share(text, allowed):
    limit = RejectLimit.parse(text) if text else RejectLimit()
    assert {read: limit.allowed(read) for read in allowed} == allowed


@pytest.mark.parametrize("text", ["-1", "1.5", "101%", "%", "many"])
def test_a_limit_that_is_none_is_refused(text):
    with pytest.raises(SourceError, match="write 50 or 5%"):
        RejectLimit.parse(text)


@pytest.fixture
def spoilt(write_rows, tools):
    """Fifty rows, of which one picture is good, eleven captions are empty, and 38 files HTML."""
    files = {f"{n}.jpg": b"<html>404</html>" for n in range(50)}
    files["0.jpg"] = tools.encoded(tools.picture(0))
    texts = ["" if 0 < n < 12 else f"w {n}" for n in range(50)]
    rows = [{"image": f"{n}.jpg", "captions": [text]} for n, text in enumerate(texts)]
    return write_rows(rows, files)


def test_too_many_rejects_end_the_build_with_each_reason(spoilt, tmp_path, command):
    out = tmp_path / "out"
    arguments = ["build", "--source", "jsonl", "--input", spoilt, "--out", out, "--workers", "1"]
    early = command(*arguments)
    assert early.returncode == 2
    assert re.search(
        r"captions\.jsonl: 22 of 61 rows cannot be used, 10 may be: 11 empty caption "
        r"\(captions\.jsonl line 2: caption 1 of 1, captions\.jsonl line 3, captions\.jsonl line "
        r"4, \.\.\.\); 11 no caption \(.*--max-rejects 22$",
        early.stderr.splitlines()[-1],
    )
    assert not list(out.glob("*.tar"))

    late = command(*arguments, "--max-rejects", "22")
    assert late.returncode == 2
    assert "60 of 61 rows cannot be used, 22 may be: 38 not an image (" in late.stderr
    assert not (out / "manifest.json").exists()

    told = re.search(r"--max-rejects \d+$", late.stderr.splitlines()[-1])[0].split()
    accepted = command(*arguments, *told, "--json")
    assert accepted.returncode == 0, accepted.stderr
    summary = json.loads(accepted.stdout)
    assert (summary["images"], summary["rejects"]["not an image"]) == (1, 38)
    assert summary["built"] == 0  # the shard was finished when the build ended


def test_rejects_that_were_accepted_by_name_do_not_count(write_rows, tmp_path, tools, command):
    rows = [{"image": f"{n}.jpg", "captions": [f"w {n}"]} for n in range(30)]
    path = write_rows(rows, {"0.jpg": tools.encoded(tools.picture(0))})
    arguments = ["build", "--source", "jsonl", "--input", path, "--out", tmp_path / "out"]
    result = command(*arguments, "--allow-missing", "--workers", "1", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["rejects"] == {"missing image": 29}


def test_a_failed_build_is_no_dataset_and_leaves_nothing_behind(
    write_rows, tmp_path, tools, command
):
    """The row is taken out as the message says, and the same command works."""
    files = {f"{n}.jpg": tools.encoded(tools.picture(n)) for n in range(6)}
    files["copy.jpg"] = files["0.jpg"]
    rows = [{"image": name, "captions": [f"w {name}"], "split": "train"} for name in files]
    rows[-1]["split"] = "val"
    out = tmp_path / "out"

    def run():
        path = write_rows(rows, files)
        arguments = ["--input", path, "--out", out, "--shard-samples", "2", "--workers", "1"]
        return command("build", "--source", "jsonl", *arguments)

    assert "pixel for pixel: " in run().stderr
    rows[:] = rows[1:3]
    assert "no rows" not in run().stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "manifest.json", "rejects.jsonl", "train-000000.idx", "train-000000.json",
        "train-000000.tar",
    ]  # fmt: skip


@pytest.mark.parametrize("inside", [True, False], ids=["output in input", "input in output"])
def test_input_and_output_do_not_lie_in_each_other(tmp_path, tools, command, inside):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(tools.encoded(tools.picture(0)))
    (folder / "a.txt").write_text("words")
    (tmp_path / "link").symlink_to(folder)
    out = tmp_path / "link/out" if inside else tmp_path
    result = command("build", "--source", "folder", "--input", folder, "--out", out)
    assert result.returncode == 2
    assert "lies in" in result.stderr.splitlines()[-1]
    assert "choose" in result.stderr.splitlines()[-1]
    assert sorted(path.name for path in folder.iterdir()) == ["a.jpg", "a.txt"]
