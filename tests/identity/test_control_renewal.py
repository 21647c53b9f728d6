"""How an identity from the config service is kept: renewed in time, through outages, rotations and revocations."""

from __future__ import annotations

import random
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from meshlib.errors import IdentityError
from meshlib.identity import control
from meshlib.identity.ca import LEAF_LIFE_S, CertificateAuthority
from meshlib.identity.control import OWN_LEAF_WITHIN_S, ControlSource
from meshlib.identity.credentials import Credentials
from meshlib.identity.enrolment import Enrolment
from meshlib.identity.renewal import RETRY_CAP_S
from meshlib.identity.svid import PeerIdentityError, Svid, TrustBundle, enrolment_of, verify_svid

from .clocks import Chance, Clock
from .config_service import ORDERS, TRUST_DOMAIN, ConfigService, Host, Refused


class World:
    """One service, one host, and a process with a leaf of its own."""

    def __init__(self, folder: Path, *, life_s: float = LEAF_LIFE_S, rng: random.Random | None = None) -> None:
        self.clock = Clock()
        self.service = ConfigService(self.clock, life_s)
        self.host = Host(folder, self.service, self.clock)
        self.host.give_token()
        self.source = self.host.process(rng or Chance(0.5))
        self.enrolled, _ = self.source.fetch()
        self.clock.now += min(OWN_LEAF_WITHIN_S, life_s / 4)
        self.own, self.bundle = self.source.fetch()
        self.service.calls.clear()

    def kept(self) -> tuple[Svid, TrustBundle]:
        loaded = Enrolment(self.host.folder, TRUST_DOMAIN, ORDERS).load()
        assert loaded is not None
        return loaded

    def trust(self, spread_s: float = 0.0, source: ControlSource | None = None) -> None:
        """What the service would say now."""
        (source or self.source).trust(self.service.bundle, self.service.roots.generation, spread_s)

    def settle(self, seconds: float = 60.0, step_s: float = 1.0) -> None:
        """Look as a process does."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += step_s
            if self.source.changed():
                self.own, self.bundle = self.source.fetch()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Of 24 h leaves, where chance is always the middle."""
    return World(tmp_path)


def _valid(svid: Svid, bundle: TrustBundle, now: float) -> bool:
    try:
        return verify_svid(svid.chain(), {TRUST_DOMAIN: bundle}, now) == ORDERS
    except PeerIdentityError:
        return False


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.45), (0.5, 0.5), (0.999, 0.55)])
def test_a_leaf_is_renewed_at_half_life_with_jitter(tmp_path: Path, chance: float, share: float) -> None:
    """Half of the life, ± 10 % of that half, from its issue, by showing the one before."""
    world = World(tmp_path, rng=Chance(chance))
    enrolment_due = world.enrolled.not_after - (1 - share) * LEAF_LIFE_S
    world.clock.now += share * LEAF_LIFE_S - 20
    assert world.clock.now < enrolment_due
    assert not world.source.changed()
    world.clock.now += 40
    assert world.source.changed()
    fresh, _ = world.source.fetch()
    assert world.service.issued[fresh.serial] == world.own.serial


def test_the_files_are_renewed_past_half_of_their_life(world: World) -> None:
    """In a fetch of their own, which leaves our leaf as it is; a sibling that comes later finds them done."""
    sibling = world.host.process(Chance(0.9))
    sibling.fetch()
    world.clock.now += 5
    sibling.fetch()
    world.service.calls.clear()
    own = world.own
    world.settle(0.51 * LEAF_LIFE_S, step_s=60)
    fresh, _ = world.kept()
    assert world.service.issued[fresh.serial] == world.enrolled.serial
    assert world.service.calls == ["renew", "renew"]
    assert world.own.serial not in (own.serial, fresh.serial)
    world.clock.now += 0.05 * LEAF_LIFE_S
    while sibling.changed():
        sibling.fetch()
    assert world.kept()[0] == fresh
    assert world.service.calls == ["renew"] * 3


def test_files_that_were_removed_come_back(world: World) -> None:
    """Whoever runs enrols whoever starts: no token is needed."""
    world.host.token_file.unlink()
    for path in world.host.folder.iterdir():
        path.unlink()
    world.settle(0.51 * LEAF_LIFE_S, step_s=60)
    assert world.host.process().fetch()[0] == world.kept()[0]


def test_files_that_are_damaged_do_not_hold_up_our_leaf(world: World) -> None:
    """Each failure is reported, our own leaf goes on, and once they are removed they come back."""
    (world.host.folder / "svid.pem").write_bytes(b"half")
    world.clock.now += 0.51 * LEAF_LIFE_S
    assert world.source.fetch()[0].serial != world.own.serial
    assert world.source.changed()
    with pytest.raises(ValueError, match=r"remove svid\.pem"):
        world.source.fetch()
    assert not world.source.changed()
    world.clock.now += RETRY_CAP_S
    (world.host.folder / "svid.pem").unlink()
    assert world.source.changed()
    held = world.source.fetch()
    assert held[0] != world.kept()[0]
    assert not world.source.changed()


