"""Good files of every kind that the commands read, and the commands that read them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from archives import tar_of
from PIL import Image
from published_files import of_model

from vse_scale import cli as scale
from vse_scale.config import Config, ModelConfig
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel
from vse_shards import cli as shards
from vse_shards.build import BuildOptions, build
from vse_shards.demo import make_demo
from vse_shards.sources.jsonl import JsonlSource
from vse_shards.terminal import tell

FORMATS = {
    "jpg": {}, "png": {}, "webp": {}, "gif": {}, "bmp": {}, "tiff": {}, "avif": {}, "jp2": {},
    "ppm": {}, "tga": {}, "pcx": {}, "ico": {},
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A command, and the files that are damaged before it runs.

    Attributes:
        main: of its command line.
        arguments: with ``{name}`` for the folders of the corpus.
        files: patterns below the corpus.
    """

    main: Callable[[], None]
    arguments: tuple[str, ...]
    files: tuple[str, ...]


def read_checkpoint() -> None:
    """Stand in for the start of a training run, which reads its newest checkpoint."""
    import sys

    from vse_scale.errors import UserError
    from vse_scale.training.checkpoint import Checkpoints

    folder, config = map(Path, sys.argv[1:])
    try:
        found = Checkpoints(folder, 2).newest()
        if found is not None:
            checked = Config.load(config)
            found[1].check(checked, "0" * 64, found[0])
    except UserError as error:
        tell(f"x: error: {error}")
        sys.exit(2)


def _build(source: str, given: str, *more: str) -> tuple[str, ...]:
    return (
        "build", "--source", source, "--input", given, "--out", "{out}", "--workers", "1",
        "--max-rejects", "100%", *more,
    )  # fmt: skip


SHARDS = shards.main
SCALE = scale.main
DATA = ("data/*.json", "data/*.tar", "data/*.idx", "data/*.jsonl")
MODEL = ("model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/*.json")
TARGETS = {
    "info": Target(SHARDS, ("info", "{data}"), DATA),
    "verify": Target(SHARDS, ("verify", "{data}", "--deep"), DATA),
    "preview": Target(SHARDS, ("preview", "{data}", "--out", "{out}"), DATA),
    "append": Target(
        SHARDS, ("append", "{data}", "--source", "jsonl", "--input", "{rows}/rows.jsonl",
                 "--workers", "1"), (*DATA, "rows/rows.jsonl")
    ),
    "merge": Target(SHARDS, ("merge", "{data}", "{data2}", "--out", "{out}", "--prefix-ids"), DATA),
    "build jsonl": Target(SHARDS, _build("jsonl", "{rows}/rows.jsonl"), ("rows/rows.jsonl",)),
    "build csv": Target(SHARDS, _build("csv", "{rows}/rows.csv"), ("rows/rows.csv",)),
    "build coco": Target(
        SHARDS, _build("coco", "{rows}/captions_val2014.json", "--images", "{rows}"),
        ("rows/captions_val2014.json",),
    ),
    "build karpathy": Target(
        SHARDS, _build("karpathy", "{rows}/karpathy.json", "--images", "{rows}"),
        ("rows/karpathy.json",),
    ),
    "build webdataset": Target(SHARDS, _build("webdataset", "{tars}"), ("tars/*",)),
    "build images": Target(SHARDS, _build("jsonl", "{rows}/rows.jsonl"), ("rows/i.*",)),
    "build precomp": Target(
        SHARDS, _build("precomp", "{precomp}", "--no-images"), ("precomp/*",)
    ),
    "eval": Target(
        SCALE, ("eval", "--model", "{model}", "--data", "{data}", "--split", "train"),
        (*MODEL, *DATA),
    ),
    "eval saved": Target(SCALE, ("eval", "--embeddings", "{index}"), ("index/*",)),
    "eval similarities": Target(
        SCALE, ("eval", "--similarities", "{rows}/sims.npy", "--data", "{data}", "--split",
                "train"), ("rows/sims.npy",)
    ),
    "eval eccv": Target(
        SCALE, ("eval", "--embeddings", "{coco}", "--eccv", "{eccv}"), ("eccv/*", "coco/*")
    ),
    "eval cxc": Target(
        SCALE, ("eval", "--embeddings", "{coco}", "--protocol", "cxc", "--cxc", "{cxc}", "--split",
                "val"), ("cxc/*",)
    ),
    "embed": Target(
        SCALE, ("embed", "--model", "{model}", "--images", "{rows}", "--out", "{out}"),
        ("rows/i.*", *MODEL),
    ),
    "search": Target(
        SCALE, ("search", "--index", "{index}", "a red square", "--html", "{out}", "--model",
                "{model}"), ("index/*",)
    ),
    "report": Target(
        SCALE, ("report", "--run", "{run}", "--out", "{out}"),
        ("run/*.json", "run/*.jsonl", "run/*.yaml"),
    ),
    "export": Target(SCALE, ("export", "--model", "{model}", "--out", "{out}"), MODEL),
    "import": Target(
        SCALE, ("import", "{rows}/best.pth", "--out", "{out}"), ("rows/best.pth",)
    ),
    "train": Target(SCALE, ("train", "--config", "{run}/config.yaml", "--dry-run"),
                    ("run/config.yaml",)),
    "checkpoint": Target(
        read_checkpoint, ("{run}/checkpoints", "{run}/config.yaml"),
        ("run/checkpoints/step-00000005/*",),
    ),
}  # fmt: skip


