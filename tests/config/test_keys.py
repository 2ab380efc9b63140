"""The key file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from tests.config_support import KEYS

from nlbfarm.config.derive import keyring
from nlbfarm.config.digest import secret_digest
from nlbfarm.config.keys import generate, load_keys
from nlbfarm.errors import ConfigError, HostError, UsageError


def test_round_trip(tmp_path: Path) -> None:
    made = generate(tmp_path / "k")
    assert load_keys(tmp_path / "k") == made
    assert len(made.hash_secret) == len(made.heartbeat[1]) == 32
    assert made.hash_secret != made.heartbeat[1]
    assert keyring(made).active == 1
    assert os.listdir(tmp_path) == ["k"]


@pytest.mark.posix("POSIX file modes")
def test_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        generate(tmp_path / "k")
        generate(tmp_path / "k", force=True)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    first = generate(tmp_path / "k")
    with pytest.raises(UsageError, match="is there already and was left as it is; --force replaces it"):
        generate(tmp_path / "k")
    assert load_keys(tmp_path / "k") == first
    assert generate(tmp_path / "k", force=True) != first
    assert load_keys(tmp_path / "k") != first
    assert os.listdir(tmp_path) == ["k"]


@pytest.mark.posix("links of a POSIX file system")
def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "k").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError):
        generate(tmp_path / "k")
    assert not (tmp_path / "elsewhere").exists()


def test_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file or directory"):
        generate(tmp_path / "none" / "k")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o610])
@pytest.mark.posix("POSIX file modes")
def test_others_may_do_nothing_with_it(tmp_path: Path, mode: int) -> None:
    generate(tmp_path / "k")
    (tmp_path / "k").chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o} lets others read the keys; run: chmod 600"):
        load_keys(tmp_path / "k")


def test_every_problem_at_once_and_no_secret_in_the_message(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_text(
        'active = 3\nhash_secret = "c0ffee"\nextra = 1\n'
        '[[heartbeat_keys]]\nid = 1\nkey = "not hex: very secret"\n'
        '[[heartbeat_keys]]\nid = 1\nkey = "00112233445566778899aabbccddeeff"\n'
        '[[heartbeat_keys]]\nid = 70000\nkye = "x"\n'
    )
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        load_keys(path)
    assert [problem.path for problem in caught.value.problems] == [
        "extra",
        "hash_secret",
        "heartbeat_keys[0].key",
        "heartbeat_keys[1].id",
        "heartbeat_keys[2].kye",
        "heartbeat_keys[2].key",
        "heartbeat_keys[2].id",
        "active",
    ]
    assert "c0ffee" not in str(caught.value)
    assert 'secret"' not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"key = 0123456789abcdef0123456789abcdef", b"\xff\xfe", b"x" * 100_000, b""]
)
def test_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "k").write_bytes(content)
    (tmp_path / "k").chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        load_keys(tmp_path / "k")
    assert "0123456789abcdef" not in str(caught.value)


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        load_keys(tmp_path)


def test_keys_are_never_printed() -> None:
    assert KEYS.hash_secret.hex() not in repr(KEYS)
    assert repr(KEYS) == "FarmKeys(active=1)"
    assert secret_digest(KEYS) not in KEYS.hash_secret
