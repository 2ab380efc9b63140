"""From a file to a ``FarmConfig``, or to every problem in it at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlbfarm.config.crosscheck import crosscheck, warnings
from nlbfarm.config.draft import Draft, read
from nlbfarm.config.keys import load_keys
from nlbfarm.config.lines import line_numbers, line_of
from nlbfarm.config.notify import load_targets
from nlbfarm.config.root import FarmConfig
from nlbfarm.config.unreadable import why_unreadable
from nlbfarm.errors import ConfigError, Problem

__all__ = ["Examined", "examine", "load"]

_LARGEST_FILE = 4 * 1024 * 1024
_POSITION = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True)
class Examined:
    """What was found in a configuration file.

    Args:
        config: The configuration, if there is no problem.
        draft: As much of it as can be read; ``None`` if the file is no TOML.
        problems: All of them, in the order of the file.
        warnings: What is allowed but probably not meant.
    """

    config: FarmConfig | None
    draft: Draft | None
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    lines: Mapping[str, int]

    def located(self, problems: Iterable[Problem]) -> tuple[Problem, ...]:
        """Return ``problems`` in the order of the file, each with its line and what it is about."""
        return _located(problems, self.draft, self.lines)


def load(path: Path) -> FarmConfig:
    """Read the configuration of a farm.

    Relative names of files in it start at its directory. The key file and ``notify.targets_file`` are looked
    at, too.

    Args:
        path: The TOML file.

    Raises:
        ConfigError: With every problem, each with its path: ``nodes[1].id`` is the second
            ``[[nodes]]`` table (positions count from 0, as in most programs that print paths).
    """
    examined = examine(path)
    if examined.config is None:
        raise ConfigError(str(path), examined.problems)
    return examined.config


def examine(path: Path) -> Examined:
    """Read ``path`` and return what is right and what is wrong in it; changes and raises nothing."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            return _hopeless(Problem("", "is too long for a configuration"))
        text = content.decode()
        data: dict[str, Any] = tomllib.loads(text)
    except FileNotFoundError:
        return _hopeless(Problem("", "there is no such file"))
    except OSError as error:
        return _hopeless(Problem("", why_unreadable(path, error)))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return _hopeless(Problem(f"line {line}", "is not UTF-8 text"))
    except tomllib.TOMLDecodeError as error:
        return _hopeless(_syntax(str(error)))
    except RecursionError:
        return _hopeless(Problem("", "is nested too deeply"))

    draft = read(data, path.absolute().parent)
    problems = [*draft.problems, *crosscheck(draft)]
    problems += _file_problems(draft, "farm", "key_file", load_keys)
    problems += _file_problems(draft, "notify", "targets_file", load_targets)
    lines = line_numbers(text)
    config = None if problems else _assemble(draft)
    return Examined(
        config,
        draft,
        _located(problems, draft, lines),
        _located(warnings(draft), draft, lines),
        lines,
    )


def _file_problems(draft: Draft, table: str, key: str, read: Callable[[Path], object]) -> Iterator[Problem]:
    """Yield what is wrong with a file that the configuration names."""
    entry = draft.singles[table]
    path = entry.get(key)
    if path is None:
        return
    try:
        read(path)
    except ConfigError as error:
        yield from (Problem(entry.at(key), f"{path}: {one}") for one in error.problems)


def _assemble(draft: Draft) -> FarmConfig:
    parts: dict[str, Any] = {key: entry.model for key, entry in draft.singles.items()}
    parts |= {key: tuple(entry.model for entry in entries) for key, entries in draft.lists.items()}
    return FarmConfig(**parts)


def _hopeless(problem: Problem) -> Examined:
    return Examined(None, None, (problem,), (), {})


def _syntax(message: str) -> Problem:
    position = _POSITION.search(message)
    what = _POSITION.sub("", message)
    what = what[:1].lower() + what[1:]
    if position is None:
        return Problem("", f"is not valid TOML: {what}")
    where = f"line {position[1]}, column {position[2]}" if position[1] else "end of file"
    return Problem(where, f"is not valid TOML: {what}")


def _located(
    problems: Iterable[Problem], draft: Draft | None, lines: Mapping[str, int]
) -> tuple[Problem, ...]:
    labels = {entry.path: entry.label for entry in draft.entries()} if draft else {}
    found = []
    for problem in problems:
        line = line_of(problem.path, lines)
        label = labels.get(problem.path.split(".")[0], "")
        about = ", ".join(part for part in (label, f"line {line}" if line else "") if part)
        text = f"{problem.message} ({about})" if about else problem.message
        found.append((line or 0, Problem(problem.path, text)))
    found.sort(key=lambda one: one[0])  # stable: within a line as they were found
    return tuple(problem for _, problem in found)
