"""Models, indices and queries that cannot be used, through the commands: one line, exit code 2."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from vse_scale import cli
from vse_scale.config import ModelConfig
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 32, "max_position_embeddings": 64}
    image = {"backbone": "tiny", "size": 32}
    config = ModelConfig.model_validate(
        {"embed_dim": 24, "image": image, "text": {"architecture": text}}
    )
    tokenizer = CaptionTokenizer.train(["a red square", "a blue ring"] * 9, 60)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "good"
    VSEModel(config, tokenizer.vocab_size, tokenizer.pad_id).save_pretrained(folder, tokenizer)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    shutil.copytree(good, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def complaint(capsys, monkeypatch):
    """Run a command in this process; return the one line with which it was refused."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vse-scale", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if ": error: " in line]
        assert len(lines) == 1, said
        assert "Traceback" not in said
        return lines[0]

    return run


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def edit(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def narrow(folder):
    return json.loads((folder / "config.json").read_text())["model"] | {"embed_dim": 12}


SPOILED = {
    "half a weight file": (lambda f: cut(f / "model.safetensors"), "cannot be read as weights"),
    "weights not copied": (lambda f: (f / "model.safetensors").unlink(), "no such file of weights"),
    "half a config": (lambda f: cut(f / "config.json"), "is not JSON"),
    "another program's": (
        lambda f: (f / "config.json").write_text('{"model_type": "clip"}'),
        "describes no model of this kind",
    ),
    "another model's weights": (lambda f: edit(f, model=narrow(f)), "of another shape"),
    "an image size of nothing": (
        lambda f: edit(f, image_spec={"size": 0}),
        "image specification",
    ),
    "a damaged tokenizer": (lambda f: cut(f / "tokenizer.json"), "tokenizer"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_model_folder(folder, scenes, complaint, tmp_path, name):
    spoil, message = SPOILED[name]
    spoil(folder)
    out = tmp_path / "out"
    for command in (
        ["eval", "--model", folder, "--data", scenes, "--split", "val"],
        ["export", "--model", folder, "--out", out],
        ["embed", "--model", folder, "--data", scenes, "--split", "val", "--out", out],
    ):
        if name == "a damaged tokenizer" and command[0] == "embed":
            continue  # it says so below
        said = complaint(*command)
        assert message in said
        assert str(folder) in said
    assert not out.exists()


def test_a_tokenizer_with_more_tokens_than_the_model_knows(folder, scenes, complaint, tmp_path):
    """After huggingface/transformers#12763 (an index out of range, far from its cause)."""
    described = json.loads((folder / "tokenizer_config.json").read_text())
    described["pad_token"] = "[OTHER]"  # which transformers adds, behind those that there are
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    out = tmp_path / "out"
    for command in (
        ["eval", "--model", folder, "--data", scenes, "--split", "val"],
        ["embed", "--model", folder, "--data", scenes, "--split", "val", "--out", out],
    ):
        assert "tokens, and the model knows" in complaint(*command)
    assert not out.exists()


def test_embedding_without_a_tokenizer(folder, scenes, complaint, tmp_path):
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()
    options = ["--model", folder, "--data", scenes, "--split", "val", "--out", tmp_path / "out"]
    assert "the model has no tokenizer" in complaint("embed", *options)


def test_folders_in_the_way(good, complaint, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    said = complaint("export", "--model", good, "--out", tmp_path / "mine")
    assert "exists already; name a new folder" in said
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_no_library_says_what_a_model_folder_says(folder, tmp_path, capfd, monkeypatch):
    """transformers warns of a type that it does not know, in the folder's own words."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "\x1b]52;c;eA==\x07"}))
    arguments = ["export", "--model", folder, "--out", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["vse-scale", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "\x1b" not in "".join(capfd.readouterr())


def test_checkpoints_that_are_none(complaint, tmp_path):
    (tmp_path / "photo.pth").write_bytes(b"\xff\xd8\xff" * 50)
    (tmp_path / "zeros.pth").write_bytes(bytes(5000))  # which torch takes for its oldest format
    for file in ("photo.pth", "missing.pth", "zeros.pth"):
        said = complaint("import", tmp_path / file, "--out", tmp_path / "out")
        assert file in said
        assert "weights_only" not in said  # torch's advice is to run the code that the file holds
        assert len(said) < 300 + len(str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_what_to_embed_must_be_said(good, complaint, tmp_path):
    said = complaint("embed", "--model", good, "--out", tmp_path / "out")
    assert "give one of --data, --images and --texts" in said
    said = complaint("embed", "--model", good, "--images", tmp_path / "no", "--out", tmp_path / "o")
    assert "no such folder of images" in said


def test_queries(good, complaint, tmp_path, capsys, monkeypatch):
    (tmp_path / "texts.txt").write_text("a red square\na blue ring\n")
    arguments = [
        "embed",
        "--model",
        good,
        "--texts",
        tmp_path / "texts.txt",
        "--out",
        tmp_path / "i",
    ]
    monkeypatch.setattr(sys, "argv", ["vse-scale", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    capsys.readouterr()
    (tmp_path / "notes.jpg").write_text("no image")
    index = ["search", "--index", tmp_path / "i"]
    assert "nothing to look for" in complaint(*index)
    assert "the query is empty" in complaint(*index, " ")
    assert "10,000 words" in complaint(*index, "red " * 10_000)
    assert "is no whole image" in complaint(*index, "--image", tmp_path / "notes.jpg")
    assert "give images or captions" in complaint(*index, "red", "--in", "pictures")
    assert "holds captions, no images" in complaint(*index, "red", "--in", "images")
    assert "is no index" in complaint("search", "--index", tmp_path, "red")
    assert "is a folder" in complaint(*index, "red", "--html", tmp_path)


def test_reports(complaint, tmp_path):
    assert "no such run folder" in complaint("report", "--run", tmp_path / "none")
    runs = [word for name in "abc" for word in ("--run", tmp_path / name)]
    assert "no run can be read" in complaint("report", *runs)
    assert "give the folder of a run or of several" in complaint("report")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": float("inf")}, "does not describe a model"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000; give at most"),
        ({"embed_dim": 10**9}, "embed_dim is 1000000000; give at most 65536"),
        ({"embed_dim": "many"}, "does not describe a model"),
        ({"heads": 0}, "architecture"),
        ({"layers": 10**7}, "num_hidden_layers is 10000000; give at most 1000"),
        ({"size": 10**7}, "size is 10000000; give at most"),
        ({"pad_id": None}, "does not describe a model"),
    ],
)
def test_a_model_that_nobody_could_hold(folder, complaint, tmp_path, change, said):
    described = json.loads((folder / "config.json").read_text())
    model = described["model"]
    places = {
        "embed_dim": (model, "embed_dim"),
        "heads": (model["text"]["architecture"], "num_attention_heads"),
        "layers": (model["text"]["architecture"], "num_hidden_layers"),
        "size": (model["image"], "size"),
    }
    for name, value in change.items():
        section, key = places.get(name, (described, name))
        section[key] = value
    (folder / "config.json").write_text(json.dumps(described))
    line = complaint("export", "--model", folder, "--out", tmp_path / "out")
    assert said in line
    assert len(line) < 400 + len(str(folder))
