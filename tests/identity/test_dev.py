"""The local authority: one per folder however many ask for it at once, private, loud, rotated by a number."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from meshlib.identity import dev
from meshlib.identity.ca import LEAF_LIFE_S, ROOT_LIFE_S
from meshlib.identity.dev import DevSource, rotate_leaves, rotate_root
from meshlib.identity.private_folder import locked
from meshlib.identity.roots import PROPAGATION_S, ROOT_RENEW_S, Roots
from meshlib.identity.svid import PeerIdentityError, Svid, TrustBundle, verify_svid

from .clocks import Chance, Clock

PROJECT = Path(__file__).resolve().parents[2]


def _source(state_dir: Path, service: str = "orders", clock: Clock | None = None, chance: float = 0.5) -> DevSource:
    return DevSource(state_dir, "shop.dev", service, wall=clock or Clock(), rng=Chance(chance))


def test_two_sources_share_one_authority(tmp_path: Path) -> None:
    """Siblings get different keys from the same root, each for its own service."""
    clock = Clock()
    one, bundle = _source(tmp_path / "state", "orders").fetch()
    two, same = _source(tmp_path / "state", "inventory.stock").fetch()
    assert bundle == same
    assert one.private_key_pem != two.private_key_pem
    assert str(two.id) == "spiffe://shop.dev/ns/stock/sa/inventory"
    for svid in (one, two):
        assert verify_svid(svid.chain(), {"shop.dev": bundle}, clock.now) == svid.id
    assert one.not_after == clock.now + LEAF_LIFE_S


@pytest.mark.process
def test_processes_that_come_at_once_make_one_authority(tmp_path: Path) -> None:
    """Four processes, started by one signal on an empty folder, all get the same root, and generation 1."""
    code = (
        "import sys; from meshlib.identity.dev import DevSource\n"
        "source = DevSource(sys.argv[1], 'shop.dev', 'orders'); print('ready', flush=True); sys.stdin.readline()\n"
        "import hashlib; print(hashlib.sha256(source.fetch()[1].pem).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "state")]
    started = [
        subprocess.Popen(
            command, cwd=PROJECT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    seen = {process.communicate(timeout=60)[0] for process in started}
    bundle = (tmp_path / "state/dev-ca/bundle.pem").read_bytes()
    assert seen == {hashlib.sha256(bundle).hexdigest() + "\n"}
    assert bundle.count(b"BEGIN CERTIFICATE") == 1
    assert Roots.load((tmp_path / "state/dev-ca/authority.json").read_bytes()).generation == 1


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    """Folders are 0700, files 0600, and no temporary file is left."""
    _source(tmp_path / "state").fetch()
    folder = tmp_path / "state/dev-ca"
    assert {path.name for path in folder.iterdir()} == {"authority.json", "bundle.pem", "lock"}
    for path in (tmp_path / "state", folder):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


@pytest.mark.parametrize("mode", [0o710, 0o704, 0o755])
@pytest.mark.parametrize("folder", [".", "dev-ca"])
def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path, folder: str, mode: int) -> None:
    """The sentence says the mode and the command that repairs it."""
    source = _source(tmp_path / "state")
    source.fetch()
    (tmp_path / "state" / folder).chmod(mode)
    with pytest.raises(PermissionError, match=f"has mode {mode:04o}.*chmod 700"):
        source.fetch()


def test_a_folder_of_somebody_else_or_a_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the folder could put a root into it; a link may lead anywhere."""
    _source(tmp_path / "state").fetch()
    (tmp_path / "link").symlink_to(tmp_path / "state")
    with pytest.raises(PermissionError, match="must be a directory owned by this user"):
        _source(tmp_path / "link").fetch()
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with pytest.raises(PermissionError, match="must be a directory owned by this user"):
        _source(tmp_path / "state").fetch()


def test_a_lock_that_is_never_released_is_waited_for_in_vain(tmp_path: Path) -> None:
    """The wait has an end, and a sentence that names the lock."""
    source = _source(tmp_path / "state")
    source.fetch()
    source._file._wait_s = 0.0
    with locked(tmp_path / "state/dev-ca"), pytest.raises(TimeoutError, match="lock has been held"):
        source.fetch()
    source.fetch()


def test_a_rotation_of_leaves_is_seen_once(tmp_path: Path) -> None:
    """A new generation says: fetch. A fetch settles it. The roots stay."""
    source = _source(tmp_path / "state")
    assert source.changed()
    before, bundle = source.fetch()
    assert not source.changed()
    assert rotate_leaves(tmp_path / "state") == 2
    assert source.changed()
    after, same = source.fetch()
    assert not source.changed()
    assert (after.serial != before.serial, same == bundle) == (True, True)


