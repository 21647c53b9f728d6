"""Files that only their owner may have: state_dir and token files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshlib.cli.doctor import private_files
from meshlib.cli.doctor.private_files import state_dir, token_file
from meshlib.identity.dev import DevSource
from meshlib.identity.join_token import JoinToken


def said_of(folder: Path) -> tuple[str, str]:
    """The one finding."""
    (finding,) = state_dir(folder)
    return finding.level, finding.said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A state_dir with keys in it."""
    DevSource(tmp_path / "state", "shop.dev", "orders").fetch()
    return tmp_path / "state"


def test_a_state_dir_that_a_process_made_is_private(folder: Path) -> None:
    """Nothing is to be done."""
    assert said_of(folder) == ("ok", f"{folder} is private")


def test_what_others_can_reach_is_named_with_the_command(folder: Path) -> None:
    """The folder, a file in it, how many more; each with what to type."""
    file = folder / "dev-ca" / "authority.json"
    file.chmod(0o640)
    assert said_of(folder) == ("problem", f"{file} has mode 0640, and holds keys: chmod 600 {file}")
    folder.chmod(0o755)
    assert said_of(folder) == ("problem", f"{folder} has mode 0755, and holds keys: chmod 700 {folder} (and 1 more)")


def test_a_link_and_another_owner_are_problems(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process, which refuses both."""
    (folder / "svid.pem").symlink_to(folder / "elsewhere")
    assert "svid.pem is a link" in said_of(folder)[1]
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    level, said = said_of(folder)
    assert (level, f"belongs to user {os.getuid()}" in said) == ("problem", True)


def test_one_that_is_not_there_is_made_by_the_first_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this user may; else which variable names another place."""
    assert said_of(tmp_path / "a" / "b") == ("ok", f"{tmp_path}/a/b is not there yet; the first process makes it")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert said_of(tmp_path / "a")[0] == "problem"


def test_a_very_full_one_is_not_looked_through_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of files that are looked at has a bound."""
    monkeypatch.setattr(private_files, "FILES_MAX", 5)
    for index in range(20):
        (folder / f"file-{index}").touch(0o600)
    assert len(list(private_files._within(folder))) == 6


def test_a_token_file_is_looked_at_and_never_shown(tmp_path: Path) -> None:
    """Its id and root, not its secret; open to others it is a warning, and with something else in it a problem."""
    token, file = JoinToken.create("ab" * 32), tmp_path / "t"
    file.touch(0o600)
    file.write_text(f"{token}\n")
    good = token_file("join token", file, "make one")
    assert (good.level, good.subject) == ("ok", "join token")
    assert f"holds token {token.id}, by the root sha256 abababababababab" in good.said
    file.chmod(0o644)
    open_to_others = token_file("join token", file, "make one")
    assert (open_to_others.level, f"chmod 600 {file}" in open_to_others.said) == ("warning", True)
    file.write_text(str(token)[1:])
    damaged = token_file("join token", file, "make one")
    assert (damaged.level, damaged.said.endswith("make one")) == ("problem", True)
    missing = token_file("join token", tmp_path / "none", "make one")
    assert (missing.level, "No such file" in missing.said) == ("problem", True)
    mistaken = token_file("join token", Path(str(token)), "make one")
    assert (mistaken.level, "is the path of a file" in mistaken.said) == ("problem", True)
    for finding in (good, open_to_others, damaged, missing, mistaken):
        assert token.secret[5:] not in finding.said
