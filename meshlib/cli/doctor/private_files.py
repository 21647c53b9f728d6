"""Files that only their owner may have: the state_dir with its keys, and the files with tokens. No secret is printed.

A process refuses keys that others can reach, so that is a problem; a token file that others can read works, so that is
a warning: whoever read it can be what it is for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from .finding import Finding, ok, problem, warning

FILES_MAX = 10_000
"""Files of a state_dir that are looked at; it has a handful."""

TOKEN_BYTES_MAX = 4096
"""The longest token file; a longer one is none."""


def state_dir(folder: Path) -> Iterator[Finding]:
    """Is it ours, private, and can it be written?"""
    try:
        os.lstat(folder)
    except FileNotFoundError:
        yield _place_for(folder)
        return
    except OSError as error:
        yield problem("state_dir", f"{folder} cannot be looked at: {error.strerror}")
        return
    wrong = [said for path in _within(folder) if (said := _open_to_others(path))]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        yield problem("state_dir", f"{wrong[0]}{more}")
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield problem("state_dir", f"{folder} cannot be written: chmod 700 {folder}, on a disk that is not read-only")
    else:
        yield ok("state_dir", f"{folder} is private")


def token_file(subject: str, file: Path, way_out: str) -> Finding:
    """Can it be read, is it private, and is what it holds a token? `way_out`: where to get another."""
    from ...identity.join_token import JoinToken

    try:
        with file.open("rb") as opened:
            status, content = os.fstat(opened.fileno()), opened.read(TOKEN_BYTES_MAX)
    except OSError as error:
        named = "" if _is_token(str(file)) else f"{file} "
        return problem(
            subject, f"{named}cannot be read: {error.strerror}; the variable is the path of a file; {way_out}"
        )
    try:
        held = JoinToken.parse(content.decode("ascii", "replace"))
    except ValueError:
        return problem(subject, f"{file} holds no token, which is <id>.<secret>.<sha256 of the root>: {way_out}")
    if status.st_mode & 0o077 and stat.S_ISREG(status.st_mode):
        return warning(subject, f"{file} has mode {_mode(status)}, and holds a secret: chmod 600 {file}")
    return ok(subject, f"{file} holds token {held.id}, by the root sha256 {held.root_sha256[:16]}…")


def _is_token(text: str) -> bool:
    from ...identity.join_token import JoinToken

    try:
        JoinToken.parse(text)
    except ValueError:
        return False
    return True


def _place_for(folder: Path) -> Finding:
    parent = next(above for above in folder.parents if above.exists())
    if os.access(parent, os.W_OK | os.X_OK):
        return ok("state_dir", f"{folder} is not there yet; the first process makes it")
    return problem("state_dir", f"{folder} is not there, and this user may not make it in {parent}: MESHLIB_STATE_DIR")


def _within(folder: Path) -> Iterator[Path]:
    """The folder and what is in it, at most FILES_MAX; links are not followed."""
    yield folder
    left = FILES_MAX
    for parent, folders, files in os.walk(folder):
        for name in sorted([*folders, *files])[:left]:
            yield Path(parent, name)
        left = max(0, left - len(folders) - len(files))


def _open_to_others(path: Path) -> str:
    """Why others can reach it, and what to do; '' where they cannot."""
    status = os.lstat(path)
    if status.st_uid != os.geteuid():
        return f"{path} belongs to user {status.st_uid}, and this is user {os.geteuid()}: run as that user, or chown it"
    if stat.S_ISLNK(status.st_mode):
        return f"{path} is a link, and what holds keys must not be one: put the file itself there"
    if status.st_mode & 0o077:
        return f"{path} has mode {_mode(status)}, and holds keys: chmod {'700' if path.is_dir() else '600'} {path}"
    return ""


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"
