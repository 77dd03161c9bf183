"""A new part touches as few files as this: each is added to a copy of the library, and used there.

An addition is a patch as a contributor would send it: new files, and lines put into files that are
there. What it touches is counted, tests and documents apart.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD_RUN = ROOT / "tests" / "old_runs" / "regions" / "run"
PACKAGES = {"vse_scale": "vse_scale", "kernels/vse_kernels": "vse_kernels"}
PACKAGES |= {"shards/vse_shards": "vse_shards"}


@dataclass(frozen=True)
class Addition:
    """A part that is added.

    Attributes:
        most: files that it may touch.
        files: text of new files by their path in the copy.
        lines: by path, the line after which to insert, and the text to insert.
        use: Python that uses the part, and fails where it is not what it should be.
    """

    most: int
    use: str
    files: dict[str, str] = field(default_factory=dict)
    lines: dict[str, tuple[str, str]] = field(default_factory=dict)


LOGISTIC = '''"""The sigmoid loss of SigLIP (Zhai et al., ICCV 2023), by autograd."""
from __future__ import annotations
from dataclasses import dataclass
import torch
import torch.distributed.nn
from torch.nn import functional as F
from vse_scale.objective.base import Objective, ObjectiveResult
from vse_scale.world.gather import Exchange

@dataclass(frozen=True)
class Settings:
    kind: str = "logistic"
    scale: float = 10.0
    bias: float = -10.0

class Sigmoid(Objective):
    Settings = Settings
    final_phase = "logistic"

    def compute(self, images, captions, *, ids, valid, phase, group=None):
        images = images.repeat_interleave(len(captions) // len(images), 0)
        scores = self.settings.scale * images @ captions.T + self.settings.bias
        sign = 2.0 * torch.eye(len(captions)) - 1
        loss = -F.logsigmoid(sign * scores).sum() / len(captions)
        return ObjectiveResult(loss, Exchange(group, captions.device))

    def gathered_bytes(self, phase, *, images, captions, embed_dim):
        return (0,)
'''
BAG = (ROOT / "tests" / "support" / "bag_tower.py").read_text(encoding="utf-8")
TRAIN = """
import json, subprocess, sys
from pathlib import Path
run = Path("run")
command = [sys.executable, "-m", "vse_scale.training", "--config", CONFIG, f"run.dir={run}",
           "train.max_steps=2", "telemetry.prometheus_port=null", "telemetry.tensorboard=false"]
subprocess.run([*command, *SETTINGS], check=True)
steps = [json.loads(line) for line in open(run / "metrics.jsonl")]
subprocess.run([sys.executable, "-m", "vse_scale.cli", "eval", "--model", run, "--data", DATA,
                "--split", "val"], check=True)
subprocess.run([sys.executable, "-m", "vse_scale.cli", "report", "--run", run], check=True)
subprocess.run([sys.executable, "-m", "vse_scale.cli", "plan", "--config", CONFIG, "--gpus", "2",
                "--", *SETTINGS], check=True)
