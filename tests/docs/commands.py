"""The commands of the documents: what bash makes of them, which run here, what they must fit."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import typer
import yaml
from documents import ROOT, Block, blocks

from vse_scale import cli as vse_scale_cli
from vse_scale.config import Config
from vse_shards import cli as vse_shards_cli

APPS = {"vse-scale": vse_scale_cli, "vse-shards": vse_shards_cli}

# Commands that no test runs as they stand, each with the reason. All other commands of the
# documents run in a prepared folder. These here are read by their programs' own parsers, and what
# they name must exist.
NOT_RUN = {
    "make *": "installs, or takes minutes; `make test` is what runs this",
    "deepspeed --hostfile *": "needs several machines; tests/launch/test_hosts.py makes two",
    "sbatch *": "needs SLURM; tests/launch/test_slurm.py runs the scripts against stand-ins",
    "docker compose *": "needs Docker; tests/watch/test_monitoring.py checks the files",
    "vse-scale train * --config launch/recipes/demo.yaml *": "minutes; `make demo` does it",
    "vse-scale train * telemetry.observers=*": "needs their packages, as tests/watch does",
    "vse-shards build --source karpathy *": "needs COCO; tests/shards/test_sources.py reads some",
    "vse-shards build --source precomp *": "needs COCO; tests/shards/test_sources.py reads some",
    "vse-scale serve *": "ends when it is stopped; tests/retrieval/test_serve.py asks it",
    "vse-scale report * --follow": "until a run is over; tests/report/test_follow.py follows one",
    "vse-scale plan * --measure *": "minutes; tests/planning/test_plan_command.py measures",
    "vse-scale index *": "needs faiss; tests/retrieval/test_approximate.py makes some",
    "vse-scale embed * --engine ray": "needs Ray; tests/retrieval/test_embed_by_ray.py has one",
    "vse-scale simulate *": "a minute; tests/planning/test_simulate.py runs small ones",
    "vse-scale bench*": "minutes; tests/bench/test_bench_command.py runs rehearsals",
    "python -m vse_scale.bench.page *": "rewrites a page; tests/bench/test_rows.py checks it",
    "python tests/planning/scaling_error.py": "minutes; tests/planning/test_error.py soaks in it",
    "python tests/scaling/*": "minutes; tests/scaling/test_scripts.py runs small sizes",
    "pytest *": "this is pytest",
    "*python *tests/kernels/*": "minutes of compiling; tests/kernels/test_compiled.py does it",
    "tests/gpu/run.sh": "minutes, as its steps' own tests",
    "python shards/benchmarks/build_speed.py *": "needs photos, and img2dataset's environment",
    "python shards/benchmarks/former_speed.py *": "needs photos, and a former commit",
}
_IGNORED = ("sleep",)  # of the shell, in loops around commands


@dataclass(frozen=True)
class Call:
    """One command of a block as the shell would start it."""

    place: str
    arguments: tuple[str, ...]

    @property
    def program(self) -> str:
        return self.arguments[0].removeprefix(".venv/bin/")

    def __str__(self) -> str:
        return shlex.join([self.program, *self.arguments[1:]])


def is_shell(block: Block) -> bool:
    """Whether a block holds commands; a block of no language does."""
    return block.language in ("", "bash", "sh")


def reason_not_to_run(call: Call) -> str | None:
    return next((why for form, why in NOT_RUN.items() if _fits(call, form)), None)


def _fits(call: Call, form: str) -> bool:
    return fnmatchcase(" ".join([call.program, *call.arguments[1:]]), form)


def unused_forms(calls: list[Call]) -> list[str]:
    """The entries of ``NOT_RUN`` that are about no command."""
    return [form for form in NOT_RUN if not any(_fits(call, form) for call in calls)]


# Every file of the repository is this program in the folder where bash looks at a block.
_RECORD = """printf '%s\\0' "$@" $'\\n' >>"$RECORD\""""
_RECORDER = f'#!/bin/bash\nset -- "$0" "$@"\n{_RECORD}\n'
_PROGRAMS = (".venv/bin/vse-scale", ".venv/bin/vse-shards", "OTHER/bin/python", "ENV/bin/python")
_FOLDERS = ("docs", "kernels", "launch", "shards", "tests", "vse_scale")


