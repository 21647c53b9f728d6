"""An authority on disk: which roots sign and are believed, with their keys, shared by all who use the folder.

    <folder>/   authority.json (roots and keys) · bundle.pem (the roots believed, for other programs) · lock

`authority.json` is the whole state, read and replaced under the lock, by one rename: a process killed anywhere leaves
the state before or after. The bundle goes first, so that it never lacks a root that signs. Another file there tells
every process to look again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from . import private_folder
from .roots import Roots

_STATE = "authority.json"


class AuthorityFile:
    """The authority in `folder`, which need not exist yet. `wait_s`: how long to wait for the lock, in seconds.

    `seen`: the stamp of the state that this object's last `step` left; None before the first.
    """

    def __init__(self, folder: Path, wait_s: float = private_folder.LOCK_WAIT_S) -> None:
        self.folder, self._wait_s = folder, wait_s
        self.seen: tuple[int, int] | None = None

    def exists(self) -> bool:
        """Is there an authority?"""
        return self.stamp() is not None

    def stamp(self) -> tuple[int, int] | None:
        """What changes whenever the state is written: a rename gives another file. None: there is none."""
        try:
            status = os.stat(self.folder / _STATE)
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def read(self) -> Roots:
        """The state, without the lock. FileNotFoundError where there is none.

        ValueError when it is damaged, PermissionError when others can reach it; both say what to do.
        """
        try:
            return Roots.load(private_folder.read(self.folder / _STATE))
        except ValueError as error:
            state, folder = self.folder / _STATE, self.folder
            raise ValueError(
                f"{state} is no usable authority: {error}; remove the folder {folder} to get a new one"
            ) from None

    def step(self, change: Callable[[Roots | None], Roots]) -> Roots:
        """Under the lock, let `change` make the next state of this one (None: there is none) and write what changed.

        A `change` that returns what it was given writes nothing; what it raises leaves everything as it was. OSError
        or ValueError, with a sentence, when the folder will not do; TimeoutError when a sibling does not let go of it.
        """
        with private_folder.locked(self.folder, self._wait_s):
            before = self.read() if self.exists() else None
            roots = change(before)
            if roots is not before:
                private_folder.replace(self.folder / "bundle.pem", roots.bundle_pem)
                private_folder.replace(self.folder / _STATE, roots.dump())
            self.seen = self.stamp()
        return roots
