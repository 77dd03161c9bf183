"""The readers of JSON, YAML and .npy: what is good is read, all else is one quick ValueError."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import struct
import time

import numpy as np
import pytest

from vse_shards.info import parse_description
from vse_shards.json_text import MOST_DEPTH, parse_json, read_json
from vse_shards.npy import open_npy, parse_npy
from vse_shards.plain_files import read_plain
from vse_shards.yaml_text import parse_yaml, read_yaml


def refused(read, given, message):
    started = time.process_time()
    with pytest.raises(ValueError, match=message) as error:
        read(given)
    assert time.process_time() - started < 5, "seconds"
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[" * 200_000, "nested too deeply"),
        ("[" * (MOST_DEPTH + 2) + "]" * (MOST_DEPTH + 2), "nested too deeply"),
        ("[[]," * 300 + "1" + "]" * 300, "nested too deeply"),
        ('{"a":' * 300 + "1" + "}" * 300, "nested too deeply"),
        ('"\\ud800"', "half a surrogate pair"),
        ('{"\\uDC00": 1}', "half a surrogate pair"),
        (b'"\xff"', "utf-8"),
        ("1" * 5000, "4300 digits"),
        ("{} {}", "Extra data"),
    ],
)
def test_json_that_is_refused(text, message):
    """The limit of digits is python/cpython#95778."""
    refused(parse_json, text, message)


@pytest.mark.parametrize("depth", [1, MOST_DEPTH])
def test_json_that_is_read(depth):
    nested = "[" * depth + "]" * depth
    assert parse_json(nested) == json.loads(nested)
    for text in ('"\\ud83d\\ude00"', '"\\\\ud800"', '{"a": [1, 2.5, null]}', '"\U0001f600"'):
        assert parse_json(text) == json.loads(text) == parse_json(text.encode())
    assert parse_json('"\\ud800"', surrogates=True) == "\ud800"


def bomb(levels, width):
    lines = ["a0: &a0 [x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(9, 9), "aliases stand for more"),
        (bomb(9, 9).replace("a8: &a8", "<<: &m"), "aliases stand for more|merging"),
        (bomb(100, 1), "deeper"),
        ("a: &a [*a]", "leads to what holds it"),
        ("[" * 60, "nested deeper|nesting"),
        ("[" * 100_000, "nested deeper|nesting"),
        ("a: 1" + ":1" * 100_000, "100,001 characters|200,001 characters"),
        ("!!python/object/apply:os.system [id]", "line 1: could not determine a constructor"),
        ("!!int ''", "not of its tag"),
        ("!!timestamp x", "not of its tag"),
        ("2001-99-99", "month must be"),
        ("a: b: c", "line 1: mapping values"),
        ("? [a]\n: b", "unhashable key"),
        (b"a: \xff", "invalid|unacceptable"),
        ("a\0b", "unacceptable character"),
        ("x" * (4 << 20) + "x", "limit 4,194,304"),
    ],
)
def test_yaml_that_is_refused(text, message):
    """Bombs as in yaml/pyyaml#235 and kislyuk/yq#134: PyYAML leaves the limit to its caller."""
    refused(parse_yaml, text, message)


def test_yaml_that_is_read():
    """Aliases and merge keys, as people share parts of a configuration by them."""
    text = "a: &x {b: 2, c: [1e-3, yes]}\nd: *x\ne: {<<: *x, b: 3}\n"
    shared = {"b": 2, "c": ["1e-3", True]}
    assert parse_yaml(text) == {"a": shared, "d": shared, "e": shared | {"b": 3}}
    assert parse_yaml("") is None
    assert parse_yaml("# nothing") is None


def npy(array, **header):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    if not header:
        return file.getvalue()
    described = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | header
    text = (repr(described) + " " * 200)[: 118 - 1] + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + array.tobytes()


