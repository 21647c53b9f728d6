"""Folders that hold keys: nobody else's, changed in one step, by one at a time."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from meshlib.identity.private_folder import FILE_BYTES_MAX, locked, make_private, read, replace


def test_it_is_made_private_whatever_the_umask(tmp_path: Path) -> None:
    """Folder 0700, file 0600; a second time changes nothing."""
    before = os.umask(0)
    try:
        make_private(tmp_path / "a")
        make_private(tmp_path / "a")
        replace(tmp_path / "a/key", b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a/key").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o701, 0o750, 0o777])
def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    """With the command that repairs it."""
    make_private(tmp_path / "a")
    (tmp_path / "a").chmod(mode)
    with pytest.raises(PermissionError, match=f"mode {mode:04o}.*chmod 700"):
        make_private(tmp_path / "a")


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """So is a link, a folder and somebody else's file; a large one is none of ours."""
    make_private(tmp_path / "a")
    key = tmp_path / "a/key"
    replace(key, b"one")
    assert read(key) == b"one"
    for mode in (0o604, 0o640, 0o620):
        key.chmod(mode)
        with pytest.raises(PermissionError, match=f"mode {mode:04o}.*chmod 600"):
            read(key)
    key.chmod(0o600)
    (tmp_path / "a/link").symlink_to(key)
    os.mkfifo(tmp_path / "a/pipe", 0o600)
    for other in ("link", "pipe", "."):
        with pytest.raises(PermissionError, match="plain file"):
            read(tmp_path / "a" / other)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "a/nothing")
    replace(key, b"x" * (FILE_BYTES_MAX + 1))
    with pytest.raises(ValueError, match="larger than"):
        read(key)


def test_a_file_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns a key file has read it."""
    make_private(tmp_path / "a")
    replace(tmp_path / "a/key", b"one")
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(PermissionError, match="owned by this user"):
        read(tmp_path / "a/key")


def test_a_replacement_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the rename, the old content is there; what is left over is in nobody's way."""
    make_private(tmp_path / "a")
    replace(tmp_path / "a/key", b"one")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", _killed)
        replace(tmp_path / "a/key", b"two, and longer")
    assert read(tmp_path / "a/key") == b"one"
    replace(tmp_path / "a/key", b"3")
    assert read(tmp_path / "a/key") == b"3"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["key"]


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_replacement_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is on the disk before it is renamed, and the folder after."""
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(fd: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", lambda path, target: (done.append("rename"), rename(path, target))[1])
    replace(tmp_path / "kept", b"x")
    assert done == ["file", "rename", "folder"]


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    """A link that waits under the temporary name leads nowhere."""
    make_private(tmp_path / "a")
    (tmp_path / "a/key.new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        replace(tmp_path / "a/key", b"secret")
    assert not (tmp_path / "elsewhere").exists()


def test_a_child_that_was_forked_meanwhile_does_not_hold_it(tmp_path: Path) -> None:
    """It has the same open file; the lock ends with whoever took it all the same."""
    with locked(tmp_path / "a"):
        lock = os.stat(tmp_path / "a/lock")
        (taken,) = (fd for fd in range(3, 1000) if _is(fd, lock))
        inherited = os.dup(taken)
    try:
        with locked(tmp_path / "a", 0.0):
            pass
    finally:
        os.close(inherited)


def _is(fd: int, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), file)
    except OSError:
        return False


def test_one_holds_it_at_a_time(tmp_path: Path) -> None:
    """Threads count as siblings; the wait has an end, and an exception lets go of the lock."""
    inside, most = [], []

    def work() -> None:
        for _ in range(5):
            with locked(tmp_path / "a"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1] * 20
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a"):
        raise ZeroDivisionError
    with locked(tmp_path / "a"), pytest.raises(TimeoutError, match="has been held"), locked(tmp_path / "a", 0.0):
        pass
