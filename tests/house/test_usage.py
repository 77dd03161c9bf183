"""Wrong command lines of both programs: one line each, exit code 2; and helps that can be read."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
import typer

from vse_scale import cli as vse_scale
from vse_scale.training import __main__ as rank
from vse_shards import cli as vse_shards

PROGRAMS = {"vse-scale": vse_scale, "vse-shards": vse_shards}
COMMANDS = [
    (program, name)
    for program, module in PROGRAMS.items()
    for name in typer.main.get_command(module.app).commands
]


@pytest.fixture
def start(capfd, monkeypatch):
    """Run a command line in this process; return exit code, standard output and error."""

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as ended:
            PROGRAMS[sys.argv[0]].main()
        return int(ended.value.code or 0), *capfd.readouterr()

    return run


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("vse-shards build --colum x", "build has no option --colum; did you mean --column?"),
        ("vse-scale train --zork", "train has no option --zork; see vse-scale train --help"),
        ("vse-scale train --confg=x", "train has no option --confg; did you mean --config?"),
        ("vse-scale -x", "vse-scale has no option -x; see vse-scale --help"),
        (
            "vse-scale train --config small --optim.lr 1",
            "train has no option --optim.lr; write optim.lr=VALUE, without dashes",
        ),
        ("vse-scale trian", "there is no command trian; did you mean train?"),
        ("vse-shards zork --out x", "there is no command zork; see vse-shards --help"),
        ("vse-scale train a.yaml", "train needs --config; see vse-scale train --help"),
        (
            "vse-shards build --input x",
            "build needs --source and --out; see vse-shards build --help",
        ),
        (
            "vse-shards build",
            "build needs --source, --input and --out; see vse-shards build --help",
        ),
        ("vse-shards verify", "verify needs DIR; see vse-shards verify --help"),
        ("vse-shards verify a b", "too many arguments for verify: b; see vse-shards verify --help"),
        (
            "vse-scale launch-files 'a b' c d",
            "too many arguments for launch-files: c d; see vse-scale launch-files --help",
        ),
        ("vse-scale train --config", "train --config needs a value; see vse-scale train --help"),
        ("vse-shards info d --json=3", "info --json takes no value; see vse-shards info --help"),
        # A terminal shows what steers it by its numbers.
        (
            "vse-scale a\x1b]0;x\x07",
            "there is no command a\\x1b]0;x\\x07; see vse-scale --help",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(line, said, start):
    code, out, error = start(line)
    assert (code, out) == (2, "")
    assert error == f"{line.split()[0]}: error: {said}\n"


@pytest.mark.parametrize(
    ("line", "named", "limit"),
    [
        ("vse-scale serve --index d --port many", "serve --port", "many .*integer|'many'.*integer"),
        ("vse-scale serve --index d --port=70000", "serve --port", "70000 .*65535"),
        (
            "vse-scale simulate --config c --nodes 2 --node-mb-s fast --step-ms 1",
            "simulate --node-mb-s", "fast .*number|'fast'.*float",
        ),
        (
            "vse-shards build --source jsonl --input i --out o --quality 900",
            "build --quality", "900 .*100",
        ),
        ("vse-shards demo --out o --images=-1", "demo --images", "-1 .*1"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_limit(line, named, limit, start):
    """The words of the limit are click's or pydantic's, as typer's release has them."""
    code, out, error = start(line)
    assert (code, out) == (2, "")
    assert re.fullmatch(f"{line.split()[0]}: error: {named}:? (?:{limit}).*\n", error)
    assert len(error) <= 81


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_command_refuses_what_it_does_not_know(program, name, start):
    assert start(f"{program} {name} --zork") == (
        2, "", f"{program}: error: {name} has no option --zork; see {program} {name} --help\n",
    )  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_alone_shows_its_help(program, start):
    code, out, error = start(program)
    assert code in (0, 2)  # 0 up to click 8.1
    assert error == ""
    asked, shown, _ = start(f"{program} --help")
    assert asked == 0
    assert out.strip() == shown.strip()
    # Every command with its whole first sentence, and no boxes.
    assert "..." not in shown.split("Commands:")[1]
    assert shown.isascii()


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_help_has_an_example(program, name):
    command = typer.main.get_command(PROGRAMS[program].app).commands[name]
    beginning, arguments = f"Example: {program} {name} ", shlex.split(command.epilog)
    assert command.epilog.startswith(beginning)
    assert command.make_context(name, arguments[3:])  # its options exist


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: --config"),
        (["--config", "c", "--zork\n"], "unrecognized arguments: --zork"),
        (["--config", "c", "--local_rank", "x"], "argument --local_rank: invalid int value: 'x'"),
    ],
)
def test_a_rank_that_a_launcher_starts_says_it_in_one_line(arguments, said, capfd, monkeypatch):
    told = f"vse-scale: error: {said}; see python -m vse_scale.training --help\n"
    monkeypatch.setattr(sys, "argv", ["launch/train.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        rank.main()
    assert capfd.readouterr() == ("", told)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        rank.main()
    assert capfd.readouterr() == ("", "")  # the main rank alone


def test_a_traceback_on_demand(monkeypatch, start):
    monkeypatch.setattr(sys, "argv", ["vse-shards", "build", "--zork", "--debug"])
    with pytest.raises(Exception, match="build has no option --zork"):
        vse_shards.main()


def test_vse_scale_starts_without_libraries_of_numbers() -> None:
    # `--help` and a wrong command line are to answer at once.
    look = (
        "import sys, vse_scale.cli; print({'numpy', 'torch', 'PIL', 'fsspec'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=300)
    assert ran.stdout == "set()\n", ran.stderr
