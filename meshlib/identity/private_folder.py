"""Folders that hold keys: of this user alone, changed under a lock, one rename a file.

Rules: a folder has mode 0700, a file 0600, both are ours and neither is a link; what is not so is refused with the
command that repairs it. A file is replaced as a whole: whoever is killed leaves the one before or the one after. The
lock is the system's (`flock`): it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_WAIT_S = 10.0
"""How long to wait for a sibling that holds the lock; it needs a few milliseconds. Beyond: TimeoutError."""

FILE_BYTES_MAX = 1 << 20
"""The largest file that is read; a larger one is refused: nothing that is kept here comes near it."""

_LOCK_POLL_S = 0.01


def make_private(folder: Path) -> None:
    """Make `folder` with mode 0700, or check that it is ours alone; PermissionError says what to do."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.stat(folder, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise PermissionError(
            f"{folder} must be a directory owned by this user (uid {os.geteuid()}), because it holds keys"
        )
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise PermissionError(f"{folder} has mode {mode:04o}, but it holds keys: run chmod 700 {folder}")


def read(path: Path) -> bytes:
    """The content of a private file. FileNotFoundError where there is none.

    PermissionError, with what to do, when others may read or write it, it is not ours, or it is no plain file;
    ValueError beyond 1 MiB.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PermissionError(f"{path} must be a plain file that this user can read: {error.strerror}") from None
    try:
        _check_file(path, os.fstat(fd))
        with open(fd, "rb", closefd=False) as file:
            content = file.read(FILE_BYTES_MAX + 1)
    finally:
        os.close(fd)
    if len(content) > FILE_BYTES_MAX:
        raise ValueError(f"{path} is larger than {FILE_BYTES_MAX} bytes: it is none of ours")
    return content


def replace(path: Path, content: bytes) -> None:
    """Replace `path`, mode 0600, in one step that outlives a power cut.

    Only under the lock of its folder, so that one temporary name is enough.
    """
    fresh = path.with_suffix(path.suffix + ".new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    fresh.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # else the power cut may take the rename back
    finally:
        os.close(folder)


@contextmanager
def locked(folder: Path, wait_s: float = LOCK_WAIT_S, name: str = "lock") -> Iterator[None]:
    """Hold `folder`, or what of it the lock `name` stands for; it and its parent are made private if they are new.

    TimeoutError when a sibling, a thread or another process, holds it for longer than `wait_s` seconds.
    """
    make_private(folder.parent)
    make_private(folder)
    fd = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while not _try_lock(fd):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{folder / name} has been held by another process for {wait_s:.0f} s")
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # a child forked in the meantime has this file open, too
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_file(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        raise PermissionError(f"{path} must be a plain file owned by this user (uid {os.geteuid()})")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise PermissionError(f"{path} has mode {mode:04o}, but it must be private: run chmod 600 {path}")