"""
TWO_SIDES = """
import torch
from vse_scale.retrieval.encode import Embeddings
rows = torch.eye(30)
found = Embeddings(rows, rows, torch.arange(30), tuple(range(30)), tuple(range(30)))
"""
ADDITIONS = {
    "objective": Addition(
        2,
        "SETTINGS = ['objective.kind=logistic', 'objective.scale=5', 'objective.ramp=null']\n"
        f"{TRAIN}\n"
        "assert [step['objective'] for step in steps] == ['logistic'] * 2, steps\n",
        {"vse_scale/objective/logistic.py": LOGISTIC},
        {
            "vse_scale/config/parts.py": (
                '        "sigmoid": f"{_OBJECTIVE}.sigmoid:Sigmoid",',
                '\n        "logistic": f"{_OBJECTIVE}.logistic:Sigmoid",',
            )
        },
    ),
    "text_encoder": Addition(
        2,
        f"SETTINGS = ['model.text.encoder=bag', 'model.pool=mean', 'model.text.vocab_size=null',"
        f" 'model.text.architecture=null']\n{TRAIN}\n"
        "assert 'bag of words' in (run / 'report.html').read_text()\n",
        {"vse_scale/model/towers/bag.py": BAG},
        {
            "vse_scale/config/parts.py": (
                '        "bigru": f"{_TOWERS}.bigru:BiGRUTower",',
                '\n        "bag": f"{_TOWERS}.bag:BagTower",',
            )
        },
    ),
    "metric": Addition(
        1,
        f"{TWO_SIDES}\n"
        "from vse_scale.retrieval.protocols.registry import PROTOCOLS\n"
        "result = PROTOCOLS.find('plain')().rank(found)\n"
        "assert result.to_dict()['i2t']['r20'] == 100, result.to_dict()\n"
        "assert 'R@20' in result.table() and 'R@20' in result.markdown('m')\n"
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'vse_scale.cli', 'report', '--run', OLD_RUN,"
        " '--out', 'report.html'], check=True)\n"
        "assert 'R@20' in open('report.html').read()\n"
        "from vse_scale.training.watch import prometheus, tensorboard\n",
        lines={
            "vse_scale/retrieval/metrics.py": (
                "        _recall_at(10, in_rsum=True),",
                "\n        _recall_at(20, in_rsum=False),",
            )
        },
    ),
    "panel": Addition(
        1,
        "import subprocess, sys\n"
        "report = [sys.executable, '-m', 'vse_scale.cli', 'report', '--run', OLD_RUN]\n"
        "subprocess.run([*report, '--out', 'one.html'], check=True)\n"
        "subprocess.run([*report, '--run', OLD_RUN, '--out', 'two.html'], check=True)\n"
        "assert 'steps in all: 8' in open('one.html').read()\n"
        "assert 'steps in all: 8, 8' in open('two.html').read()\n",
        {
            "vse_scale/report/panels/total.py": '''"""The number of steps."""
from vse_scale.report.panel import Panel, Section

class Total(Panel):
    section = Section("total", "Steps", 15)

    def render(self, data):
        return f"<p>steps in all: {len(data.run.steps)}</p>"

    def compare(self, columns):
        return f"<p>steps in all: {', '.join(str(len(c.run.steps)) for c in columns)}</p>"

PANEL = Total()
'''
        },
    ),
    "protocol": Addition(
        2,
        f"{TWO_SIDES}\n"
        "from vse_scale.retrieval.protocols.registry import PROTOCOLS\n"
        "result = PROTOCOLS.find('half')().rank(found)\n"
        "assert result.to_dict()['images'] == 15, result.to_dict()\n"
        "from vse_scale.retrieval.embed import INDEX\n"
        "import subprocess, sys\n"
        "help = subprocess.run([sys.executable, '-m', 'vse_scale.cli', 'eval', '--help'],\n"
        "    capture_output=True, text=True, check=True, env={**__import__('os').environ,"
        " 'COLUMNS': '200'})\n"
        "assert 'half' in help.stdout, help.stdout\n",
        {
            "vse_scale/retrieval/protocols/half.py": '''"""The first half of a split."""
from dataclasses import replace
from vse_scale.retrieval.protocols.base import RankingProtocol, needed_embeddings
from vse_scale.retrieval.protocols.folds import Plain
from vse_scale.world.processes import ALONE

class Half(RankingProtocol):
    takes_similarities = False

    def rank(self, gallery, *, split="test", order=None, processes=ALONE):
        whole = needed_embeddings(gallery)
        n = len(whole.images) // 2
        kept = whole.caption_to_image < n
        part = replace(
            whole, images=whole.images[:n], captions=whole.captions[kept],
            caption_to_image=whole.caption_to_image[kept], image_ids=whole.image_ids[:n],
            caption_ids=whole.caption_ids[: int(kept.sum())],
        )
        return Plain().rank(part, split=split, processes=processes)
'''
        },
        {
            "vse_scale/retrieval/protocols/registry.py": (
                '        "cxc": f"{_HERE}.cxc:Cxc",',
                '\n        "half": f"{_HERE}.half:Half",',
            )
        },
    ),
    "source_format": Addition(
        2,
        "import json, subprocess, sys\n"
        "from pathlib import Path\n"
        "from PIL import Image\n"
        "lines = []\n"
        "for n in range(12):\n"
        "    Image.new('RGB', (64, 64), (20 * n, 9, 9)).save(f'{n}.png')\n"
        "    lines.append(f'{n}.png|shade {n}')\n"
        "Path('pairs.txt').write_text('\\n'.join(lines))\n"
        "command = [sys.executable, '-c', 'from vse_shards.cli import main; main()', 'build']\n"
        "subprocess.run([*command, '--source', 'piped', '--input', 'pairs.txt',"
        " '--out', 'shards'], check=True)\n"
        "manifest = json.loads(Path('shards/manifest.json').read_text())\n"
        "assert len(list(Path('shards').glob('train-*.tar'))) == 1, manifest\n"
        "import tarfile\n"
        "names = tarfile.open(next(Path('shards').glob('train-*.tar'))).getnames()\n"
        "assert len(names) == 24, names\n",
        {
            "vse_shards/sources/piped.py": '''"""Lines of ``path|caption``."""
from pathlib import Path
from vse_shards.sources.base import Caption, Location, Row

class PipedSource:
    kind = "piped"
    options = frozenset()

    def __init__(self, path):
        self._path = Path(path)
        self.name = self._path.name

    def rows(self):
        for n, line in enumerate(self._path.read_text().splitlines(), 1):
            image, caption = line.split("|")
            at = Location(str(self._path.parent / image))
            yield Row("train", image, (Caption(None, caption),), at, f"line {n}", image)
'''
        },
        {
            "vse_shards/sources/registry.py": (
                '        "jsonl": "vse_shards.sources.jsonl:JsonlSource",',
                '\n        "piped": "vse_shards.sources.piped:PipedSource",',
            )
        },
    ),
}


@pytest.mark.parametrize("name", ADDITIONS)
def test_an_addition_touches_few_files_and_works(
    name: str, small_run: Path, scenes: Path, tmp_path: Path
) -> None:
    addition, copy, work = ADDITIONS[name], tmp_path / "copy", tmp_path / "work"
    for source, target in PACKAGES.items():
        shutil.copytree(ROOT / source, copy / target, ignore=shutil.ignore_patterns("*.pyc"))
    # Without its model a report needs no dataset.
    shutil.copytree(OLD_RUN, work / "old", ignore=shutil.ignore_patterns("model"))
    for path, text in addition.files.items():
        assert not (copy / path).exists()
        (copy / path).write_text(text)
    for path, (anchor, line) in addition.lines.items():
        text = (copy / path).read_text()
        assert text.count(anchor) == 1, f"{path} has changed; the patch needs another place"
        (copy / path).write_text(text.replace(anchor, anchor + line))
    assert len(addition.files) + len(addition.lines) <= addition.most
    known = {"CONFIG": str(small_run), "DATA": str(scenes), "OLD_RUN": str(work / "old")}
    given = "".join(f"{key} = {json.dumps(value)}\n" for key, value in known.items())
    done = subprocess.run(
        [sys.executable, "-c", given + addition.use],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_the_copy_is_used_not_the_library(tmp_path: Path) -> None:
    """Without this, an addition that works might be one that is here already."""
    shutil.copytree(ROOT / "vse_scale", tmp_path / "vse_scale")
    done = subprocess.run(
        [sys.executable, "-c", "import vse_scale; print(vse_scale.__file__)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(str(tmp_path))