def test_a_rotation_of_the_root_overlaps(tmp_path: Path) -> None:
    """The new bundle believes leaves of the new and the previous root; after a second rotation the first is out."""
    clock = Clock()
    source = _source(tmp_path / "state", clock=clock)
    first, _ = source.fetch()
    assert rotate_root(tmp_path / "state", now=clock.now, propagation_s=0) == 3
    second, overlap = source.fetch()
    for svid in (first, second):
        assert verify_svid(svid.chain(), {"shop.dev": overlap}, clock.now) == first.id
    rotate_root(tmp_path / "state", now=clock.now, propagation_s=0)
    _, later = source.fetch()
    assert len(later.roots()) == 2
    assert verify_svid(second.chain(), {"shop.dev": later}, clock.now) == first.id
    with pytest.raises(PeerIdentityError):
        verify_svid(first.chain(), {"shop.dev": later}, clock.now)


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.45), (0.5, 0.5), (1.0, 0.55)])
def test_a_leaf_is_renewed_at_half_life_with_jitter(tmp_path: Path, chance: float, share: float) -> None:
    """Half of the life, ± 10 % of that half."""
    clock = Clock()
    source = _source(tmp_path / "state", clock=clock, chance=chance)
    source.fetch()
    clock.now += share * LEAF_LIFE_S - 1
    assert not source.changed()
    clock.now += 2
    assert source.changed()


def test_an_old_root_is_replaced_in_time(tmp_path: Path) -> None:
    """With less than 30 days left the next fetch makes a new root, which signs once everybody has learned of it."""
    clock = Clock()
    source = _source(tmp_path / "state", clock=clock)
    _, before = source.fetch()
    clock.now += ROOT_LIFE_S - ROOT_RENEW_S - 1
    assert source.fetch()[1] == before
    clock.now += 2
    svid, after = source.fetch()
    assert after.pem.endswith(before.pem)
    assert len(after.roots()) == 2
    assert verify_svid(svid.chain(), {"shop.dev": before}, clock.now) == svid.id
    clock.now += PROPAGATION_S + 2
    svid, same = source.fetch()
    assert same == after
    assert svid.not_after == clock.now + LEAF_LIFE_S
    with pytest.raises(PeerIdentityError):
        verify_svid(svid.chain(), {"shop.dev": before}, clock.now)


def test_a_root_that_has_ended_is_replaced_at_once(tmp_path: Path) -> None:
    """A project that was left alone for two years starts again."""
    clock = Clock()
    _source(tmp_path / "state", clock=clock).fetch()
    clock.now += 2 * ROOT_LIFE_S
    svid, bundle = _source(tmp_path / "state", clock=clock).fetch()
    assert verify_svid(svid.chain(), {"shop.dev": bundle}, clock.now) == svid.id


def test_a_deleted_folder_comes_back(tmp_path: Path) -> None:
    """Somebody cleans up while a process runs: it notices, and makes a new authority for all."""
    source = _source(tmp_path / "state")
    source.fetch()
    for path in (tmp_path / "state/dev-ca").iterdir():
        path.unlink()
    assert source.changed()
    source.fetch()
    assert not source.changed()


def test_a_damaged_authority_is_refused(tmp_path: Path) -> None:
    """Rubbish, an empty or a cut file is a sentence that says what to remove; another trust domain is told, too."""
    source = _source(tmp_path / "state")
    source.fetch()
    with pytest.raises(ValueError, match=r"trust domain shop\.dev does not issue"):
        DevSource(tmp_path / "state", "bank.dev", "vault", wall=Clock()).fetch()
    state = tmp_path / "state/dev-ca/authority.json"
    whole = state.read_bytes()
    for damaged in (b"", b"rubbish", b"\xff", b"[]", whole[:200]):
        state.write_bytes(damaged)
        for step in (source.fetch, lambda: rotate_leaves(tmp_path / "state"), lambda: rotate_root(tmp_path / "state")):
            with pytest.raises(ValueError, match=r"authority\.json is no usable authority: .*remove the folder"):
                step()


