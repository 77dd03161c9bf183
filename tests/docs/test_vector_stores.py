"""The lines of docs/vector_stores.md, each run in the store that it names, against numpy.

qdrant/qdrant-client#293 (a file's name is refused as a point's id), facebookresearch/faiss#2349 and
ggozad/haiku.rag#588 (the distance that is taken where none is named is no inner product).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from documents import text_of

from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.vse import VSEModel

BLOCKS = re.findall(r"```py\n(.*?)```", text_of("docs/vector_stores.md"), re.S)
NEEDED = {"faiss": "faiss", "qdrant": "qdrant_client", "lancedb": "lancedb", "psycopg": "pgserver"}


@pytest.fixture
def started(small_config, tmp_path, monkeypatch):
    """The names of the page's first block, over 50 rows and a model that embeds a query."""
    monkeypatch.chdir(tmp_path)
    tokenizer = CaptionTokenizer.train(["a dog in the snow", "two cups"] * 5, vocab_size=60)
    torch.manual_seed(0)
    model = VSEModel(small_config, tokenizer.vocab_size, tokenizer.pad_id)
    model.save_pretrained(tmp_path / "runs" / "mine", tokenizer)
    (tmp_path / "runs" / "coco").mkdir()
    rows = np.random.default_rng(0).normal(size=(50, model.width)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(tmp_path / "runs" / "coco" / "images.npy", rows)
    lines = "".join(json.dumps({"id": f"photo-{place}.jpg"}) + "\n" for place in range(50))
    (tmp_path / "runs" / "coco" / "images.jsonl").write_text(lines)
    names: dict[str, object] = {}
    exec(BLOCKS[0], names)
    best = np.argsort(-rows @ names["query"][0])[:5]
    return names, [f"photo-{place}.jpg" for place in best]


@pytest.mark.parametrize("store", NEEDED)
def test_a_store_finds_what_numpy_finds(store, started, tmp_path):
    pytest.importorskip(NEEDED[store], reason=f"needs {NEEDED[store]}, which is not installed")
    names, best = started
    (block,) = (block for block in BLOCKS if re.search(f"^(import|from) {store}", block, re.M))
    with database() if store == "psycopg" else nullcontext() as address:
        names["DATABASE"] = address
        exec(block, names)
    assert names["found"] == best


@contextmanager
def database():
    """A PostgreSQL with pgvector; as root it runs as a user of its own, who needs its folder."""
    import pgserver

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        with pgserver.get_server(folder + "/pg") as server:
            yield server.get_uri()
