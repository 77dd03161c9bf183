"""vse-shards without the trainer's packages, and on systems other than Linux.

After rom1504/img2dataset#357 (a data tool that cannot be installed on Windows for one package),
mosaicml/streaming#246 (``fcntl``) and huggingface/datasets#6437 (backslashes in names).
"""

from __future__ import annotations

import ast
import json
import ntpath
import os
import posixpath
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vse_shards import __version__, reach, system

ROOT = Path(__file__).parents[2]
MOST_BYTES = 32_000_000  # of the packages that `pip install ./shards` downloads

# Names that modules of Python lack on Windows.
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {
    "os": {
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "fchmod", "fork"),
        *("getegid", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "killpg", "lchown"),
        *("mkfifo", "nice", "posix_fadvise", "sched_getaffinity", "setsid", "statvfs", "sysconf"),
        *("uname", "sync", "pread", "pwrite", "WNOHANG", "wait"),
    },
    "signal": {"SIGALRM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2", "alarm", "pause"},
}

WITHOUT_TRAINER = """
for name in ("torch", "deepspeed", "nvidia", "triton", "transformers", "webdataset", "vse_scale",
             "vse_kernels"):
    sys.modules[name] = None
"""
WITHOUT_POSIX = """
import multiprocessing.sharedctypes, shutil, types, zoneinfo
import vse_shards.cli  # what it needs is not at trial
for name in [name for name in sys.modules if name.startswith("vse_shards")]:
    del sys.modules[name]
for name in {modules}:
    sys.modules[name] = None
for name in ("sched_getaffinity", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "fork"):
    delattr(os, name)  # others are Python's own on this system
shutil._use_fd_functions = False  # as on Windows; else it needs O_NONBLOCK from Python 3.13 on
opened = os.open
def refusing_folders(path, *arguments, **options):
    ours = sys._getframe(1).f_globals["__name__"].startswith("vse_shards")
    if ours and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return opened(path, *arguments, **options)
os.open = refusing_folders
msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.locking = 2, lambda handle, mode, count: None
sys.modules["msvcrt"] = msvcrt
sys.platform = "win32"
"""
RUN = """
import json, os, signal, sys
{prelude}
from vse_shards.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["vse-shards", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, arguments
"""


def every_command(folder: Path, source: Path, other: Path) -> list[list[str]]:
    """Return the arguments of commands that build, look at, extend and join datasets."""
    one, two, both = (str(folder / name) for name in ("one", "two", "both"))
    rows = ["--source", "jsonl", "--workers", "1", "--input"]
    return [
        ["--version"],
        ["build", *rows, str(source), "--out", one, "--dry-run", "--limit", "3"],
        ["build", *rows, str(source), "--out", one, "--limit", "3"],
        ["build", *rows, str(source), "--out", one, "--overwrite"],
        ["build", *rows, str(other), "--out", two],
        ["append", one, *rows, str(source)],
        ["merge", one, two, "--out", both, "--prefix-ids"],
        ["verify", both, "--deep"],
        ["info", both, "--json"],
        ["preview", both, "--out", str(folder / "page.html")],
    ]


@pytest.mark.parametrize("prelude", ["without the trainer", "without POSIX"])
def test_every_command_runs(prelude, small_source, tmp_path):
    source = small_source(6)
    other = tmp_path / "other"
    shutil.copytree(source.parent, other)
    code = RUN.format(
        prelude=WITHOUT_TRAINER
        if prelude == "without the trainer"
        else WITHOUT_POSIX.format(modules=POSIX_MODULES)
    )
    commands = every_command(tmp_path, source, other / source.name)
    (tmp_path / "temporary").mkdir()  # where Windows has its locks, which stay
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"vse-shards {__version__}\n")
    assert (
        sum(split["images"] for split in json.loads(done.stdout.splitlines()[1])["splits"].values())
        == 12
    )