def test_a_failing_service_is_asked_with_backoff(tmp_path: Path) -> None:
    """Through the second half of the life: seldom, never more than 30 s apart, and the error comes out each time."""
    world = World(tmp_path, life_s=3600.0, rng=random.Random(11))
    world.service.down = Refused("away")
    tries = []
    while world.clock.now < world.own.not_after - 30:
        world.clock.now += 0.5
        if world.source.changed():
            with pytest.raises(Refused):
                world.source.fetch()
            tries.append(world.clock.now)
    assert 0.45 * 3600 - 10 <= tries[0] - world.own.not_after + 3600 <= 0.55 * 3600
    assert max(after - before for before, after in pairwise(tries)) <= RETRY_CAP_S + 0.5
    assert 100 < len(tries) < 400  # two schedules of 15 s on average: our own leaf's and the files'
    world.service.down = None
    world.settle(RETRY_CAP_S)
    assert world.own.not_after > world.clock.now + 3600 - RETRY_CAP_S - 1
    assert world.kept()[0].not_after > world.clock.now + 3600 - RETRY_CAP_S - 1


@pytest.mark.parametrize("seed", range(3))
def test_leaves_of_ten_seconds(tmp_path: Path, seed: int) -> None:
    """With outages of two seconds at any time: what we hold, and what a sibling would begin with, is always valid."""
    rng = random.Random(seed)
    world = World(tmp_path, life_s=10.0, rng=rng)
    down_until = 0.0
    for _ in range(400):
        world.clock.now += 0.5
        if rng.random() < 0.02:
            down_until = world.clock.now + 2.0
        world.service.down = Refused("away") if world.clock.now < down_until else None
        if world.source.changed():
            try:
                world.own, world.bundle = world.source.fetch()
            except Refused:
                pass
        assert _valid(world.own, world.bundle, world.clock.now)
        assert _valid(*world.kept(), world.clock.now)
    assert 2 * 200 / 5.5 - 10 < len(world.service.calls) < 2 * 200 / 4.5 + 50


def test_new_trust_costs_no_network(world: World) -> None:
    """Another bundle with the same leaf, at the next fetch, and in the file for whoever starts."""
    world.service.roots = world.service.roots.propose(world.clock.now)
    told = world.service.bundle
    world.source.trust(told, world.service.roots.generation - 1, 0.0)
    assert world.source.changed()
    assert world.source.fetch() == (world.own, told)
    assert (world.kept(), world.service.calls) == ((world.enrolled, told), [])
    assert not world.source.changed()
    world.source.trust(told, world.service.roots.generation - 1, 0.0)
    assert not world.source.changed()


def test_trust_that_was_taken_back_before_it_was_adopted(world: World) -> None:
    """The last word counts."""
    held = world.bundle
    world.source.trust(TrustBundle(TRUST_DOMAIN, held.pem, frozenset([1])), 1, 0.0)
    world.source.trust(held, 1, 0.0)
    assert not world.source.changed()


def test_trust_of_another_trust_domain_is_refused(world: World) -> None:
    """A sentence, and nothing changes."""
    bank = CertificateAuthority.create("bank.example", now=world.clock.now)
    with pytest.raises(ValueError, match=r"not shop\.example"):
        world.source.trust(TrustBundle("bank.example", bank.certificate_pem), 9, 0.0)
    assert not world.source.changed()


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.99])
def test_a_new_generation_asks_for_a_leaf_within_the_spread(world: World, chance: float) -> None:
    """At a moment by chance, once: to say it again asks for nothing."""
    world.source._rng = Chance(chance)
    world.service.roots = world.service.roots.renew_leaves()
    world.trust(spread_s=300.0)
    world.clock.now += chance * 300.0 - 0.01
    assert not world.source.changed() or chance == 0.0
    world.trust(spread_s=300.0)
    world.clock.now += 0.02
    assert world.source.changed()
    fresh, _ = world.source.fetch()
    assert fresh.serial != world.own.serial
    world.trust(spread_s=300.0)
    world.clock.now += 300.0
    assert not world.source.changed()


def test_a_spread_beyond_half_life_does_not_delay(world: World) -> None:
    """The renewal that was planned is not put off."""
    world.source._rng = Chance(0.99)
    world.service.roots = world.service.roots.renew_leaves()
    world.trust(spread_s=10 * LEAF_LIFE_S)
    world.clock.now += 0.56 * LEAF_LIFE_S
    assert world.source.changed()