GOOD = np.arange(6, dtype="<f4").reshape(2, 3)
ARRAYS = {
    "strings": (npy(np.array(["a"])), "holds <U1, not numbers"),
    "objects": (npy(np.array([None])), "holds object, not numbers"),
    "records": (npy(np.zeros(2, "f4,i4")), "not numbers"),
    "dates": (npy(np.array(["2001-01-01"], "M8[D]")), "not numbers"),
    "complex": (npy(np.zeros(2, "c8")), "not numbers"),
    "long doubles": (npy(np.zeros(2, np.longdouble)), "at most 64 bits"),
    "cut": (npy(GOOD)[:-1], "24 bytes of numbers, shape .* 23 follow"),
    "a lie": (npy(GOOD, shape=(10**12, 3)), "12,000,000,000,000 bytes"),
    "a huge lie": (npy(GOOD, shape=(10**30, 10**30)), "its header says"),
    "negative": (npy(GOOD, shape=(-1, 3)), "its header says"),
    "no shape": (npy(GOOD, shape="x"), "header|shape"),
    "no dtype": (npy(GOOD, descr="quux"), "descr|dtype|header"),
    "a call": (npy(GOOD)[:10] + b"__import__('os').getcwd()\n".ljust(118), "malformed|Cannot"),
    "an archive": (b"PK\x03\x04" + b"\0" * 40, "magic string"),
    "empty": (b"", "magic|EOF"),
    "half a header": (npy(GOOD)[:20], "EOF|header"),
    "another version": (b"\x93NUMPY\x03\x00" + npy(GOOD)[8:], "version 3.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_refused(name, tmp_path):
    """CVE-2019-6446 (pickles in .npy); headers that lie or are cut, as in numpy/numpy#28330."""
    data, message = ARRAYS[name]
    refused(parse_npy, data, message)
    (tmp_path / "x.npy").write_bytes(data)
    refused(open_npy, tmp_path / "x.npy", message)


def test_numbers_of_another_machine(tmp_path):
    """They are read where they are copied anyway, and mapped where the caller converts them."""
    data = npy(GOOD.astype(">f4"))
    (tmp_path / "x.npy").write_bytes(data)
    refused(open_npy, tmp_path / "x.npy", re.escape('array.astype("<f4")'))
    for found in (parse_npy(data), open_npy(tmp_path / "x.npy", any_order=True)):
        np.testing.assert_array_equal(found, GOOD)
    assert parse_npy(data).dtype.isnative


@pytest.mark.parametrize(
    "array",
    [GOOD, np.asfortranarray(GOOD), np.zeros((0, 3), "f4"), GOOD.astype("i8"), np.float32(1)],
)
def test_arrays_that_are_read(array, tmp_path):
    np.save(tmp_path / "x.npy", array)
    for found in (open_npy(tmp_path / "x.npy"), parse_npy((tmp_path / "x.npy").read_bytes())):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == np.asarray(array).dtype
    assert parse_npy((tmp_path / "x.npy").read_bytes()).flags.writeable


@pytest.mark.parametrize("read", [read_plain, read_json, read_yaml, open_npy])
def test_regular_files_alone_are_read(read, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    refused(read, tmp_path / "fifo", "is a pipe, not a regular file")
    refused(read, "/dev/zero", "is a device, not a regular file")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="No such device"):
            read(tmp_path / "socket")
    with pytest.raises(IsADirectoryError):
        read(tmp_path)


def test_a_file_above_the_limit_is_not_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    refused(read_json, tmp_path / "large", "has 1,099,511,627,776 bytes, limit 268,435,456")
    (tmp_path / "link").symlink_to(tmp_path / "small")
    (tmp_path / "small").write_text("3")
    assert read_json(tmp_path / "link") == 3


DESCRIBED = {"image_id": 1, "captions": [], "width": 4, "height": None}


@pytest.mark.parametrize(
    "change", [{"width": "4"}, {"height": 1.5}, {"image_id": None}, {"captions": ["a"]}, "width"]
)
def test_descriptions_that_no_build_writes_are_refused(change):
    assert parse_description(json.dumps(DESCRIBED).encode()) == DESCRIBED
    if isinstance(change, str):
        changed = {key: value for key, value in DESCRIBED.items() if key != change}
    else:
        changed = DESCRIBED | change
    with pytest.raises(ValueError, match=r"its (captions|image_id|width)"):
        parse_description(json.dumps(changed).encode())
