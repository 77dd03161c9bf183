"""Eight tasks of somebody who has read the README and docs alone, each a script in newcomers/.

After sktime/pytorch-forecasting#1931 (an example of a loss that could not train, since nobody ran
it), mlfoundations/open_clip#591 and huggingface/transformers#28072 (a checkpoint of open_clip in
transformers) and ARCHER2-HPC/archer2-docs#659 (a job script for another number of GPUs).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import calls_of, run_app
from documents import ROOT, Block, examples
from PIL import Image, ImageDraw
from slurm_cluster import slurm_cluster
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
from warm import vse_scale

from vse_scale.config import Config
from vse_scale.errors import ConfigError
from vse_scale.model.vse import VSEModel
from vse_scale.objective import make_objective
from vse_scale.run.folder import RunFolder

TASKS = ROOT / "tests" / "docs" / "newcomers"
COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (40, 60, 200)}
ON_ONE_MACHINE = (
    "2-own-photos", "3-compare", "4-search", "5-export", "6-weights", "8-own-loss",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 60 photos, a recipe, and the weights of a CLIP: what a newcomer brings."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "photos").mkdir()
    lines = []
    for number in range(60):
        name, shape = list(COLOURS)[number % 3], ("circle", "square")[number % 2]
        photo = Image.new("RGB", (64 + number, 64), "white")
        draw = ImageDraw.Draw(photo)
        box = (number % 24, number % 17, number % 24 + 30, number % 17 + 30)
        (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=COLOURS[name])
        photo.save(folder / f"photos/{number:04d}.jpg")
        captions = [f"A {name} {shape}, number {number}.", f"There is a {name} {shape}."]
        line = {"image": f"photos/{number:04d}.jpg", "captions": captions}
        lines.append(json.dumps(line | ({"split": "val"} if number >= 48 else {})) + "\n")
    (folder / "captions.jsonl").write_text("".join(lines))
    shutil.copy(TASKS / "tiny.yaml", folder)
    clip(folder / "weights" / "clip", "".join(lines))
    return folder


def clip(folder: Path, text: str) -> None:
    """Write a CLIP as `hf download` leaves one, small and random."""
    marks = ["<|startoftext|>", "<|endoftext|>"]
    words = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=marks, end_of_word_suffix="</w>", show_progress=False
    )
    words.train_from_iterator([text], trainer)
    words.post_processor = processors.TemplateProcessing(
        single=f"{marks[0]} $A {marks[1]}", special_tokens=[(marks[0], 0), (marks[1], 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token=marks[0], eos_token=marks[1], pad_token=marks[1]
    ).save_pretrained(folder)
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tiny |= {"intermediate_size": 32}
    own = {"vocab_size": words.get_vocab_size(), "max_position_embeddings": 40}
    own |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    torch.manual_seed(0)
    AutoModel.from_config(
        AutoConfig.for_model(
            "clip", text_config=tiny | own, vision_config=tiny | {"image_size": 32, "patch_size": 8}
        )
    ).save_pretrained(folder)


def work(task: str, recorders: Path) -> None:
    """Run a task's commands in this folder, as bash reads them."""
    text = (TASKS / f"{task}.sh").read_text()
    for call in calls_of(Block(f"{task}.sh", 1, "", text), recorders):
        if call.program == "vse-shards":
            assert run_app(call) == 0, str(call)
        else:
            done = vse_scale(*call.arguments[1:])
            assert done.returncode == 0, f"{call}: {done.stderr[-3000:]}"


def test_each_task_has_a_script_and_names_its_page() -> None:
    names = sorted(path.stem for path in TASKS.glob("*.sh"))
    assert names == sorted((*ON_ONE_MACHINE, "1-install", "7-cluster"))
    for name in names:
        first = (TASKS / f"{name}.sh").read_text().splitlines()[0]
        page, section = re.match(r'# (README|docs/\w+\.md)(?:, "([^"]+)")?', first).groups()
        text = (ROOT / (f"{page}.md" if page == "README" else page)).read_text()
        assert section is None or re.search(rf"^#+ {re.escape(section)}$", text, re.M), first