def test_rotation_needs_an_authority(tmp_path: Path) -> None:
    """A wrong state_dir is an error, not a new authority."""
    for rotate in (rotate_leaves, rotate_root):
        with pytest.raises(FileNotFoundError, match="holds no authority yet; the first process"):
            rotate(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_new_root_is_believed_before_it_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process fetches between the two steps: a bundle with both roots, and a leaf that everybody believes."""
    clock = Clock()
    source = _source(tmp_path / "state", clock=clock)
    _, before = source.fetch()
    between = []
    monkeypatch.setattr(dev.time, "sleep", lambda _seconds: between.append((source.changed(), *source.fetch())))
    rotate_root(tmp_path / "state", now=clock.now)
    ((changed, leaf, bundle),) = between
    assert changed
    assert len(bundle.roots()) == 2
    assert verify_svid(leaf.chain(), {"shop.dev": before}, clock.now) == leaf.id
    assert source.changed()
    after, _ = source.fetch()
    assert verify_svid(after.chain(), {"shop.dev": bundle}, clock.now) == leaf.id


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("instant", range(8))
def test_a_rotation_killed_anywhere_leaves_a_mesh_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: int
) -> None:
    """Before or after any rename: all believe all, and one more rotation ends with a new root and no rest."""
    clock, state = Clock(), tmp_path / "state"
    sources = [_source(state, name, clock) for name in ("orders", "stock")]
    held = [source.fetch() for source in sources]

    def look(*_: object) -> None:
        held[:] = [source.fetch() if source.changed() else kept for source, kept in zip(sources, held, strict=True)]
        _all_believe_all([*held, _source(state, "cart", clock).fetch()], clock.now)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        _kill_at(patched, instant)
        rotate_root(state, now=clock.now, propagation_s=0)
    look()
    monkeypatch.setattr(dev.time, "sleep", look)
    before = held[0][1].roots()[0]
    rotate_root(state, now=clock.now)
    look()
    assert len(held[0][1].roots()) == 2
    assert (before in held[0][1].roots()[1:]) is (instant < 3 or instant > 6)  # else that rotation was only ended
    assert {path.name for path in (state / "dev-ca").iterdir()} == {"authority.json", "bundle.pem", "lock"}


def _kill_at(monkeypatch: pytest.MonkeyPatch, instant: int) -> None:
    """Two steps of two renames each: `instant` 0 is before the first, 1 after it, up to 7 after the last."""
    rename, instants = Path.rename, iter(range(8))

    def killing(path: Path, target: Path) -> None:
        if next(instants) == instant:
            raise Killed
        rename(path, target)
        if next(instants) == instant:
            raise Killed

    monkeypatch.setattr(Path, "rename", killing)


def _all_believe_all(held: list[tuple[Svid, TrustBundle]], now: float) -> None:
    for svid, _ in held:
        for _, bundle in held:
            assert verify_svid(svid.chain(), {"shop.dev": bundle}, now) == svid.id


def test_a_stopped_rotation_is_ended_by_who_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that fetches puts the new root to use, but not before everybody can have learned of it."""
    clock, state = Clock(), tmp_path / "state"
    source = _source(state, clock=clock)
    _, before = source.fetch()
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(dev.time, "sleep", _killed)
        rotate_root(state, now=clock.now)
    leaf, _ = source.fetch()
    assert verify_svid(leaf.chain(), {"shop.dev": before}, clock.now) == leaf.id
    clock.now += PROPAGATION_S + 2
    assert not source.changed()
    leaf, _ = _source(state, "stock", clock).fetch()
    with pytest.raises(PeerIdentityError):
        verify_svid(leaf.chain(), {"shop.dev": before}, clock.now)
    assert source.changed()


def _killed(_seconds: float) -> None:
    raise Killed


def test_two_rotations_at_once_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that begins while another waits joins it; the later end changes nothing, and all believe all."""
    clock, state = Clock(), tmp_path / "state"
    source = _source(state, clock=clock)
    held, generations = [source.fetch()], []

    def meanwhile(_seconds: float) -> None:
        monkeypatch.setattr(dev.time, "sleep", lambda _: held.append(source.fetch()))
        generations.append(rotate_root(state, now=clock.now))
        held.append(_source(state, "stock", clock).fetch())

    monkeypatch.setattr(dev.time, "sleep", meanwhile)
    generations.append(rotate_root(state, now=clock.now))
    assert generations == [3, 3]
    held.append(source.fetch())
    _all_believe_all(held[1:], clock.now)
    assert len(held[-1][1].roots()) == 2


def test_rotations_that_follow_each_other_break_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process looks only in the middle of each rotation, never between two: all leaves and bundles still agree."""
    clock, state = Clock(), tmp_path / "state"
    slow, quick = _source(state, clock=clock), _source(state, "stock", clock)
    held = {slow: slow.fetch(), quick: quick.fetch()}

    def look(_seconds: float) -> None:
        for source in (slow, quick):
            assert source.changed()
            held[source] = source.fetch()
            _all_believe_all(list(held.values()), clock.now)

    monkeypatch.setattr(dev.time, "sleep", look)
    for _ in range(4):
        rotate_root(state, now=clock.now)
        held[quick] = quick.fetch()
        _all_believe_all(list(held.values()), clock.now)


def test_only_for_trust_domains_of_development(tmp_path: Path) -> None:
    """Nobody signs for shop.example with a key that lies in a project folder."""
    with pytest.raises(ValueError, match=r"ends in '\.dev'"):
        DevSource(tmp_path, "shop.example", "orders")


def test_it_is_loud_once_per_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One WARNING, however often it is asked."""
    dev._warn.cache_clear()
    with caplog.at_level(logging.DEBUG):
        source = _source(tmp_path / "state")
        for _ in range(3):
            source.fetch()
    assert [(r.name, r.levelname) for r in caplog.records] == [("meshlib.identity", "WARNING")]
    assert "DEVELOPMENT IDENTITY" in caplog.text