def make_corpus(folder: Path, small: Path) -> None:
    """Write the good files below ``folder``; ``small`` is the configuration of tests."""
    rows = folder / "drawn"
    for name, seed in (("data", 0), ("data2", 1)):
        make_demo(rows, images=8, seed=seed)
        source = JsonlSource(str(rows / "captions.jsonl"), str(rows))
        build(source, str(folder / name), BuildOptions(shard_samples=4, workers=1))
    _make_rows(folder)
    _make_model(folder)
    _make_run(folder, small)
    _make_annotations(folder)
    shutil.rmtree(rows)


def _make_rows(folder: Path) -> None:
    rows, tars, precomp = folder / "rows", folder / "tars", folder / "precomp"
    for one in (rows, tars, precomp):
        one.mkdir()
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (40, 48, 3), np.uint8))
    entries = []
    for number, (suffix, options) in enumerate(FORMATS.items()):
        picture.save(rows / f"i.{suffix}", **options)
        captions = [f"a {suffix}"]
        entries.append({"image": f"i.{suffix}", "image_id": f"r{number}", "captions": captions})
    (rows / "rows.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with (rows / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        writer.writerows([entry["image"], f'a "{entry["image"]}", red'] for entry in entries)
    images = [{"id": n, "file_name": e["image"]} for n, e in enumerate(entries[:3])]
    notes = [{"id": n + 9, "image_id": n, "caption": "a cat"} for n in range(3)]
    coco = {"images": images, "annotations": notes}
    (rows / "captions_val2014.json").write_text(json.dumps(coco))
    karpathy = {"dataset": "coco", "images": [
        {"filename": e["image"], "filepath": "", "imgid": n, "cocoid": n, "split": "val",
         "sentids": [n], "sentences": [{"raw": "a cat", "sentid": n, "imgid": n, "tokens": []}]}
        for n, e in enumerate(entries[:3])]}  # fmt: skip
    (rows / "karpathy.json").write_text(json.dumps(karpathy))
    members = {}
    for number in range(3):
        described = json.dumps({"key": number, "caption": "a cat"}).encode()
        members[f"{number:04d}.jpg"] = (rows / "i.jpg").read_bytes()
        members |= {f"{number:04d}.txt": b"a cat", f"{number:04d}.json": described}
    (tars / "train-0000.tar").write_bytes(tar_of(members))
    (tars / "train-0000_stats.json").write_text(json.dumps({"successes": 3, "count": 3}))
    np.save(precomp / "dev_ims.npy", rng.normal(size=(3, 6, 8)).astype("f4"))
    (precomp / "dev_caps.txt").write_text("a cat\na dog\na fox\n")
    np.save(rows / "sims.npy", rng.normal(size=(7, 35)).astype("f4"))


def _make_model(folder: Path) -> None:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 64}
    config = ModelConfig.model_validate(
        {"embed_dim": 24, "image": {"backbone": "tiny", "size": 32}, "text": {"architecture": text}}
    )
    tokenizer = CaptionTokenizer.train(["a red square", "a blue ring"] * 9, 60)
    torch.manual_seed(0)
    VSEModel(config, tokenizer.vocab_size, tokenizer.pad_id).save_pretrained(
        folder / "model", tokenizer
    )
    command = ["embed", "--model", folder / "model", "--data", folder / "data"]
    _quietly(SCALE, [*command, "--split", "train", "--out", folder / "index"])
    image = {"backbone": "regions", "region_channels": 8}
    described = {"embed_dim": 24, "image": image, "text": {"architecture": text}}
    of_model(VSEModel(ModelConfig.model_validate(described), 60, 0), folder / "rows" / "best.pth")


