"""Secrets of URLs, which people write into commands (pangeo-forge/pangeo-forge-recipes#263)."""

from __future__ import annotations

import base64
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vse_shards import remote
from vse_shards.errors import AccessError, StorageError
from vse_shards.masking import masked, masked_values
from vse_shards.storage import read_bytes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:hunter2@host/a", "http://***@host/a"),
        ("no such s3://AKIA:hunter2@bucket/a; check", "no such s3://***@bucket/a; check"),
        ("https://host/a?X-Amz-Signature=hunter2&x=1", "https://host/a?X-Amz-Signature=***&x=1"),
        ("https://host/a?sv=1&sig=hunter2", "https://host/a?sv=1&sig=***"),
        *(
            (f"https://host/a?x=1&{name}=hunter2&y=2", f"https://host/a?x=1&{name}=***&y=2")
            for name in ("auth", "pass", "pw", "jwt", "sas", "hmac", "code", "hdnts", "apikey")
        ),
        ("https://host/a#access_token=hunter2", "https://host/a#access_token=***"),
        ("http://user:hun@ter2@host/a", "http://***@host/a"),
        ("https://host/a?encoding=utf-8&codec=av1", "https://host/a?encoding=utf-8&codec=av1"),
        ("s3://AKIA:hun/ter2+/=@bucket/a; check", "s3://***@bucket/a; check"),
        *(
            (kept, kept)
            for kept in (
                "http://host/a@b.jpg",
                "http://host:8080/a@b.jpg",
                "http://[::1]:80/a@b.jpg",
                "file://C:/me@home/a.jpg",
                "zip://a::s3://bucket/b@c",
                "a://b: c/d@e",
            )
        ),
        ("s3://bucket/a", "s3://bucket/a"),
        ("a: b@c", "a: b@c"),
    ],
)
def test_secrets_are_masked_and_nothing_else(text, shown):
    assert masked(text) == shown
    assert masked(shown) == shown


@pytest.mark.parametrize("text", ["x://a:b/" * 40_000, "x://a?" + "sig" * 60_000])
def test_a_strangers_text_takes_no_time(text):
    began = time.process_time()
    assert masked(text) == text
    assert time.process_time() - began < 10


def test_secrets_are_masked_at_any_depth():
    content = {"data": {"path": ["http://a:b@c/d", "/e"], "gb": 1.5}, "none": None}

    assert masked_values(content) == {
        "data": {"path": ["http://***@c/d", "/e"], "gb": 1.5},
        "none": None,
    }


@pytest.mark.parametrize("name", ["verify", "info", "preview"])
def test_commands_that_want_a_folder_say_so_of_a_url(name, command):
    out = ["--out", "page.html"] if name == "preview" else []
    done = command(name, "http://user:hunter2@127.0.0.1:9/set", *out)

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "http://***@127.0.0.1:9/set: is remote" in line
    assert "copy the dataset there first" in line


def test_a_masked_url_is_not_opened():
    with pytest.raises(OSError, match="write it into the URL again"):
        read_bytes("http://***@127.0.0.1:9/set/manifest.json")


@pytest.fixture
def guarded():
    """The address of a web server that gives its file to ``ada`` with the password ``hun/ter2``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Authorization", "").removeprefix("Basic ")
            allowed = base64.b64decode(asked) == b"ada:hun/ter2"
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(b"bytes" if allowed else b"")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("protocol", ["http", "ftp", "s3", "memory"])
def test_a_password_that_ends_at_its_slash_is_not_told(protocol, guarded):
    """The parsers' own messages have one half of it, as the name of a bucket, or as a port."""
    with pytest.raises(OSError, match="write %2F in its place") as refused:
        read_bytes(f"{protocol}://ada:hun/ter2@{guarded}/a")
    assert "hun" not in f"{refused.value} {refused.value.filename}"
    if protocol == "http":  # the remedy
        assert read_bytes(f"http://ada:hun%2Fter2@{guarded}/a") == b"bytes"


def test_no_message_of_a_build_shows_a_password(command, tmp_path, write_rows):
    rows = write_rows([{"image": "a.jpg", "captions": ["w"]}], {})
    cases = [
        ["--input", rows, "--out", f"nosuch://user:hunter2@{tmp_path.name}"],
        ["--input", rows, "--images", f"nosuch://user:hunter2@{tmp_path.name}", "--out", "o"],
        ["--input", "s3://AKIA:hunter2/hunter2@bucket/rows.jsonl", "--out", "o"],
        ["--input", "s3://AKIA:hunter2@bucket/rows.jsonl", "--out", "o"],
        ["--input", rows, "--out", "gs://AKIA:hunter2@bucket/o"],
        ["--input", rows, "--out", "ftp://user:hunter2/hunter2@127.0.0.1:9/o"],
    ]
    for arguments in cases:
        done = command("build", "--source", "jsonl", *arguments, "--workers", "1")
        assert done.returncode == 2, done.stderr
        assert "hunter2" not in done.stderr
        assert "Traceback" not in done.stderr


def test_a_key_in_the_url_of_a_bucket_is_answered_with_its_place():
    with pytest.raises(OSError, match=r"s3 takes no key from a URL; put it into AWS_ACCESS_KEY_ID"):
        read_bytes("s3://AKIA:hunter2@bucket/a")
    with pytest.raises(OSError, match=r"gs takes no key .* GOOGLE_APPLICATION_CREDENTIALS"):
        read_bytes("gs://AKIA:hunter2@bucket/a")


@pytest.mark.parametrize("written", ["AKIA:hunter2", "AKIA:hunter%32"])
def test_the_words_of_a_storage_show_no_part_of_its_url(written, monkeypatch):
    """As botocore's, which takes all before the slash for the name of a bucket."""
    monkeypatch.setattr(remote, "RETRY_SECONDS", 0.0)

    def request():
        raise ValueError('Invalid bucket name "AKIA:hunter2@bucket"')

    with pytest.raises(StorageError, match=r'Invalid bucket name "\*\*\*@bucket"'):
        remote.attempt(f"s3://{written}@bucket/a", request)


@pytest.mark.parametrize("name", ["ParamValidationError", "HfUriError"])
def test_an_address_that_is_none_is_not_tried_again(name):
    """As of a bucket's or a repository's name that cannot be one; by botocore and Hugging Face."""
    tried = []

    def request():
        tried.append(1)
        raise type(name, (ValueError,), {})("no such name: AKIA:hunter2")

    with pytest.raises(AccessError, match=r"no such name: \*\*\*; correct the URL$"):
        remote.attempt("hf://AKIA:hunter2@name/a", request)
    assert len(tried) == 1


def test_the_line_of_a_retry_shows_no_secret(monkeypatch, capfd):
    monkeypatch.setattr(remote, "QUIET_SECONDS", 0.0)
    answers = [ConnectionResetError("http://user:hunter2@host/a: reset"), b"bytes"]

    def request():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert remote.attempt("http://user:hunter2@host/a", request) == b"bytes"
    shown = capfd.readouterr()
    assert "http://***@host/a" in shown.out + shown.err
    assert "hunter2" not in shown.out + shown.err