def test_a_generation_that_comes_while_we_ask(world: World) -> None:
    """The answer is of before: it is taken, and another leaf is asked for."""
    world.clock.now += 0.55 * LEAF_LIFE_S

    def meanwhile() -> None:
        world.service.before_answer = lambda: None
        world.source.trust(world.service.bundle, 2, 0.0)

    world.service.before_answer = meanwhile
    first, _ = world.source.fetch()
    world.service.roots = world.service.roots.renew_leaves()
    assert world.source.changed()
    second, _ = world.source.fetch()
    assert second.serial != first.serial
    assert world.service.calls == ["renew", "renew"]


def test_trust_is_adopted_although_the_service_is_down(world: World) -> None:
    """A revocation is not held up by a renewal that fails."""
    world.service.down = Refused("away")
    world.clock.now += 0.55 * LEAF_LIFE_S
    world.source.trust(TrustBundle(TRUST_DOMAIN, world.bundle.pem, frozenset([7])), 1, 0.0)
    assert world.source.fetch()[1].revoked == frozenset([7])
    assert world.service.calls == []
    with pytest.raises(Refused):
        world.source.fetch()


def test_what_is_revoked_stays_revoked(world: World) -> None:
    """Through renewals of leaf and files, and through a new enrolment, whose answers say nothing of it."""
    world.service.revoked.add(7)
    world.trust()
    world.settle(0.6 * LEAF_LIFE_S, step_s=60)
    assert world.bundle.revoked == frozenset([7])
    world.clock.now += 2 * LEAF_LIFE_S
    world.host.give_token()
    _, bundle = world.source.fetch()
    assert bundle.revoked == frozenset([7])
    assert world.service.calls[-1] == "enrol"


def test_our_own_leaf_revoked_is_the_end(world: World) -> None:
    """No renewal, no way round by the files or the token; said again after a wait, not every second."""
    world.host.give_token()
    world.service.revoked.add(enrolment_of(world.own.serial))
    world.trust()
    failures = 0
    for _ in range(120):
        if world.source.changed():
            with pytest.raises(ValueError, match=r"has been revoked: it is not renewed.*new token"):
                world.source.fetch()
            failures += 1
        world.clock.now += 1
    assert 4 <= failures <= 20
    assert world.service.calls == []


def test_a_revoked_enrolment_is_not_begun_with(world: World) -> None:
    """Our own leaf has ended, the files' has not but is revoked: a token, or nothing."""
    world.settle(0.51 * LEAF_LIFE_S, step_s=60)
    revoked = TrustBundle(TRUST_DOMAIN, world.bundle.pem, frozenset([enrolment_of(world.kept()[0].serial)]))
    held = world.service.roots.signer.issue(ORDERS, now=world.clock.now, life_s=LEAF_LIFE_S / 4)
    world.source._held = (held, revoked)  # as if the files were of another enrolment by now
    world.clock.now = held.not_after + 1
    world.service.calls.clear()
    with pytest.raises(Refused, match="used"):
        world.source.fetch()
    assert world.service.calls == ["enrol"]


def test_a_root_is_rotated_under_a_running_process(world: World) -> None:
    """Leaf and files follow, so that after a second rotation a process still starts from the files."""
    for _ in range(3):
        old = world.service.roots.signer
        coming = world.service.roots = world.service.roots.propose(world.clock.now)
        world.trust(spread_s=2.0)
        world.settle(10)
        assert _valid(world.own, world.bundle, world.clock.now)
        world.service.roots = coming.promote(coming)
        world.trust(spread_s=2.0)
        world.settle(10)
        new = TrustBundle(TRUST_DOMAIN, world.service.roots.signer.certificate_pem)
        gone = TrustBundle(TRUST_DOMAIN, old.certificate_pem)
        for svid, bundle in ((world.own, world.bundle), world.kept()):
            assert _valid(svid, new, world.clock.now)
            assert not _valid(svid, gone, world.clock.now)
            assert bundle.pem == world.service.bundle.pem
    world.host.token_file.unlink()
    starting = world.host.process()
    assert starting.fetch()[0] == world.kept()[0]


def test_a_leaf_whose_root_is_dropped_is_replaced_at_once(world: World) -> None:
    """Whoever slept through two rotations: with a token, enrolled again; without, the sentence; never a bad leaf."""
    world.service.rotate_root()
    world.service.rotate_root()
    world.trust(spread_s=3600.0)
    with pytest.raises(Refused, match="used"):
        world.source.fetch()
    world.host.give_token()
    svid, bundle = world.source.fetch()
    assert _valid(svid, bundle, world.clock.now)
    assert world.kept() == (svid, bundle)