@pytest.mark.parametrize(
    "path",
    sorted((ROOT / "shards/vse_shards").rglob("*.py")),
    ids=lambda path: str(path.relative_to(ROOT / "shards/vse_shards")),
)
def test_names_of_one_system_are_used_in_one_module(path):
    """`vse_shards.system` alone differs between systems; the test above runs it without POSIX."""
    tree = ast.parse(path.read_text("utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & POSIX_MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} & POSIX_MODULES
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {node.attr} & POSIX_NAMES.get(node.value.id, set())
    if path.name == "system.py":
        assert found == {"fcntl", "sched_getaffinity"}
    else:
        assert not found, f"{path}: {sorted(found)}; move what differs to vse_shards/system.py"


def test_packages_that_are_imported_at_once_are_required():
    named = {"Pillow": "PIL", "pyyaml": "yaml"}
    alone = tomllib.loads((ROOT / "shards/pyproject.toml").read_text())["project"]
    required = {line.split(">=")[0] for line in alone["dependencies"]}
    found = set()
    for path in (ROOT / "shards/vse_shards").rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    found -= {"vse_shards", *sys.stdlib_module_names}
    assert found <= {named.get(name, name) for name in required}


@pytest.fixture
def windows(monkeypatch):
    """Windows' rules of paths, for functions that look at the text of a path alone."""
    for module in (reach, system):
        fake = type("os", (), {"path": ntpath, "sep": "\\"})
        monkeypatch.setattr(module, "os", fake)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("a/b.jpg", True),
        ("a\\b.jpg", True),
        ("C:/data/a.jpg", True),
        ("C:\\data\\a.jpg", True),
        ("..\\x.jpg", False),
        ("a\\..\\..\\x.jpg", False),
        ("/x.jpg", False),
        ("\\x.jpg", False),
        ("C:x.jpg", False),
        ("D:\\x.jpg", False),
        ("\\\\server\\share\\x.jpg", False),
    ],
)
def test_names_of_windows_stay_in_their_folder(windows, monkeypatch, name, inside):
    monkeypatch.setattr(reach, "_real_folder", lambda folder: folder)
    monkeypatch.setattr(reach, "_real", posixpath.normpath)
    assert reach.is_outside(reach.inside("C:/data", name)) is not inside


def test_versions_and_requirements_have_one_place():
    alone = tomllib.loads((ROOT / "shards/pyproject.toml").read_text())["project"]
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in alone["dynamic"]
    assert "version" in whole["project"]["dynamic"]
    assert whole["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "vse_shards.__version__"
    kernels = tomllib.loads((ROOT / "kernels/pyproject.toml").read_text())["project"]
    assert kernels["version"] == __version__
    assert set(kernels["dependencies"]) <= set(whole["project"]["dependencies"])
    # Whoever installs the whole gets what vse_shards needs, and the same command.
    assert set(alone["dependencies"]) <= set(whole["project"]["dependencies"])
    assert alone["scripts"]["vse-shards"] == whole["project"]["scripts"]["vse-shards"]


@pytest.mark.slow
def test_a_clean_environment_builds_and_verifies(small_source, tmp_path):
    source = small_source(10)
    packages, environment = tmp_path / "packages", tmp_path / "environment"
    # pip builds where the source is: a copy, so that the repository stays as it was.
    folder = shutil.copytree(ROOT / "shards", tmp_path / "shards", symlinks=False)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    programs = environment / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-w", packages, folder], check=True, timeout=600)
    sizes = {path.name: path.stat().st_size for path in packages.iterdir()}
    pip += ["--python", programs / "python"]
    subprocess.run(
        [*pip, "install", "--no-index", "--find-links", packages, "vse-shards"],
        check=True, timeout=600,
    )  # fmt: skip

    rows = ["--source", "jsonl", "--input", source]
    for arguments in (["build", *rows, "--out", "d"], ["verify", "d", "--deep"], ["info", "d"]):
        command = [programs / "vse-shards", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr
    listed = subprocess.run([*pip, "list"], capture_output=True, text=True, check=True).stdout
    for name in ("torch", "deepspeed", "nvidia", "triton", "webdataset", "transformers"):
        assert name not in listed.lower()
    assert sum(sizes.values()) < MOST_BYTES, sizes
