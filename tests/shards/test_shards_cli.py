from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest


def refused(result, *words):
    """One line on stderr beside the progress, exit code 2, no traceback."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "error:" in line]
    for word in words:
        assert word in line
    return True


def test_neither_torch_nor_the_trainer_is_imported():
    code = (
        "import sys, vse_shards.cli, vse_shards.verify, vse_shards.demo;"
        "names = ('torch', 'deepspeed', 'vse_scale', 'transformers');"
        "print([name for name in names if name in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert output.stdout == "[]\n", output.stderr


def test_all_commands_say_the_same_in_json(small_source, tmp_path, command):
    out = tmp_path / "out"
    built = command(
        "build", "--source", "jsonl", "--input", small_source(12), "--out", out, "--json"
    )
    checked = command("verify", out, "--deep", "--json")
    told = command("info", out, "--json")
    shown = command("preview", out, "--out", tmp_path / "page.html", "--samples", 3, "--json")

    assert json.loads(built.stdout)["images"] == 12
    assert json.loads(checked.stdout) == {"folder": str(out), "ok": True, "problems": []}
    content = json.loads(told.stdout)
    assert content["splits"]["train"]["images"] + content["splits"]["val"]["images"] == 12
    assert content["splits"]["train"]["width"] == [40] * 5
    assert content["fingerprint"] == json.loads(built.stdout)["fingerprint"]
    assert {row["split"] for row in json.loads(shown.stdout)["samples"]} <= {"train", "val"}
    assert len(json.loads(shown.stdout)["samples"]) == 3
    assert (tmp_path / "page.html").exists()


def test_verify_of_a_damaged_tar_names_it_and_leaves_with_2(small_source, tmp_path, command):
    out = tmp_path / "out"
    command("build", "--source", "jsonl", "--input", small_source(6), "--out", out)
    tar = out / "train-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    result = command("verify", out)

    assert refused(result, "1 problem;")
    assert "train-000000.tar: has sha256" in result.stderr


def test_an_input_that_is_not_there(tmp_path, command):
    result = command("build", "--source", "jsonl", "--input", "/no/such", "--out", tmp_path / "o")

    assert refused(result, "/no/such: no such file")


def test_a_folder_instead_of_a_file(tmp_path, command):
    result = command("build", "--source", "jsonl", "--input", tmp_path, "--out", tmp_path / "o")

    assert refused(result, "is not a file")


def test_an_empty_source(tmp_path, command):
    (tmp_path / "none.jsonl").write_text("\n")
    result = command(
        "build", "--source", "jsonl", "--input", tmp_path / "none.jsonl", "--out", tmp_path / "o"
    )

    assert refused(result, "none.jsonl: is empty")


def test_missing_images_are_counted_and_the_first_three_named(small_source, tmp_path, command):
    source = small_source(9)
    for number in range(4):
        (tmp_path / f"source/images/{number:04d}.jpg").unlink()
    arguments = ["build", "--source", "jsonl", "--input", source, "--out", tmp_path / "o"]
    arguments += ["--images", tmp_path / "source/images"]
    result = command(*arguments)

    assert refused(result, "4 of 9 images are missing: 0000.jpg, 0001.jpg, 0002.jpg ...;")

    allowed = command(*arguments, "--allow-missing", "--json")
    assert json.loads(allowed.stdout)["rejects"] == {"missing image": 4}


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "--source", "tape", "--input", "x", "--out", "y"],
        ["build", "--quality", "0", "--source", "jsonl", "--input", "x", "--out", "y"],
        ["bild"],
        ["verify"],
    ],
)
def test_a_wrong_command_line_leaves_with_2(command, arguments):
    result = command(*arguments)

    assert result.returncode == 2
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["verify", "info"])
def test_no_such_dataset(tmp_path, command, name):
    assert refused(command(name, tmp_path / "none"), "no such folder")


def test_debug_shows_the_traceback(tmp_path, command):
    result = command("info", tmp_path / "none", "--debug")

    assert "Traceback" in result.stderr
    assert result.returncode != 0


def test_contradicting_splits(small_source, tmp_path, command):
    result = command(
        "build", "--source", "jsonl", "--input", small_source(5), "--out", tmp_path / "o",
        "--split", "a=train", "--split", "b=train",
    )  # fmt: skip

    assert refused(result, "maps 'train' to both 'a' and 'b'")


def test_the_version_is_that_of_the_distribution(command):
    result = command("--version")

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"vse-shards {version('vse-scale')}\n"


def test_a_dry_run_shows_the_first_rows_and_writes_nothing(write_rows, tmp_path, tools, command):
    files = {f"{n}.jpg": tools.encoded(tools.picture(n)) for n in range(12)}
    files["0.jpg"] = b"<html>"
    rows = [
        {"image": name, "captions": [f"w {name}"], "split": "val" if n > 9 else "train"}
        for n, name in enumerate(files)
    ]
    arguments = ["build", "--source", "jsonl", "--input", write_rows(rows, files)]
    arguments += ["--out", tmp_path / "out", "--dry-run"]
    result = command(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["read"], told["splits"]) == (12, {"train": 10, "val": 2})
    assert [row["image"] for row in told["rows"]] == [
        "0.jpg", "1.jpg", "2.jpg", "10.jpg", "11.jpg"
    ]  # fmt: skip
    assert told["rows"][0]["stored"].startswith("rejected: not an image")
    assert told["rows"][1]["stored"] == "40 x 32 pixels, unchanged"
    assert told["rows"][1]["captions"] == ["w 1.jpg"]
    few = command(*arguments, "--limit", "1")
    assert "the first 1 row: train 1 image" in few.stderr
    assert not (tmp_path / "out").exists()


def test_limit_reads_the_first_rows_only(small_source, tmp_path, command):
    arguments = ["build", "--source", "jsonl", "--input", small_source(20), "--out", tmp_path / "o"]
    result = command(*arguments, "--limit", "7", "--workers", "1", "--json")
    assert json.loads(result.stdout)["images"] == 7
