"""The files of a process: whole, private, of the service that they are for, or refused with what to do."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from meshlib.identity.ca import CertificateAuthority
from meshlib.identity.enrolment import Enrolment, is_enrolled
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import Svid, TrustBundle, verify_svid

NOW = 1_800_000_000.0
ORDERS, STOCK = (SpiffeId.for_service("shop.example", name) for name in ("orders", "inventory.stock"))
ROOT = CertificateAuthority.create("shop.example", now=NOW)
BUNDLE = TrustBundle("shop.example", ROOT.certificate_pem)


@pytest.fixture
def enrolment(tmp_path: Path) -> Enrolment:
    """Of orders, in a folder that does not exist yet."""
    return Enrolment(tmp_path / "state/orders.default", "shop.example", ORDERS)


def _save(enrolment: Enrolment, svid: Svid | None = None, bundle: TrustBundle = BUNDLE) -> Svid:
    svid = svid or ROOT.issue(ORDERS, now=NOW)
    with enrolment.locked():
        enrolment.save(svid, bundle)
    return svid


def test_nothing_is_not_an_error(enrolment: Enrolment) -> None:
    """And looking makes nothing."""
    assert enrolment.load() is None
    assert not is_enrolled(enrolment.folder)
    assert not enrolment.folder.parent.exists()
    with enrolment.locked():
        assert enrolment.load() is None


def test_what_was_saved_is_loaded(enrolment: Enrolment) -> None:
    """The same SVID, the same roots; a second time replaces both; other roots alone leave the SVID."""
    first = _save(enrolment)
    assert enrolment.load() == (first, BUNDLE)
    assert is_enrolled(enrolment.folder)
    second = _save(enrolment)
    assert enrolment.load() == (second, BUNDLE)
    other = CertificateAuthority.create("shop.example", now=NOW)
    both = TrustBundle("shop.example", other.certificate_pem + ROOT.certificate_pem)
    with enrolment.locked():
        enrolment.save_bundle(both)
    assert enrolment.load() == (second, both)


def test_what_others_are_shown_has_no_key(enrolment: Enrolment) -> None:
    """Key and chain are in one file, and come apart when it is read."""
    _save(enrolment)
    loaded = enrolment.load()
    assert loaded is not None
    assert b"PRIVATE" not in loaded[0].certificate_pem
    assert verify_svid(loaded[0].chain(), {"shop.example": loaded[1]}, NOW) == ORDERS


def test_everything_is_private(enrolment: Enrolment) -> None:
    """Folders 0700, files 0600, nothing left over, whatever the umask is."""
    before = os.umask(0)
    try:
        _save(enrolment)
    finally:
        os.umask(before)
    assert {path.name for path in enrolment.folder.iterdir()} == {"svid.pem", "bundle.pem", "lock"}
    for path in (enrolment.folder.parent, enrolment.folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in enrolment.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "mode"), [(".", 0o750), ("..", 0o711), ("svid.pem", 0o640), ("svid.pem", 0o604), ("bundle.pem", 0o622)]
)
def test_what_others_can_reach_is_refused(enrolment: Enrolment, name: str, mode: int) -> None:
    """A key that others may read, roots that others may write: with the command that repairs it."""
    _save(enrolment)
    (enrolment.folder / name).chmod(mode)
    with pytest.raises(PermissionError, match=f"mode {mode:04o}.*chmod [67]00"):
        enrolment.load()


@pytest.mark.parametrize("name", ["svid.pem", "bundle.pem"])
def test_a_link_is_refused(enrolment: Enrolment, name: str) -> None:
    """It may lead anywhere."""
    _save(enrolment)
    (enrolment.folder / name).rename(enrolment.folder / "elsewhere")
    (enrolment.folder / name).symlink_to(enrolment.folder / "elsewhere")
    with pytest.raises(PermissionError, match="plain file"):
        enrolment.load()


@pytest.mark.parametrize("name", ["svid.pem", "bundle.pem"])
@pytest.mark.parametrize("left", [0, 1, 100, 300, 400])
def test_a_cut_file_is_refused(enrolment: Enrolment, name: str, left: int) -> None:
    """With a sentence that says what to do: a half of an identity is none."""
    _save(enrolment)
    (enrolment.folder / name).write_bytes((enrolment.folder / name).read_bytes()[:left])
    with pytest.raises(ValueError, match=r"holds no usable enrolment: .*remove svid\.pem there.*meshlib token create"):
        enrolment.load()
    _save(enrolment)
    assert enrolment.load() is not None


def test_what_does_not_belong_together_is_refused(enrolment: Enrolment) -> None:
    """Somebody else's SVID, a key of another, a bundle that is none, no bundle."""
    usual = r"holds no usable enrolment: .*remove svid\.pem"
    _save(enrolment, ROOT.issue(STOCK, now=NOW))
    with pytest.raises(ValueError, match=f"{usual}") as caught:
        enrolment.load()
    assert f"it is of {STOCK}, not {ORDERS}" in str(caught.value)
    one, other = (ROOT.issue(ORDERS, now=NOW) for _ in range(2))
    svid = enrolment.folder / "svid.pem"
    svid.write_bytes(one.private_key_pem + other.certificate_pem)
    with pytest.raises(ValueError, match=usual):
        enrolment.load()
    _save(enrolment)
    (enrolment.folder / "bundle.pem").write_bytes(one.certificate_pem)
    with pytest.raises(ValueError, match=usual):
        enrolment.load()
    (enrolment.folder / "bundle.pem").unlink()
    with pytest.raises(ValueError, match=usual):
        enrolment.load()
    svid.unlink()
    assert enrolment.load() is None


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_process_killed_while_it_saves(enrolment: Enrolment, monkeypatch: pytest.MonkeyPatch, renames: int) -> None:
    """Before the first rename or between the two: what was there can be used, and the next save is whole."""
    before, rename, done = _save(enrolment), Path.rename, []
    other = CertificateAuthority.create("shop.example", now=NOW)
    both = TrustBundle("shop.example", other.certificate_pem + ROOT.certificate_pem)

    def killing(path: Path, target: Path) -> None:
        if len(done) == renames:
            raise Killed
        done.append(target)
        rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Path, "rename", killing)
        _save(enrolment, other.issue(ORDERS, now=NOW), both)
    assert enrolment.load() == (before, both if renames else BUNDLE)
    after = _save(enrolment, other.issue(ORDERS, now=NOW), both)
    assert enrolment.load() == (after, both)


def test_readers_see_one_or_the_other(enrolment: Enrolment) -> None:
    """Without the lock, while a sibling saves: always a key with its own chain."""
    svids, stop, wrong = [ROOT.issue(ORDERS, now=NOW) for _ in range(4)], threading.Event(), []
    _save(enrolment)

    def reading() -> None:
        while not stop.is_set():
            try:
                assert enrolment.load() is not None
            except Exception as error:
                wrong.append(error)

    reader = threading.Thread(target=reading)
    reader.start()
    for _ in range(3):
        for svid in svids:
            _save(enrolment, svid)
    stop.set()
    reader.join(10)
    assert wrong == []
