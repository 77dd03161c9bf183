"""Malformed files that were tracebacks or hangs, one by one: exit code 2 and one line."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from corpus import TARGETS, make_corpus
from sandbox import run
from seals import reseal

DEEP = "[" * 100_000
HUGE = 10**4000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bulk")
    make_corpus(folder, Path(__file__).parents[1] / "small.yaml")
    return folder


def text(value: str | bytes) -> Callable[[Path], None]:
    data = value.encode() if isinstance(value, str) else value
    return lambda path: path.write_bytes(data)


def setting(dotted: str, value: Any) -> Callable[[Path], None]:
    """Set one value in a JSON file, or in the first line of JSON lines."""

    def change(path: Path) -> None:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        content = inner = json.loads(lines[0])
        *parents, last = dotted.split("/")
        for key in parents:
            inner = inner[int(key) if key.isdigit() else key]
        inner[int(last) if isinstance(inner, list) else last] = value
        path.write_text("\n".join([json.dumps(content), *lines[1:]]) + "\n")

    return change


def in_yaml(dotted: str, value: Any) -> Callable[[Path], None]:
    """Set one value in a YAML file."""

    def change(path: Path) -> None:
        content = inner = yaml.safe_load(path.read_text())
        *parents, last = dotted.split("/")
        for key in parents:
            inner = inner[key]
        inner[last] = value
        path.write_text(yaml.safe_dump(content))

    return change


def first_number(value: str) -> Callable[[Path], None]:
    """Set the first offset of DALI's index of a tar."""

    def change(path: Path) -> None:
        head, line, *rest = path.read_text().split("\n")
        extension, _, others = line.split(" ", 2)
        path.write_text("\n".join([head, f"{extension} {value} {others}", *rest]))

    return change


def array(values: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, np.array(values))