def test_bundles_that_cannot_be_kept_are_believed_all_the_same(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk is a warning; a dropped root is dropped."""
    world.host.folder.chmod(0o755)
    world.service.roots = world.service.roots.propose(world.clock.now)
    world.trust(spread_s=3600.0)
    assert world.source.fetch() == (world.own, world.service.bundle)
    assert "could not be kept" in caplog.text
    world.host.folder.chmod(0o700)
    world.service.revoked.add(7)
    world.trust()
    world.source.fetch()
    assert world.kept()[1].pem == world.service.bundle.pem


def test_our_leaf_has_ended_and_the_files_have_not(world: World) -> None:
    """A process that was suspended: it begins with the files, as at the start."""
    world.settle(0.51 * LEAF_LIFE_S, step_s=60)
    world.source._held = (world.enrolled, world.bundle)  # as if our own had ended with that of before
    world.clock.now = world.enrolled.not_after + 1
    world.service.calls.clear()
    assert world.source.fetch()[0] == world.kept()[0]
    assert world.service.calls == []
    world.clock.now += OWN_LEAF_WITHIN_S
    assert world.source.changed()


def test_a_clock_that_jumps(world: World) -> None:
    """Back by an hour: renewed now, since no plan holds. Forward by half a life: likewise. Never in a tight loop."""
    for jump_s, skew_s in ((-3600.0, 3600.0), (0.6 * LEAF_LIFE_S, 0.0)):
        world.clock.now += jump_s
        world.service.skew_s += skew_s
        assert world.source.changed()
        world.service.calls.clear()
        for _ in range(60):
            if world.source.changed():
                try:
                    world.source.fetch()
                except ValueError:
                    pass
            world.clock.now += 1
        assert len(world.service.calls) < 20


@pytest.mark.parametrize("skew_s", [-6.0, 6.0])
def test_short_leaves_by_a_clock_that_is_wrong(tmp_path: Path, skew_s: float) -> None:
    """By more than half of the life: renewed before the peers' clock ends it, or at least not every second."""
    world = World(tmp_path, life_s=20.0, rng=random.Random(2))
    world.service.skew_s = skew_s
    for _ in range(600):
        world.clock.now += 0.5
        if world.source.changed():
            world.own, world.bundle = world.source.fetch()
        now = world.clock.now + skew_s
        if world.service.issued and world.clock.now > 1_800_000_060:
            assert _valid(world.own, world.bundle, now)
    assert len(world.service.calls) < 2 * 300 / 4


def test_a_service_that_refuses_our_certificate(world: World) -> None:
    """Revoked there, not yet told here: the error is the service's own."""
    world.service.revoked.add(enrolment_of(world.own.serial))
    world.clock.now += 0.6 * LEAF_LIFE_S
    with pytest.raises(IdentityError, match="has been revoked"):
        world.source.fetch()


def test_trust_comes_from_any_thread(world: World) -> None:
    """While another fetches: nothing is lost, and the last bundle is what is believed in the end."""
    bundles = [TrustBundle(TRUST_DOMAIN, world.bundle.pem, frozenset([number])) for number in range(100)]
    thread = threading.Thread(target=lambda: [world.source.trust(bundle, 1, 0.0) for bundle in bundles])
    thread.start()
    while thread.is_alive():
        if world.source.changed():
            world.source.fetch()
    thread.join(10)
    if world.source.changed():
        world.source.fetch()
    assert world.source._held == (world.own, bundles[-1])
    assert world.service.calls == []


def test_the_live_identity_follows(tmp_path: Path) -> None:
    """With `Credentials`, over handshakes: begun by the files, a leaf of our own, a revoked peer out at the next."""
    world = World(tmp_path)
    credentials = Credentials(world.host.process(), TRUST_DOMAIN, wall=world.clock)
    assert credentials.svid == world.enrolled
    assert not credentials.loopback_only
    source = credentials._source
    assert isinstance(source, ControlSource)
    world.clock.now += OWN_LEAF_WITHIN_S
    assert credentials.refresh()
    own = credentials.svid
    assert (own.serial != world.enrolled.serial, credentials.generation) == (True, 2)
    source.trust(TrustBundle(TRUST_DOMAIN, world.bundle.pem, frozenset([7])), 1, 0.0)
    assert credentials.refresh()
    assert (credentials.svid, credentials.generation, credentials.bundle.revoked) == (own, 3, frozenset([7]))
    world.service.down = Refused("away")
    world.clock.now += 0.6 * LEAF_LIFE_S
    assert not credentials.refresh()
    assert credentials.renewal_error is world.service.down


def test_new_roots_do_not_wait_for_a_sibling_that_waits(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that holds the files for as long as the service takes to answer does not hold up a revocation."""
    monkeypatch.setattr(control, "KEEP_WAIT_S", 0.0)
    world.service.roots = world.service.roots.propose(world.clock.now)
    world.trust(spread_s=3600.0)
    with Enrolment(world.host.folder, TRUST_DOMAIN, ORDERS).locked():
        assert world.source.fetch()[1] == world.service.bundle
    assert "lock has been held" in caplog.text
