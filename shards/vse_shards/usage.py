"""Usage errors of a command line: each one line with the option, its value and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import typer

from vse_shards.errors import CommandError
from vse_shards.notes import MAX_NAME, shown
from vse_shards.terminal import tell_page

# typer raises click's errors up to release 0.20, and its own copies of them later. The classes
# below this base have the same names and attributes in both.
_UsageError: Any = typer.BadParameter.__base__


def run(app: typer.Typer, program: str, arguments: list[str]) -> int:
    """Run the command that the arguments give, and return its exit code.

    Args:
        app: the program's commands.
        program: its name, for messages and help texts.
        arguments: those of the command line, without the program.

    Raises:
        CommandError: the arguments name no command, or do not fit it.
    """
    try:
        code = app(args=arguments, prog_name=program, standalone_mode=False)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            if text := error.format_message():
                tell_page(text)
            return CommandError.exit_code
        raise CommandError(_described(error, program, arguments)) from error
    return code if isinstance(code, int) else 0


def _described(error: Any, program: str, arguments: list[str]) -> str:
    """Return the message of click's error, in one line of fewer words."""
    first = next((word for word in arguments if not word.startswith("-")), "")
    # An option without its value comes with no context.
    path = error.ctx.command_path if error.ctx else f"{program} {first}".strip()
    command = path.removeprefix(program).strip() or program
    help_of = f"see {path} --help"
    kind, message = type(error).__name__, str(error.message).rstrip(".")
    if kind == "NoSuchOption":
        return f"{command} has no option {_unknown_option(error, help_of)}"
    if kind == "MissingParameter":
        return f"{command} needs {_missing(error)}; {help_of}"
    if kind == "BadOptionUsage":
        needs = "needs a value" if "requires" in message else "takes no value"
        return f"{command} {error.option_name} {needs}; {help_of}"
    if kind == "BadParameter" and error.param is not None:
        return f"{command} {_wrong_value(error.param, message, arguments)}"
    if message.startswith("No such command"):
        hint = _nearest(first, error.ctx.command.commands)
        return f"there is no command {shown(first)}; {hint or help_of}"
    if extra := re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", message, re.S):
        return f"too many arguments for {command}: {shown(extra[1])}; {help_of}"
    return f"{command}: {message[:1].lower()}{message[1:]}; {help_of}"


def _unknown_option(error: Any, help_of: str) -> str:
    """Return the option's name with the remedy."""
    command, name = error.ctx.command, error.option_name
    known = [option for parameter in command.params for option in parameter.opts]
    if "." in name and any(parameter.nargs == -1 for parameter in _arguments_of(command)):
        setting = name.lstrip("-")
        return f"{shown(name)}; write {shown(setting)}=VALUE, without dashes"
    return f"{shown(name)}; {_nearest(name, known) or help_of}"


def _missing(error: Any) -> str:
    """Return all that is missing: click names the first, and has read what was given before it."""
    absent = [
        parameter
        for parameter in error.ctx.command.params
        if parameter.required and parameter.name not in error.ctx.params
    ]
    names = [_name(parameter) for parameter in absent] or [_name(error.param)]
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    return str(parameter.opts[0])


def _wrong_value(parameter: Any, message: str, arguments: list[str]) -> str:
    """Return the parameter, its value and the limit that click or pydantic states."""
    limit = message.removeprefix("Input ").split(", unable")[0]
    if limit == message:  # click's own, which starts with the value
        return f"{_name(parameter)}: {message}"
    return f"{_name(parameter)} {_given(parameter, arguments)}".rstrip() + f" {limit}"


def _given(parameter: Any, arguments: list[str]) -> str:
    """Return the value that an option was given, the last one if it was given several times."""
    for number, word in reversed(list(enumerate(arguments))):
        option, equals, value = word.partition("=")
        if option in parameter.opts:
            return shown(value if equals else "".join(arguments[number + 1 : number + 2]))
    return ""


def _arguments_of(command: Any) -> list[Any]:
    return [known for known in command.params if known.param_type_name == "argument"]


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return a question for the nearest of the known names; "" if none is near."""
    bare = {option.lstrip("-"): option for option in known}
    near = difflib.get_close_matches(name.lstrip("-")[:MAX_NAME], bare, 1)
    return f"did you mean {bare[near[0]]}?" if near else ""