def weights(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with torch.serialization.safe_globals([__import__("argparse").Namespace]):
            loaded = torch.load(path, weights_only=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of quantized and nested tensors
            torch.save(change(loaded), path)

    return write


def first_tensor(value: Any) -> Callable[[Path], None]:
    def change(loaded: Any) -> Any:
        part = loaded["model"][0]
        part[next(iter(part))] = value
        return loaded

    return weights(change)


def fifo(path: Path) -> None:
    import os

    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


MANIFEST, INDEX = "data/manifest.json", "data/train-000000.idx"
RECORD = "data/train-000000.json"
ECCV, CXC = "eccv/eccv_image_to_caption.json", "cxc/sits_val.csv"
STATE = "run/checkpoints/step-00000005/state.json"
HEAD = "caption,image,agg_score\n"
SHARD = "splits/train/shards/0"
CASES: list[tuple[str, str, str, Callable[[Path], None]]] = [
    # JSON that is nested for ever, no object, not UTF-8, a pipe or a device
    *(
        (f"{what} of {target}", target, file, change)
        for what, change in {
            "depth": text(DEEP), "a number": text("3"), "latin-1": text(b'{"a": "\xe9"}'),
            "half a pair": text('{"\\ud800": 1}'), "a pipe": fifo, "a device": device,
        }.items()
        for target, file in {
            "info": MANIFEST, "verify": MANIFEST, "preview": MANIFEST, "eval": "model/config.json",
            "export": "model/config.json", "search": "index/index.json",
            "eval saved": "index/captions.jsonl", "eval eccv": "eccv/eccv_image_to_caption.json",
            "report": "run/results.json", "train": "run/config.yaml",
            "checkpoint": "run/checkpoints/step-00000005/files.json",
        }.items()
    ),
    # Manifests
    *(
        (f"{key} of a shard: {str(value)[:12]!r}",
            "info", MANIFEST, setting(f"{SHARD}/{key}", value)
        )
        for key, value in (
            ("name", "a\0.tar"), ("name", "../x.tar"), ("name", 3), ("samples", -1),
            ("samples", HUGE), ("bytes", float("inf")), ("bytes", float("nan")), ("bytes", -5),
            ("pairs", 2**70), ("captions", [[1]]), ("captions", [[HUGE, HUGE]]), ("sha256", None),
            ("captions", [["x", "y"]]), ("captions", 3),
        )
    ),
    ("splits as a list", "info", MANIFEST, setting("splits", [])),
    ("a split of NUL", "info", MANIFEST, setting("splits/\0", {"shards": []})),
    # Manifests that agree with themselves, and not with the files
    *(
        (f"{key} of a sealed shard: {str(value)[:12]!r}, {target}", target, MANIFEST,
         setting(f"{SHARD}/{key}", value))
        for target in ("verify", "append", "merge", "eval")
        for key, value in (
            ("name", "other.tar"), ("name", "x\u202e.tar"), ("bytes", 2**52), ("index_sha256", ""),
        )
    ),
    *(
        (f"{key} = {str(value)[:9]!r}, sealed", "append", MANIFEST, setting(key, value))
        for key, value in (
            ("rejects", 2**62), ("rejects", -1), ("rejects_sha256", "x" * 9999), ("build", {}),
            ("build/shard_samples", "x"), ("build/shard_samples", HUGE), ("build/shard_samples", 0),
            ("build/quality", 0), ("build/seed", -1), ("build/splits", []), ("build/max_side", "x"),
            ("source", []), ("source/rows", [1]), ("source/rows/train", -1),
            ("source/appended", [{"rows": 3}]), ("build/carve", [["val", "x"]]),
        )
    ),
    ("another digest of a sealed shard", "verify", MANIFEST, setting(f"{SHARD}/sha256", "x" * 99)),
    # Records of shards, which no digest covers
    *(
        (f"{key} of a record: {str(value)[:9]!r}, {target}", target, RECORD, setting(key, value))
        for target in ("append", "merge")
        for key, value in (
            ("digests", 3), ("digests/0", 0.5), ("digests/0", "x"), ("untouched", "x"),
            ("changes", []), ("changes", {"x": "y"}), ("fingerprint", 3), ("problems", [3]),
        )
    ),
    # Indices of tars that agree with the manifest, and not with the tar
    *(
        (f"{what} in the index of a tar, {target}", target, INDEX, change)
        for target in ("info", "verify", "append", "merge", "eval", "preview")
        for what, change in {
            "latin-1": lambda path: path.write_bytes(path.read_bytes().replace(b"jpg", b"\xe9", 1)),
            "a huge offset": first_number(str(HUGE)), "a far offset": first_number(str(2**62)),
            "an offset beyond": first_number("999999999"), "a negative offset": first_number("-9"),
        }.items()
    ),
    ("a key of other letters", "merge", INDEX,
     lambda path: path.write_bytes(path.read_bytes().replace(b".jpg", b"!.jpg", 1))),
    # Indices and saved embeddings
    ("sides of another kind", "search", "index/index.json", setting("sides", ["x"])),
    ("sides that cannot be keys", "search", "index/index.json", setting("sides", [[]])),
    ("no model", "search", "index/index.json", setting("model", 3)),
    ("an id that is a list", "eval saved", "index/images.jsonl", setting("id", [1])),
    ("an image that is no row", "eval saved", "index/captions.jsonl", setting("image", -1)),
    ("an image beyond the rows", "eval saved", "index/captions.jsonl", setting("image", 10**9)),
    ("an image that is a text", "eval saved", "index/captions.jsonl", setting("image", "x")),
    # Arrays
    *(
        (f"{what} in {file} of {target}", target, file, array(values))
        for target, file in (
            ("eval saved", "index/images.npy"), ("search", "index/images.npy"),
            ("eval similarities", "rows/sims.npy"), ("eval eccv", "eccv/coco_test_ids.npy"),
        )
        for what, values in {
            "strings": ["a"], "big-endian": np.ones((3, 24), ">f4"), "a number": 1.0,
            "records": np.zeros(3, "f4,i4"), "nothing": np.zeros((0, 24), "f4"),
        }.items()
    ),
    ("not finite", "eval saved", "index/images.npy", array(np.full((7, 24), np.nan, "f4"))),
    # Annotations
    ("ECCV without answers", "eval eccv", ECCV, text('{"10": []}')),
    ("ECCV of texts", "eval eccv", ECCV, text('{"x": ["y"]}')),
    ("ECCV that is infinite", "eval eccv", ECCV, text('{"10": [1e999]}')),
    ("CxC cut", "eval cxc", CXC, text(HEAD + "x")),
    ("CxC of NUL", "eval cxc", CXC, text(HEAD + "\0,1,2\n")),
    ("CxC in a cell", "eval cxc", CXC, text(HEAD + "1" * 200_000)),
    ("CxC of latin-1", "eval cxc", CXC, text(HEAD.encode() + b"\xe9,1,2\n")),
    # Published checkpoints
    ("a sparse tensor", "import", "rows/best.pth", first_tensor(torch.eye(3).to_sparse())),
    ("a complex tensor", "import", "rows/best.pth", first_tensor(torch.eye(3) * 1j)),
    ("an endless tensor", "import", "rows/best.pth", first_tensor(torch.zeros(1).expand(10**12))),
    ("no tensor", "import", "rows/best.pth", first_tensor("x")),
    ("a number of float8",
        "import", "rows/best.pth", first_tensor(torch.zeros(3, dtype=torch.float8_e4m3fn))
    ),
    ("no pair", "import", "rows/best.pth", weights(lambda loaded: {"model": [1, 2]})),
    ("a list", "import", "rows/best.pth", weights(lambda loaded: [loaded])),
    # Settings of models
    *(
        (f"{key} = {str(value)[:9]}", "export", "model/config.json", setting(key, value))
        for key, value in (
            ("vocab_size", float("inf")), ("vocab_size", -1), ("vocab_size", HUGE), ("pad_id", "x"),
            ("model/text/architecture/num_attention_heads", 0),
            ("model/text/architecture/num_hidden_layers", 10**7),
            ("model/text/architecture/hidden_size", 10**9), ("model/embed_dim", 0),
            ("model/text/layers", 10**9), ("model/text/layers", "x"), ("model/image/power", "x"),
            ("model/embed_dim", HUGE), ("model/image/size", 10**9), ("model/image", []),
            ("model/image/backbone", {"a": 1}), ("image_spec", None), ("input_spec", [3]),
        )
    ),
    ("a long version", "embed", "model/tokenizer.json", setting("version", "x" * 9999)),
    ("an id of 2**31", "export", "model/tokenizer.json", setting("model/vocab/red", 2**31)),
    ("a digest too many", "merge", RECORD, setting("digests", ["a"] * 9)),
    ("a record of more samples", "merge", RECORD,
        lambda path: (setting("digests", ["a"] * 9)(path), setting("shard/samples", 9)(path))),
    *(
        (f"a long {key}", "train", "run/config.yaml", in_yaml(key, "x" * 99_999))
        for key in (
            "model/text/architecture/hidden_size", "model/image/backbone", "model/pool",
            "objective/kind", "model/init_from", "model/text/path",
        )
    ),
    *(
        (f"a long key of {key}", "train", "run/config.yaml", in_yaml(f"{key}/{'x' * 99_999}", 1))
        for key in ("data", "model/image", "model/text/architecture", "objective")
    ),
    # Runs
    *(
        (f"{file} with {key} = {str(value)[:9]!r}", "report", f"run/{file}", setting(key, value))
        for file, key, value in (
            ("results.json", "steps", "many"), ("results.json", "rsum", []),
            ("metrics.jsonl", "loss", "x"), ("metrics.jsonl", "step", HUGE),
            ("metrics.jsonl", "seconds", 3), ("evaluations.jsonl", "pooling", 3),
        )
    ),
    ("a system that is a list", "report", "run/system.json", text("[1]")),
    ("a configuration that is a list", "report", "run/config.yaml", text("[1]")),
    ("a state of another type", "checkpoint", STATE, text("3")),
    ("a state that is nested", "checkpoint", STATE, text(DEEP)),
    *(
        (f"{key} of a state: {str(value)[:9]!r}", "checkpoint", STATE, setting(key, value))
        for key, value in (
            ("step", -1), ("step", "x"), ("step", HUGE), ("step", None), ("step", float("nan")),
            ("fingerprint", 3), ("fingerprint", "x" * 9999), ("config", []), ("config", {}),
            ("config/optim", 3), ("config/optim/heads", []), ("config/seed", "x" * 9999),
            ("config/model/image/backbone", {"a": 1}), ("best_rsum", "x"), ("best_step", [1]),
            ("stale", 0.5), ("order", 0), ("order", 10**9), ("steps_per_epoch", -1),
            ("shift", "x"), ("vocabulary", None), ("another", 1),
        )
    ),
    ("a recipe upon /dev/zero", "train", "run/config.yaml", text("base: /dev/zero")),
    ("a recipe upon itself", "train", "run/config.yaml", text("base: config.yaml")),
    ("a recipe upon NUL", "train", "run/config.yaml", text('base: "\\0"')),
    ("a recipe upon a long name", "train", "run/config.yaml", text(f"base: {'x' * 5000}")),
    ("an alias bomb", "train", "run/config.yaml", text("a: &a [x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join(['*a' + (str(n - 1) if n else '')] * 9)}]\n" for n in range(9)
    ))),
]  # fmt: skip

IN_OTHER_WORDS = {  # where the line names another file, or none
    MANIFEST: ("other.tar: No such file", "the manifest says", "rejects.jsonl: was changed"),
    "model/tokenizer.json": (
        "model: cannot be opened as a tokenizer", "model: has a token of id 2,147,483,648, which",
    ),
    "run/config.yaml": (
        "model.text.architecture: Validation error", "unknown key model.text.architecture.xxx",
        "xxx: cannot be used (File name too long)",
    ),
    STATE: ("step-00000005: its configuration: ", "step-00000005: was trained on a dataset with "),
    "index/images.npy": ("embeddings are not finite",),
}  # fmt: skip
SEAL = {  # said if the digests had not been renewed
    MANIFEST: "its fingerprint is",
    STATE: "is not what was written",
    INDEX: "has sha256",
}


def test_no_case_hides_another():
    assert len({name for name, *_ in CASES}) == len(CASES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "file", "spoil"), [pytest.param(*rest, id=name) for name, *rest in CASES]
)
def test_one_line_and_exit_code_2(target, file, spoil, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    box = tmp_path / "box"
    shutil.copytree(corpus, box)
    spoil(damaged := box / file)
    if damaged.is_file() and not damaged.is_symlink():
        reseal(damaged)
    places = {one.name: one for one in box.iterdir()} | {"out": box / "out"}
    arguments = [word.format(**places) for word in TARGETS[target].arguments]
    code, said = run(TARGETS[target].main, ["x", *arguments], box)
    assert code == 2, said[-1000:]
    assert any(word in said for word in (damaged.name, *IN_OTHER_WORDS.get(file, ()))), said
    assert file not in SEAL or SEAL[file] not in said
    begun = target == "merge" and file == INDEX  # and goes on once they are right
    assert begun or not (box / "out").exists()
    assert not (box / "out/manifest.json").exists()


# A report shows what it can of a run whose files hold other things than ours.
SHOWN: list[tuple[str, str, Callable[[Path], None]]] = [
    ("a loss below zero", "metrics.jsonl", setting("loss", -1e300)),
    ("a recall of many digits", "evaluations.jsonl", setting("i2t/r1", HUGE)),
    ("an interval of many digits", "evaluations.jsonl", setting("intervals", {"rsum": [HUGE, 1]})),
    ("an infinite weight", "evaluations.jsonl", setting("pooling/text/0", float("inf"))),
    ("figures of many digits", "evaluations.jsonl", setting("others", {"a": HUGE})),
    ("a model that is a word", "config.yaml", in_yaml("model", "resnet")),
    ("a tower that is a word", "config.yaml", in_yaml("model/image", "resnet")),
    ("an objective that is a number", "config.yaml", in_yaml("objective/kind", 3)),
    ("an objective that is a list", "config.yaml", in_yaml("objective/kind", [3])),
    ("settings that are a list", "config.yaml", in_yaml("objective", [3])),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "spoil"), [pytest.param(*rest, id=name) for name, *rest in SHOWN])
def test_a_report_is_made_or_is_one_line(file, spoil, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    box = tmp_path / "box"
    shutil.copytree(corpus, box)
    spoil(box / "run" / file)
    report = TARGETS["report"]
    places = {one.name: one for one in box.iterdir()} | {"out": box / "out"}
    code, said = run(report.main, ["x", *(w.format(**places) for w in report.arguments)], box)
    assert code in (0, 2), said[-1000:]
