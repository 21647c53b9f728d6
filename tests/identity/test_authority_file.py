"""An authority on disk: one step at a time, each of them whole."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from meshlib.identity.authority_file import AuthorityFile
from meshlib.identity.private_folder import locked
from meshlib.identity.roots import Roots

NOW = 1_800_000_000.0


def _create(roots: Roots | None) -> Roots:
    assert roots is None
    return Roots.create("shop.example", NOW)


def _renew(roots: Roots | None) -> Roots:
    assert roots is not None
    return roots.renew_leaves()


@pytest.fixture
def file(tmp_path: Path) -> AuthorityFile:
    """Of a folder that does not exist yet."""
    return AuthorityFile(tmp_path / "control/ca")


def test_a_new_folder_is_empty(file: AuthorityFile) -> None:
    """Looking makes nothing; the first step is given None."""
    assert (file.exists(), file.stamp(), file.seen) == (False, None, None)
    with pytest.raises(FileNotFoundError):
        file.read()
    assert not file.folder.exists()
    made = file.step(_create)
    assert file.exists()
    assert file.read().dump() == made.dump()
    assert (file.folder / "bundle.pem").read_bytes() == made.bundle_pem
    assert {path.name for path in file.folder.iterdir()} == {"authority.json", "bundle.pem", "lock"}


def test_a_change_is_seen_by_all_and_no_change_by_nobody(file: AuthorityFile) -> None:
    """The stamp differs after a step that changed something, only then; `seen` is of one's own last step."""
    file.step(_create)
    sibling = AuthorityFile(file.folder)
    assert sibling.step(lambda roots: roots or _create(None)).generation == 1
    assert file.stamp() == file.seen == sibling.seen
    assert sibling.step(_renew).generation == 2
    assert file.stamp() == sibling.seen != file.seen


def test_a_step_that_fails_changes_nothing(file: AuthorityFile) -> None:
    """What it raises comes out, and the lock is free again."""
    file.step(_create)
    before = file.stamp()
    with pytest.raises(ZeroDivisionError):
        file.step(lambda _roots: Roots.create("shop.example", 1 / 0))
    assert file.stamp() == before
    file.step(_renew)


def test_siblings_step_one_after_the_other(file: AuthorityFile) -> None:
    """No step is lost, whatever runs at once."""
    file.step(_create)
    threads = [
        threading.Thread(target=lambda: [AuthorityFile(file.folder).step(_renew) for _ in range(5)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert file.read().generation == 21


def test_a_damaged_state_is_a_sentence(file: AuthorityFile) -> None:
    """Reading and stepping refuse it alike, and nothing is overwritten."""
    file.step(_create)
    state = file.folder / "authority.json"
    for damaged in (b"", b"rubbish", state.read_bytes()[:300]):
        state.write_bytes(damaged)
        for look in (file.read, lambda: file.step(_renew)):
            with pytest.raises(ValueError, match=r"authority\.json is no usable authority: .*remove the folder"):
                look()
        assert state.read_bytes() == damaged


def test_a_state_that_others_may_read_is_refused(file: AuthorityFile) -> None:
    """Whoever has read it can be anybody: with the command that repairs it."""
    file.step(_create)
    (file.folder / "authority.json").chmod(0o644)
    for look in (file.read, lambda: file.step(_renew)):
        with pytest.raises(PermissionError, match="chmod 600"):
            look()


def test_a_lock_that_is_held_is_waited_for_in_vain(file: AuthorityFile) -> None:
    """The wait is the caller's to choose, and has an end."""
    impatient = AuthorityFile(file.folder, wait_s=0.0)
    with locked(file.folder), pytest.raises(TimeoutError, match="lock has been held"):
        impatient.step(_create)
    assert impatient.step(_create).generation == 1
