"""Models on a hub: a server of this machine that speaks as much of the hub's protocol as is used.

After HazyResearch/manifest#107 and huggingface/controlnet_aux#3 (a local folder is taken for a name
of the hub), and huggingface/trl#3604 (as a traceback of its validator).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from vse_scale.commands.common import chosen_model
from vse_scale.commands.export_model import export_model
from vse_scale.errors import ModelError, OutputError
from vse_scale.inputs.tokens import CaptionTokenizer
from vse_scale.model.hub import is_hub_name
from vse_scale.model.vse import VSEModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Keeps the files of repositories by name and path."""

    repositories: dict[str, dict[str, bytes]]
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, status: int, value: object = None, data: bytes = b"", **headers: str) -> None:
        body = data if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path)
        if found and found[1] in self.repositories:
            files = self.repositories[found[1]]
            if "/tree/" in path:
                listed = [
                    {"type": "file", "path": name, "size": len(data), "oid": oid(data)}
                    for name, data in files.items()
                ]
                return self.answer(200, listed)
            siblings = [{"rfilename": name} for name in files]
            about = {"id": found[1], "sha": COMMIT, "siblings": siblings, "private": False}
            return self.answer(200, about | {"tags": [], "downloads": 0, "likes": 0})
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        data = self.repositories.get(found[1], {}).get(found[2]) if found else None
        if data is None:
            missing = "RepoNotFound" if not found or found[1] not in self.repositories else "Entry"
            return self.answer(404, {"error": "Not Found"}, X_Error_Code=missing)
        return self.answer(200, data=data, ETag=f'"{oid(data)}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, sent = self.path.partition("?")[0], self.body()
        if path == "/api/repos/create":
            asked = json.loads(sent)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if self.headers.get("Authorization") != "Bearer hf_secret":
                return self.answer(401, {"error": "Invalid username or password."})
            self.repositories.setdefault(name, {})
            return self.answer(200, {"url": f"http://{self.headers['Host']}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in path:
            listed = json.loads(sent)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.answer(200, {"files": [{"path": f["path"], **regular} for f in listed]})
        if "/commit/" in path:
            files = self.repositories["/".join(path.split("/")[3:5])]
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            name = "/".join(path.split("/")[3:5])
            address = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
            return self.answer(200, {"commitUrl": address, "commitOid": COMMIT})
        return self.answer(404, {"error": "Not Found"})


def oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    handler = type("Handler", (Hub,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.repositories
    server.shutdown()
    server.server_close()


@pytest.fixture
def model_folder(small_config, tmp_path) -> Path:
    tokenizer = CaptionTokenizer.train(["a red ball", "a blue ring"] * 5, vocab_size=60)
    torch.manual_seed(0)
    model = VSEModel(small_config, tokenizer.vocab_size, tokenizer.pad_id)
    model.save_pretrained(tmp_path / "m", tokenizer)
    return tmp_path / "m"


def run(folder: Path, endpoint: str, *command: str | Path, **more: str):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "HF_TOKEN": "hf_secret"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}
    return subprocess.run(
        [sys.executable, "-P", *map(str, command)],
        env=environment, cwd=folder, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


ROUND = """
import sys
from vse_scale import VSEModel
model = VSEModel.from_pretrained(sys.argv[1])
print(model.push_to_hub("me/pushed"))
again = VSEModel.from_pretrained("me/pushed")
rows = [m.embed(texts=["a red ball", "a blue ring"]) for m in (model, again)]
assert (rows[0] - rows[1]).abs().max() <= 1e-6
"""
OPEN = """
import sys
from vse_scale import VSEModel
from vse_scale.errors import ModelError
try:
    VSEModel.from_pretrained(sys.argv[1])
except ModelError as error:
    print(error)
"""


def test_a_model_goes_to_the_hub_and_comes_back(hub, model_folder, tmp_path):
    endpoint, repositories = hub
    exported = run(
        tmp_path, endpoint, "-m", "vse_scale.cli", "export", "--model", model_folder,
        "--out", "out", "--license", "MIT", "--push", "me/exported",
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    assert f"pushed: {endpoint}/me/exported" in exported.stdout
    assert repositories["me/exported"] == {
        path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()
    }
    assert b"license: mit" in repositories["me/exported"]["README.md"]
    done = run(tmp_path, endpoint, "-c", ROUND, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{endpoint}/me/pushed\n"
    assert repositories["me/pushed"].keys() == repositories["me/exported"].keys()
    # Fetched once: without the hub it opens from the cache.
    repositories.clear()
    done = run(tmp_path, endpoint, "-c", OPEN, "me/pushed", HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_model_that_is_nowhere_is_one_line(hub, tmp_path):
    endpoint, _ = hub
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = run(tmp_path, endpoint, "-c", OPEN, "nobody/nothing", **more)
        assert len(done.stdout.splitlines()) == 1, done.stderr
        assert done.stdout.startswith("nobody/nothing: is no folder here, and the hub does not")
        assert "Traceback" not in done.stderr
        assert "hf_secret" not in done.stdout


def test_a_push_without_rights_is_one_line(hub, model_folder, tmp_path):
    endpoint, repositories = hub
    done = run(
        tmp_path, endpoint, "-m", "vse_scale.cli", "export", "--model", model_folder,
        "--out", "out", "--push", "me/exported", HF_TOKEN="hf_wrong",
    )  # fmt: skip
    assert done.returncode == 2
    (said,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert said.startswith("vse-scale: error: me/exported: cannot be written to the hub (")
    assert "hf auth login" in said
    assert "hf_wrong" not in said
    assert (tmp_path / "out" / "model.safetensors").is_file()  # the export stays
    assert repositories == {}


def test_a_failed_push_is_repeated_by_the_same_command(model_folder, tmp_path, monkeypatch):
    """LibreYOLO/libreyolo#797: after a broken upload every retry finds an output, and fails."""
    pushed: list[tuple[Path, str]] = []

    def failing(folder: Path, name: str, *, private: bool) -> str:
        pushed.append((folder, name))
        if len(pushed) == 1:
            raise OutputError(f"{name}: cannot be written to the hub")
        return "https://hub/me/exported"

    monkeypatch.setattr("vse_scale.model.hub.push", failing)
    command = {"model": model_folder, "out": tmp_path / "out", "push": "me/exported"}
    with pytest.raises(OutputError, match="cannot be written to the hub"):
        export_model(**command)
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    export_model(**command)
    assert pushed == [(tmp_path / "out", "me/exported")] * 2
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == kept
    # What is there is another export: of another card, without ONNX, of another model.
    for other in ({"license": "MIT"}, {"onnx": True}):
        with pytest.raises(OutputError, match="exists already; name a new folder, or remove it"):
            export_model(**command, **other)
    changed = VSEModel.from_pretrained(model_folder)
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    changed.save_pretrained(tmp_path / "changed", changed.tokenizer)
    with pytest.raises(OutputError, match="exists already"):
        export_model(**command | {"model": tmp_path / "changed"})
    assert len(pushed) == 2


def test_a_name_of_the_hub_says_so_and_tells_how_to_avoid_it(
    model_folder, tmp_path, monkeypatch, caplog
):
    """huggingface/transformers#13787: a folder was meant, and another model is downloaded."""
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("WARNING", "vse_scale"), pytest.raises(ModelError, match="no folder"):
        chosen_model(Path("org/mine"), None)  # HF_HUB_OFFLINE=1 is set for all tests
    (said,) = caplog.messages
    assert "there is no folder org here, so this opens the model of that name on Hugging" in said
    assert "give its absolute path; HF_HUB_OFFLINE=1 forbids fetching" in said
    absolute = tmp_path / "org" / "mine"
    assert chosen_model(absolute, None) == absolute
    with pytest.raises(ModelError, match="no such model folder"):
        VSEModel.from_pretrained(absolute)


def test_a_mistyped_folder_is_no_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/demx", "demx", "./runs", "a/b/c", "/a/b", "../x/y", "a/b c", "a\\b"):
        assert not is_hub_name(name), name
    assert is_hub_name("org/name")
