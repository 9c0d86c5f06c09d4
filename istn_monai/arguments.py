"""What stands on the command line, looked through before Fire calls a command: names, counts, help.

Fire calls a command with what it understands and complains about the rest afterwards, when the work is done.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence

from istn_monai.kinds import switch
from istn_monai.options import KINDS, SETTINGS, unknown

#: of all commands
FLAGS = {
    "--quiet": "says nothing but errors and the last line.",
    "--verbose": "also says what MONAI's engines log.",
    "--debug": "shows the traceback of a failure, too.",
}
FLAG = re.compile(r"--(?P<name>[^=]*)(?P<given>=.*)?|-(?P<short>[a-zA-Z])(?P<short_given>=.*)?", re.DOTALL)


def is_flag(word: str) -> bool:
    """Whether Fire takes a word for the name of an option; a negative number is none."""
    return word.startswith("--") or re.match("-[a-zA-Z]", word) is not None


def options_of(function: Callable[..., str]) -> tuple[list[str], bool]:
    """The names that a command takes in their order, and whether it takes settings too."""
    parameters = inspect.signature(function).parameters.values()
    takes_settings = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    without_name = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [parameter.name for parameter in parameters if parameter.kind not in without_name], takes_settings


def needed_of(function: Callable[..., str]) -> list[str]:
    """The names that a command cannot do without."""
    parameters = inspect.signature(function).parameters
    return [name for name in options_of(function)[0] if parameters[name].default is inspect.Parameter.empty]


def is_switch(name: str) -> bool:
    """Whether an option may stand without a value."""
    return switch in (KINDS.get(name), KINDS.get(name.removeprefix("no"))) or "#" in name


def full_name(word: str, names: Sequence[str], takes_settings: bool, needed: Sequence[str] = ()) -> str:
    """An option as it was typed, ``--name``, ``--name=value``, ``--noname`` or ``-n``, with its whole name.

    Of several names that begin with one letter, that counts which the command cannot do without.

    Raises:
        ValueError: if there is no such option, or several that begin with this letter.
    """
    found = FLAG.fullmatch(word)
    if found is None:
        raise ValueError(f"unknown option {word!r}: an option is written --name value")
    name = (found["name"] or "").replace("-", "_")
    if found["short"]:
        begin = [known for known in names if known.startswith(found["short"])]
        begin = [known for known in begin if known in needed] if len(begin) > 1 and set(begin) & set(needed) else begin
        if len(begin) != 1:
            which = f"{', '.join(begin)} begin so" if begin else f"options are: {', '.join(names)}"
            raise ValueError(f"option {word.split('=')[0]!r} is not clear: {which}; write --name value")
        name = begin[0]
    elif "#" in name or "::" in name:  # an entry of MONAI's configs
        return word
    known = [*names, *SETTINGS] if takes_settings else names
    if name not in known and not (name.startswith("no") and name[2:] in known):
        raise unknown("option", name, names)
    return f"--{name}{found['given'] or found['short_given'] or ''}"


def checked_arguments(function: Callable[..., str], words: Sequence[str]) -> list[str]:
    """The words of a command line after the command's name, with the options' whole names.

    Raises:
        ValueError: for an unknown option, one that is given twice, a word too many, or one that is missing.
    """
    names, takes_settings = options_of(function)
    needed = needed_of(function)
    result: list[str] = []
    given: list[str] = []
    positional = 0
    index = 0
    while index < len(words):
        word = words[index]
        if word == "-":  # Fire would take what follows for another command
            raise ValueError("'-' alone means nothing here: write --name value")
        if not is_flag(word):
            positional += 1
            result.append(word)
        else:
            word = full_name(word, names, takes_settings, needed)
            given.append(word[2:].split("=")[0])
            result.append(word)
            if "=" not in word and index + 1 < len(words) and not is_flag(words[index + 1]):
                index += 1
                result[-1] = f"{word}={words[index]}"
            elif "=" not in word and not is_switch(given[-1]):
                raise ValueError(f"{given[-1]} needs a value: --{given[-1]} VALUE")
        index += 1
    check_counts(function, given, positional)
    return result


def check_counts(function: Callable[..., str], given: Sequence[str], positional: int) -> None:
    """ValueError for an option that is given twice, for words too many, and for what is missing."""
    twice = sorted({name for name in given if given.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]} is given twice")
    parameters = inspect.signature(function).parameters
    places = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    free = [name for name in places if name not in given]
    any_number = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
    if positional > len(free) and not any_number:
        raise ValueError(f"{positional} values without a name, but only {len(free)} fit: {', '.join(free) or 'none'}")
    filled = {*given, *free[:positional]}
    missing = [name for name in needed_of(function) if name not in filled]
    if missing:
        raise ValueError(f"{missing[0]} is missing: give {' and '.join(f'--{name} ...' for name in missing)}")


def help_of(name: str, command: Callable[..., str]) -> str:
    """What Fire says of a command, without its one-letter options, of which it names some twice, and internals.

    At its end stand the flags of all commands, of which Fire does not know.
    """
    from fire import helptext, trace

    way = trace.FireTrace({name: command}, name="istn-monai")
    way.AddAccessedProperty(command, name, [name], None, None)
    text = helptext.HelpText(command, trace=way).replace("GROUP | ", "")
    text = re.sub(r"\nGROUPS\n.*?(?=\n[A-Z]+|\Z)", "", text, flags=re.DOTALL)
    text = re.sub(r"(?m)^ +(Type: .*|Default: None|Additional flags are accepted\.)\n", "", text)
    text = re.sub(r"-\w, --", "--", text).rstrip()
    return "\n".join([text, "", "OF ALL COMMANDS", *(f"    {flag}\n        {what}" for flag, what in FLAGS.items())])