def _quietly(main: Callable[[], None], arguments: list[Any]) -> None:
    import sys

    argv, sys.argv = sys.argv, ["x", *map(str, arguments)]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            main()
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"{arguments} ended with {ended.code}") from ended
    finally:
        sys.argv = argv


def _make_run(folder: Path, small: Path) -> None:
    run = folder / "run"
    run.mkdir()
    config = Config.load(small, [f"data.path={folder / 'data'}", f"run.dir={run}"])
    (run / "config.yaml").write_text(config.to_yaml())
    steps = [{"step": n, "epoch": 0, "loss": 1.0, "objective": "all", "seconds": {"step": 1.0},
              "learning_rate": {"heads": 1e-3}, "violating": 0.5} for n in range(6)]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
    figures = {"r1": 10.0, "r5": 20.0, "r10": 30.0, "median_rank": 5.0, "mean_rank": 6.0}
    record = {"step": 5, "epoch": 0, "split": "train", "i2t": figures, "t2i": figures,
              "rsum": 120.0, "pooling": {"image": [0.5, 0.5], "text": [1.0]},
              "similarities": {"positive": [1, 2], "hardest_negative": [2, 1]}}  # fmt: skip
    (run / "evaluations.jsonl").write_text(json.dumps(record) + "\n")
    (run / "results.json").write_text(json.dumps({**record, "steps": 6, "pairs": 96}))
    (run / "system.json").write_text(
        json.dumps({"ranks": 1, "cores": 2, "gpus": [], "python": "3"})
    )
    checkpoint = run / "checkpoints" / "step-00000005"
    checkpoint.mkdir(parents=True)
    state = json.dumps(
        {"step": 5, "fingerprint": "0" * 64, "config": config.recorded()}, default=str
    )
    (checkpoint / "state.json").write_text(state)
    listed = {"bytes": len(state), "sha256": hashlib.sha256(state.encode()).hexdigest()}
    (checkpoint / "files.json").write_text(json.dumps({"state.json": listed}))


def _make_annotations(folder: Path) -> None:
    coco, eccv, cxc = folder / "coco", folder / "eccv", folder / "cxc"
    for one in (coco, eccv, cxc):
        one.mkdir()
    rng = np.random.default_rng(0)
    (coco / "index.json").write_text(json.dumps({"sides": ["images", "captions"], "model": "m"}))
    for side, rows in (("images", 3), ("captions", 6)):
        vectors = rng.normal(size=(rows, 8)).astype("f4")
        np.save(coco / f"{side}.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    images = "".join(json.dumps({"id": 10 + n}) + "\n" for n in range(3))
    captions = "".join(json.dumps({"id": 20 + n, "image": n // 2}) + "\n" for n in range(6))
    (coco / "images.jsonl").write_text(images)
    (coco / "captions.jsonl").write_text(captions)
    answers = {str(10 + n): [20 + 2 * n, 21 + 2 * n] for n in range(3)}
    (eccv / "eccv_image_to_caption.json").write_text(json.dumps(answers))
    back = {str(20 + n): [10 + n // 2] for n in range(6)}
    (eccv / "eccv_caption_to_image.json").write_text(json.dumps(back))
    np.save(eccv / "coco_test_ids.npy", np.arange(20, 26))
    image = "COCO_val2014_{:012d}.jpg".format
    caption = "COCO_val2014_{:012d}.jpg:{}".format
    tables = {
        "sits": ("caption,image", [(caption(10 + n // 2, 20 + n), image(10 + n // 2))
                                   for n in range(6)]),
        "sis": ("image1,image2", [(image(10), image(11)), (image(11), image(12))]),
        "sts": ("caption1,caption2", [(caption(10, 20), caption(11, 22)),
                                      (caption(11, 23), caption(12, 24))]),
    }  # fmt: skip
    for name, (head, pairs) in tables.items():
        lines = [f"{a},{b},{4.5 - n / 2},c2i" for n, (a, b) in enumerate(pairs)]
        (cxc / f"{name}_val.csv").write_text(
            "\n".join([f"{head},agg_score,sampling_method", *lines]) + "\n"
        )
