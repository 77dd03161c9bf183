"""Every command of the documents runs as written; what cannot has a reason, and is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from commands import (
    APPS,
    Call,
    calls_in,
    calls_of,
    check,
    is_shell,
    reason_not_to_run,
    run_app,
    start,
    unused_forms,
)  # fmt: skip
from documents import PATHS, Block, blocks, examples

from vse_scale.config import Config
from vse_shards.build import BuildOptions, build
from vse_shards.sources.jsonl import JsonlSource

# "py" is Python that needs other packages, or goes on from a block before; tests of its own run it.
LANGUAGES = ("", "bash", "sh", "python", "py", "json", "yaml", "text")
WITH_CODE = [
    path for path in PATHS if any(is_shell(b) or b.language == "python" for b in blocks(path))
]


@pytest.mark.parametrize("path", PATHS)
def test_commands_name_what_exists(path: str, recorders: Path) -> None:
    for call in calls_in(path, recorders):
        check(call)
        assert call.program in APPS or reason_not_to_run(call), (
            f"{call.place}: `{call}` is not run by a test; add it to NOT_RUN of "
            "tests/docs/commands.py with the reason"
        )


def test_no_reason_is_left_over(recorders: Path) -> None:
    calls = [call for path in PATHS for call in calls_in(path, recorders)]
    assert len(calls) > 40
    assert unused_forms(calls) == []


def test_blocks_are_what_they_say() -> None:
    for path in PATHS:
        for block in blocks(path):
            assert block.language in LANGUAGES, f"{block.place}: {block.language}"
            if block.language in ("python", "py"):
                compile(block.text, block.place, "exec")
        for block in examples(path, "yaml"):
            # What a recipe may say; keys that do not exist are errors.
            required = {"run": {"dir": "runs/x"}}
            Config.parse({**required, **yaml.safe_load(block.text)}, origin=block.place)


def test_examples_of_captions_can_be_read(tmp_path: Path) -> None:
    for path in ("README.md", "docs/data.md"):
        (block,) = examples(path, "json")
        lines = [line.strip() for line in block.text.splitlines()]
        (tmp_path / "captions.jsonl").write_text("\n".join(lines))
        rows = list(JsonlSource(str(tmp_path / "captions.jsonl"), str(tmp_path)).rows())
        assert len(rows) == len(lines) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vse-scale evaluate --model M", "no command"),
        ("vse-scale eval --modle M", "No such option"),
        ("vse-scale eval --batch many", "valid integer"),
        ("vse-scale train --config launch/recipes/none.yaml", "none.yaml"),
        (
            "vse-scale train --config launch/recipes/small.yaml data.ptah=x",
            "did you mean data.path",
        ),
        ("deepspeed --hostfile h --no_shh launch/train.py", "2"),
        ("deepspeed --hostfile h launch/trian.py", "starts launch/trian.py"),
        ("sbatch --nodes 2 launch/slurm/none.sbatch runs/x r.yaml", "none.sbatch"),
        ("make dmeo", "the Makefile has no dmeo"),
        ("pytest tests/none.py", "does not exist"),
        ("python shards/benchmarks/build_speed.py --foto x", "has no --foto"),
        ("frobnicate --all", "is unknown to the tests. If it is a command, add"),
        ("train-000000.tar (if there are any)", "mark it as ```text"),
    ],
)
def test_a_wrong_command_is_named(text: str, said: str, recorders: Path) -> None:
    block = Block("docs/x.md", 7, "", text + "\n")
    with pytest.raises(AssertionError) as failed:
        check(calls_of(block, recorders)[0])
    assert "docs/x.md:7" in str(failed.value)
    assert said in str(failed.value)


def test_bash_reads_the_commands(recorders: Path) -> None:
    text = "for n in 1 2; do make x-$n  # a word\ndone\nX=1 tests/gpu/run.sh a\\\n 'b c' *.none\n"
    calls = calls_of(Block("x.md", 1, "", text), recorders)
    assert [call.arguments for call in calls] == [
        ("make", "x-1"), ("make", "x-2"), ("tests/gpu/run.sh", "a", "b c", "*.none"),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", WITH_CODE)
def test_commands_run_as_written(path: str, workplace: Path, recorders: Path) -> None:
    todo = [b for b in blocks(path) if is_shell(b) or b.language == "python"]
    if "--out data/mine" not in "".join(block.text for block in todo):
        build(JsonlSource("captions.jsonl", "."), "data/mine", BuildOptions())
    for block in todo:
        if block.language == "python":
            (workplace / "example.py").write_text(block.text)
            done = start(["example.py"], workplace)
            assert done.returncode == 0, f"{block.place}: {done.stderr[-3000:]}"
            continue
        for call in calls_of(block, recorders):
            if reason_not_to_run(call) is None:
                assert run(call, workplace) == 0, f"{call.place}: `{call}` failed"
    if path == "README.md":
        results = json.loads((workplace / "runs" / "mine" / "results.json").read_text())
        assert results["rsum"] > 0
        for name in (
            "runs/mine/report.html", "runs/mine/model/model.safetensors", "found.html",
            "compare.html", "models/m/README.md", "models/mine/text_encoder.onnx",
        ):  # fmt: skip
            assert (workplace / name).is_file(), name


def run(call: Call, workplace: Path) -> int:
    if call.arguments[1] == "train" and "--dry-run" not in call.arguments:
        done = start(["-m", "vse_scale.cli", *call.arguments[1:]], workplace)
        assert done.returncode == 0, f"{call.place}: `{call}`: {done.stderr[-3000:]}"
        return done.returncode
    return run_app(call)