def test_installed_commands_say_what_they_are(recorders: Path, capsys) -> None:
    for call in calls_of(Block("1", 1, "", (TASKS / "1-install.sh").read_text()), recorders):
        assert run_app(call) == 0
    said = capsys.readouterr().out
    assert re.search(r"vse-scale \d+\.\d+.*\n.*vse-shards \d+\.\d+", said)
    assert "small" in said.split()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tasks_on_one_machine(place: Path, recorders: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "examples"))
    for task in ON_ONE_MACHINE:
        work(task, recorders)
    assert "<svg" in (place / "runs/mine/report.html").read_text()
    assert "its 95 % interval, the same draws for both runs" in (place / "compare.html").read_text()
    assert "mine" in (place / "runs/runs.html").read_text()
    assert (place / "found.html").read_text().count("<img") == 10
    assert (place / "models/mine/image_encoder.onnx").is_file()
    assert (place / "models/mine/modules.json").is_file()  # sentence-transformers' own
    Image.open("photos/0001.jpg").resize((32, 32)).save("photo.png")  # of the model's size
    (block,) = (b.text for b in examples("docs/interchange.md", "py") if "onnxruntime" in b.text)
    names: dict[str, object] = {}
    exec(block.replace("photo.jpg", "photo.png"), names)
    model = VSEModel.from_pretrained("models/mine")
    torch.testing.assert_close(
        torch.tensor(names["images"]), model.embed(images=["photo.png"]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        torch.tensor(names["captions"]), model.embed(texts=["a red circle"]), atol=1e-5, rtol=0
    )
    assert (place / "runs/clip/model/model.safetensors").is_file()
    steps = RunFolder(place / "runs/own-loss").steps()
    assert {step.objective for step in steps} == {"training"}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator:
    with slurm_cluster(tmp_path / "cluster") as running:
        yield running


@pytest.mark.soak  # tests/launch/test_slurm_for_real.py runs such jobs with the slow ones
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_of_two_nodes(place: Path, cluster, recorders: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    build, *_ = calls_of(Block("2", 1, "", (TASKS / "2-own-photos.sh").read_text()), recorders)
    if not (place / "data/mine").is_dir():
        assert run_app(build) == 0
    text = (TASKS / "7-cluster.sh").read_text()
    files, submit = calls_of(Block("7", 1, "", text), recorders)
    assert run_app(files) == 0
    done = cluster.run(
        *submit.arguments[:1], "--wait", *submit.arguments[1:], cwd=place, timeout=700
    )
    (log,) = place.glob("vse-scale-*.log")
    assert done.returncode == 0, log.read_text()[-4000:]
    assert "over 2 ranks" in log.read_text()
    assert (place / "runs/cluster/model/model.safetensors").is_file()


def test_the_loss_of_the_example_is_that_of_the_whole_batch(monkeypatch) -> None:
    """Two captions to an image are no negatives of each other."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    objective = make_objective("own_loss:Softmax", temperature=0.5)
    torch.manual_seed(0)
    images = F.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    captions = F.normalize(torch.randn(6, 4), dim=1).requires_grad_()
    loss = objective.loss(images, captions)
    scores = images.repeat_interleave(2, 0) @ captions.T / 0.5
    kept = [[own, *(c for c in range(6) if c // 2 != own // 2)] for own in range(6)]
    expected = sum(F.cross_entropy(row[k], torch.tensor(0)) for row, k in zip(scores, kept))  # noqa: B905
    assert float(loss) == pytest.approx(float(expected) / 6)
    own = torch.autograd.grad(loss, (images, captions))
    for found, wanted in zip(
        own, torch.autograd.grad(expected / 6, (images, captions)), strict=True
    ):
        torch.testing.assert_close(found, wanted)


def test_a_loss_without_the_key_that_names_it_is_one_line(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "keyless.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\n"
        "class Settings:\n    a: int = 1\n"
        "class Loss:\n    Settings = Settings\nclass Bare:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("Loss", "Bare"):
        with pytest.raises(ConfigError, match="dataclass Settings with a field `kind: str`"):
            Config.load("small", [f"objective.kind=keyless:{name}"])
