"""The key file: heartbeat keys, and the hash secret of the farm.

A TOML file of mode 0600, the same on every node::

    active = 1                  # id of the key that signs
    hash_secret = "9f..."       # 32 bytes; decides which client is in which bucket

    [[heartbeat_keys]]
    id = 1
    key = "4c..."               # 32 bytes; every key that is listed is accepted

Changing the heartbeat keys moves no bucket; changing the hash secret moves almost all of them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nlbfarm.config.types import nearest
from nlbfarm.config.unreadable import why_unreadable
from nlbfarm.errors import ConfigError, HostError, Problem, UsageError

__all__ = ["FarmKeys", "generate", "load_keys"]

SECRET_BYTES = 32
"""Length of what ``generate`` makes: as long as the output of SHA-256 (RFC 2104 section 3)."""

LEAST_BYTES = 16
_LARGEST_FILE = 64 * 1024
_TOP = ("active", "hash_secret", "heartbeat_keys")
_ITEM = ("id", "key")


@dataclass(frozen=True)
class FarmKeys:
    """The secrets of a farm; never printed.

    Args:
        heartbeat: Heartbeat keys by id (0..65535); each is accepted.
        active: Id of the key that signs.
        hash_secret: What the seeds of the groups are derived from.
    """

    heartbeat: Mapping[int, bytes] = field(repr=False)
    active: int
    hash_secret: bytes = field(repr=False)


def generate(path: Path, *, force: bool = False) -> FarmKeys:
    """Make new keys and write them to ``path`` with mode 0600.

    Args:
        path: The file.
        force: Replace a file that is there; the farm then has to be restarted with the new file
            on every node.

    Returns:
        The new keys.

    Raises:
        UsageError: The file is there and ``force`` is not given; it is unchanged.
        HostError: It cannot be written.
    """
    keys = FarmKeys(
        heartbeat={1: secrets.token_bytes(SECRET_BYTES)},
        active=1,
        hash_secret=secrets.token_bytes(SECRET_BYTES),
    )
    text = (
        "# Keys of an nlbfarm farm, made by nlbfarm-node keygen. Secret: keep the mode 0600, and copy\n"
        "# the file to every node over a safe channel (scp -p).\n"
        f"active = {keys.active}\n"
        f'hash_secret = "{keys.hash_secret.hex()}"\n'
        "\n[[heartbeat_keys]]\n"
        f"id = {keys.active}\n"
        f'key = "{keys.heartbeat[keys.active].hex()}"\n'
    )
    # Written under another name first: nobody ever sees half a file under the real one.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if force:
                draft.replace(path)
            else:
                _publish(draft, path, text)
        finally:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()
    except FileExistsError:
        raise UsageError(
            f"{path} is there already and was left as it is; --force replaces it, and then every node "
            "needs the new file"
        ) from None
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from error
    return keys


def _publish(draft: Path, path: Path, text: str) -> None:
    """Give ``draft`` the name ``path``, which must be free."""
    try:
        os.link(draft, path)  # unlike rename, fails if the name is taken
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def load_keys(path: Path) -> FarmKeys:
    """Read the key file.

    Args:
        path: The file.

    Raises:
        ConfigError: It is missing, others may read it, or its content is wrong; every problem at once.
    """
    try:
        # Without O_NONBLOCK a FIFO of this name would hold us up for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise ConfigError(
            str(path),
            [
                Problem(
                    "",
                    "there is no such file; copy it from another node of the farm or, on the first one only, "
                    f"make it with: nlbfarm-node keygen {path}",
                )
            ],
        ) from None
    except OSError as error:
        why = why_unreadable(path, error)
        if os.name == "nt" and path.is_dir():  # elsewhere a directory can be opened
            why = "is not a file"
        raise ConfigError(str(path), [Problem("", why)]) from None
    problems: list[Problem] = []
    # The open file is looked at, not its name: nobody can swap it in between.
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ConfigError(str(path), [Problem("", "is not a file")])
    with os.fdopen(descriptor, "rb") as file:
        if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
            problems.append(
                Problem("", f"mode {stat.S_IMODE(mode):04o} lets others read the keys; run: chmod 600 {path}")
            )
        content = file.read(_LARGEST_FILE + 1)
    try:
        if len(content) > _LARGEST_FILE:
            raise ValueError("too long")
        data = tomllib.loads(content.decode())
    except ValueError:
        # The parser's message may quote the line, and with it a key.
        problems.append(
            Problem(
                "",
                "is not a key file (not valid TOML); copy it from another node",
            )
        )
        raise ConfigError(str(path), problems) from None
    keys = _parse(data, problems)
    if problems:
        raise ConfigError(str(path), problems)
    return keys


def _parse(data: Mapping[str, Any], problems: list[Problem]) -> FarmKeys:
    problems += _unknown("", data, _TOP)
    hash_secret = _secret(data.get("hash_secret"), "hash_secret", problems)
    heartbeat: dict[int, bytes] = {}
    items = data.get("heartbeat_keys")
    if not isinstance(items, list) or not items:
        problems.append(Problem("heartbeat_keys", "missing; at least one [[heartbeat_keys]] table is needed"))
        items = []
    for index, item in enumerate(items):
        path = f"heartbeat_keys[{index}]"
        if not isinstance(item, dict):
            problems.append(Problem(path, "is not a table"))
            continue
        problems += _unknown(f"{path}.", item, _ITEM)
        secret = _secret(item.get("key"), f"{path}.key", problems)
        number = item.get("id")
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 0xFFFF:
            problems.append(Problem(f"{path}.id", "must be a number from 0 to 65535"))
        elif number in heartbeat:
            problems.append(Problem(f"{path}.id", f"{number} is there twice"))
        else:
            heartbeat[number] = secret
    active = data.get("active")
    if isinstance(active, bool) or not isinstance(active, int) or active not in heartbeat:
        listed = ", ".join(map(str, heartbeat)) or "none"
        problems.append(Problem("active", f"must be the id of one of the heartbeat keys (there: {listed})"))
        active = 0
    return FarmKeys(heartbeat, active, hash_secret)


def _unknown(path: str, table: Mapping[str, Any], known: Sequence[str]) -> list[Problem]:
    listed = ", ".join(known)
    return [
        Problem(f"{path}{key}", f"unknown key{nearest(key, known)} (known: {listed})")
        for key in table
        if key not in known
    ]


def _secret(value: object, path: str, problems: list[Problem]) -> bytes:
    if isinstance(value, str):
        try:
            secret = bytes.fromhex(value)
        except ValueError:
            secret = b""
        if len(secret) >= LEAST_BYTES:
            return secret
    # The value itself is never shown.
    problems.append(Problem(path, f"must be at least {LEAST_BYTES} bytes, written in hexadecimal"))
    return b""