def record_folder(folder: Path) -> Path:
    """Make the folder in which `calls_of` lets bash start recorders in place of programs."""
    recorder = folder / "recorder"
    recorder.write_text(_RECORDER)
    recorder.chmod(0o755)
    found = [path for name in _FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()]
    names = [str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts]
    for name in (*_PROGRAMS, *names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(recorder)
    return folder


def calls_of(block: Block, folder: Path) -> list[Call]:
    """Let bash read a block: its quotes, comments, loops and globs are then its own affair."""
    record = folder / "record"
    record.write_bytes(b"")
    # A name without a slash is found nowhere, and handed to this function.
    handler = f"command_not_found_handle() {{ {_RECORD}; }}"
    done = subprocess.run(
        ["/bin/bash", "-u", "-c", f"{handler}\n{block.text}"],
        cwd=folder,
        env={"PATH": str(folder / "no-programs"), "RECORD": str(record)},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, ""), (
        f"{block.place}: bash cannot read this: {done.stderr.strip()}; if the block is no command, "
        "mark it as ```text"
    )
    starts = record.read_text().split("\0\n\0")[:-1]
    calls = [Call(block.place, tuple(start.split("\0"))) for start in starts]
    return [call for call in calls if call.program not in _IGNORED]


def calls_in(path: str, folder: Path) -> list[Call]:
    return [call for block in blocks(path) if is_shell(block) for call in calls_of(block, folder)]


def check(call: Call) -> None:
    """Fail where a program would not take a command, or a key or file in it does not exist."""
    program = Path(call.program).name
    checker = _CHECKERS.get(program)
    assert checker is not None, (
        f"{call.place}: `{call}` is unknown to the tests. If it is a command, add a checker for "
        f"{program}, and an entry of NOT_RUN with the reason, to tests/docs/commands.py; if not, "
        "mark the block as ```text"
    )
    try:
        checker(list(call.arguments[1:]))
    except (Exception, SystemExit) as error:
        said = getattr(error, "message", None) or error  # click's errors keep it there
        raise AssertionError(f"{call.place}: `{call}`: {said}") from error


def check_overrides(arguments: list[str]) -> None:
    """Check `--config FILE section.key=value ...`; the recipe must exist and take them."""
    parser = argparse.ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--config", default=None)
    known, rest = parser.parse_known_args(arguments)
    overrides = [text for text in rest if not text.startswith("-") and "=" in text]
    if known.config is None:
        return
    if known.config.startswith("launch/"):
        Config.load(ROOT / known.config, overrides)
    else:  # the reader's own
        Config.load(ROOT / "launch" / "recipes" / "small.yaml", overrides)


def _app(name: str, arguments: list[str]) -> None:
    group = typer.main.get_command(APPS[name].app)
    command, *rest = arguments
    assert command in group.commands, f"no command {command}"
    group.commands[command].make_context(command, list(rest))  # empties it
    if command in ("train", "doctor", "plan"):
        check_overrides(rest)


def _deepspeed(arguments: list[str]) -> None:
    from deepspeed.launcher.runner import parse_args

    with patch.dict(os.environ):
        known = parse_args(arguments)
    assert known.user_script == "launch/train.py", f"starts {known.user_script}"
    check_overrides(known.user_args)


def _sbatch(arguments: list[str]) -> None:
    assert arguments[:1] == ["--nodes"], "the known options of sbatch are: --nodes"
    script, run, config, *overrides = arguments[2:]
    assert f"sbatch --nodes 2 {script} " in (ROOT / script).read_text(), "not as in the script"
    assert run.startswith("runs/")
    check_overrides(["--config", config, *overrides])


def _make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    known = re.findall(r"^([\w-]+):", makefile, re.MULTILINE)
    settings = re.findall(r"^(\w+) \?=", makefile, re.MULTILINE)
    for argument in arguments:
        name, given, _ = argument.partition("=")
        assert name in (settings if given else known), f"the Makefile has no {name}"


def _pytest(arguments: list[str]) -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("-m", default="slow")
    parser.add_argument("paths", nargs="*")
    known = parser.parse_args(arguments)
    assert f'"{known.m}: ' in settings, f"pyproject.toml has no marker {known.m}"
    for path in known.paths:
        assert (ROOT / path).exists(), f"{path} does not exist"


def _python(arguments: list[str]) -> None:
    if arguments[:2] == ["-m", "pytest"]:
        return _pytest(arguments[2:])
    if arguments[0] == "-m":
        assert find_spec(arguments[1]), f"there is no module {arguments[1]}"
        return None
    script = ROOT / arguments[0]
    assert script.is_file(), f"{arguments[0]} does not exist"
    options = [argument for argument in arguments if argument.startswith("--")]
    for option in options:
        assert f'"{option}"' in script.read_text(), f"{arguments[0]} has no {option}"
    return None


def _docker(arguments: list[str]) -> None:
    command, flag, file, verb = arguments
    assert (command, flag, verb) == ("compose", "-f", "up")
    assert "services" in yaml.safe_load((ROOT / file).read_text())


def _script(arguments: list[str]) -> None:
    assert not arguments, "takes no arguments in the documents"


_CHECKERS = {
    "vse-scale": lambda arguments: _app("vse-scale", arguments),
    "vse-shards": lambda arguments: _app("vse-shards", arguments),
    "deepspeed": _deepspeed,
    "sbatch": _sbatch,
    "make": _make,
    "pytest": _pytest,
    "python": _python,
    "docker": _docker,
    "run.sh": _script,
}


def run_app(call: Call) -> int:
    """Run one of our commands in this process, as its entry point would; return the exit code."""
    with patch.object(sys, "argv", [call.program, *call.arguments[1:]]):
        try:
            APPS[call.program].main()
        except SystemExit as left:
            return left.code if isinstance(left.code, int) else int(left.code is not None)
    return 0


def start(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder``, as a reader does in the repository's."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
