"""How a process gets its identity: by the files of its host, by a token once, or not at all and says why."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from meshlib.identity.ca import BACKDATE_S, LEAF_LIFE_S, CertificateAuthority
from meshlib.identity.control import OWN_LEAF_WITHIN_S, TOKEN_FILE_BYTES_MAX, ControlSource, Issued
from meshlib.identity.csr import checked_csr, make_csr
from meshlib.identity.enrolment import Enrolment
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.svid import Svid, verify_svid

from .clocks import Clock
from .config_service import ORDERS, TRUST_DOMAIN, ConfigService, Host, Refused

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clock() -> Clock:
    """Everybody's."""
    return Clock()


@pytest.fixture
def service(clock: Clock) -> ConfigService:
    """With one root."""
    return ConfigService(clock)


@pytest.fixture
def host(tmp_path: Path, service: ConfigService, clock: Clock) -> Host:
    """Of nobody yet."""
    return Host(tmp_path, service, clock)


def _kept(host: Host) -> Svid:
    loaded = Enrolment(host.folder, TRUST_DOMAIN, ORDERS).load()
    assert loaded is not None
    return loaded[0]


def test_the_first_process_enrols(host: Host, service: ConfigService, clock: Clock) -> None:
    """With the token; what it gets is in the files, and is its identity until it has a leaf of its own."""
    host.give_token()
    source = host.process()
    assert (source.loopback_only, source.changed()) == (False, True)
    svid, bundle = source.fetch()
    assert verify_svid(svid.chain(), {TRUST_DOMAIN: bundle}, clock.now) == ORDERS
    assert (service.calls, _kept(host)) == (["enrol"], svid)
    assert not source.changed()


def test_then_it_gets_a_leaf_of_its_own(host: Host, service: ConfigService, clock: Clock) -> None:
    """Soon, by showing the enrolment's, and in memory only."""
    host.give_token()
    source = host.process()
    enrolled, _ = source.fetch()
    clock.now += OWN_LEAF_WITHIN_S
    assert source.changed()
    own, _ = source.fetch()
    assert own.serial != enrolled.serial
    assert service.calls == ["enrol", "renew"]
    assert service.issued == {enrolled.serial: 0, own.serial: enrolled.serial}
    assert _kept(host) == enrolled
    assert not source.changed()


def test_a_sibling_needs_no_token(host: Host, service: ConfigService, clock: Clock) -> None:
    """It begins with the files and goes on with a leaf of its own, whose key is nobody else's."""
    host.give_token()
    first = host.process()
    first.fetch()
    host.token_file.unlink()
    second = host.process()
    assert second.fetch()[0] == _kept(host)
    clock.now += OWN_LEAF_WITHIN_S
    leaves = [source.fetch()[0] for source in (first, second)]
    assert len({leaf.serial for leaf in leaves} | {_kept(host).serial}) == 3
    assert service.calls == ["enrol", "renew", "renew"]


def test_a_process_starts_while_the_service_is_down(host: Host, service: ConfigService, clock: Clock) -> None:
    """Without a word to it; it asks later, and what it has stays."""
    host.give_token()
    host.process().fetch()
    service.down = Refused("connection refused")
    service.calls.clear()
    source = host.process()
    held = source.fetch()
    assert (held[0], service.calls) == (_kept(host), [])
    clock.now += OWN_LEAF_WITHIN_S
    with pytest.raises(Refused):
        source.fetch()
    assert not source.changed()
    service.down = None
    clock.now += 1
    assert source.changed()
    assert source.fetch()[0].serial != held[0].serial


@pytest.mark.parametrize("chance", range(5))
def test_processes_that_start_at_once_do_not_ask_at_once(host: Host, clock: Clock, chance: int) -> None:
    """The moment is by chance, within five seconds, or a quarter of what is left."""
    host.give_token()
    host.process().fetch()
    source = host.process(random.Random(chance))
    source.fetch()
    expected = random.Random(chance)
    expected.random()  # the files' renewal
    moment = expected.random() * OWN_LEAF_WITHIN_S
    clock.now += moment - 0.01
    assert not source.changed()
    clock.now += 0.02
    assert source.changed()


def test_without_files_and_token_it_says_what_to_do(host: Host, service: ConfigService) -> None:
    """Both ways out have their names in it; nothing was asked, nothing made but the folder."""
    source = host.process()
    with pytest.raises(
        ValueError, match=r"no valid enrolment.*meshlib token create orders\.default.*MESHLIB_TOKEN_FILE"
    ):
        source.fetch()
    assert source.changed()
    assert service.calls == []


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe", b"a.b.c", b"x" * 10_000_000])
def test_a_token_file_that_has_none(host: Host, content: bytes) -> None:
    """Empty, of something else, huge: a sentence that names the file and not what is in it."""
    host.token_file.write_bytes(content)
    with pytest.raises(ValueError, match=r"token: .*no join token.*MESHLIB_TOKEN_FILE") as caught:
        host.process().fetch()
    assert "xxx" not in str(caught.value)
    assert len(content) < TOKEN_FILE_BYTES_MAX or len(str(caught.value)) < 1000


def test_a_token_file_that_is_not_there(host: Host) -> None:
    """It is read when it is needed; then it is a sentence, too."""
    host.give_token()
    source = host.process()
    host.token_file.unlink()
    with pytest.raises(ValueError, match=r"join token cannot be read: .*No such file.*meshlib token create"):
        source.fetch()
    host.give_token()
    source.fetch()


def test_a_used_token_is_what_the_service_says(host: Host, service: ConfigService) -> None:
    """The error is the authority's own, and leaves no files."""
    token = host.give_token()
    service.enrol(token, make_csr(ORDERS)[0])
    with pytest.raises(Refused, match="unknown or used"):
        host.process().fetch()
    assert Enrolment(host.folder, TRUST_DOMAIN, ORDERS).load() is None


def test_a_lost_answer_is_asked_for_again_with_the_same_key(host: Host, service: ConfigService) -> None:
    """A token of one use is enough, however often the answer is lost."""
    host.give_token()
    source = host.process()
    service.lost = 3
    for _ in range(3):
        with pytest.raises(Refused, match="reset"):
            source.fetch()
    svid, _ = source.fetch()
    assert service.calls == ["enrol"] * 4
    assert _kept(host) == svid


def test_siblings_that_start_at_once_enrol_once(host: Host, service: ConfigService) -> None:
    """Eight on an empty folder, one use of the token: one enrols under the lock, all the others find its files."""
    host.give_token()
    start, found, wrong = threading.Barrier(8), [], []

    def begin() -> None:
        source = host.process(random.Random())
        start.wait(10)
        try:
            found.append(source.fetch()[0])
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (wrong, service.calls) == ([], ["enrol"])
    assert [svid.serial for svid in found] == [_kept(host).serial] * 8


@pytest.mark.process
def test_two_processes_enrol_once(tmp_path: Path) -> None:
    """The lock is between processes: a service that takes one request only gets one, and both have its answer."""
    code = (
        "import sys, time, pathlib, hashlib\n"
        "from meshlib.identity.authority_file import AuthorityFile\n"
        "from meshlib.identity.control import ControlSource, Issued\n"
        "from meshlib.identity.csr import checked_csr\n"
        "from meshlib.identity.roots import Roots\n"
        "from meshlib.identity.spiffe import SpiffeId\n"
        "folder, now = pathlib.Path(sys.argv[1]), time.time()\n"
        "class Once:\n"
        "    def enrol(self, token, csr):\n"
        "        (folder / 'used').touch(exist_ok=False)\n"
        "        roots = AuthorityFile(folder / 'control/ca').step(lambda r: r or Roots.create('shop.example', now))\n"
        "        key, orders = checked_csr(csr).public_key, SpiffeId.for_service('shop.example', 'orders')\n"
        "        return Issued(roots.signer.sign(key, orders, now=now), roots.bundle_pem, roots.generation)\n"
        "source = ControlSource(folder / 'state/orders', 'shop.example', 'orders', Once(), folder / 'token')\n"
        "print('ready', flush=True); sys.stdin.readline(); print(source.fetch()[0].serial)"
    )
    (tmp_path / "token").write_text(f"{'0' * 12}.{'s' * 43}.{'0' * 64}")
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [
        subprocess.Popen(command, cwd=PROJECT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = {process.communicate(timeout=60)[0] for process in started}
    loaded = Enrolment(tmp_path / "state/orders", TRUST_DOMAIN, ORDERS).load()
    assert loaded is not None
    assert said == {f"{loaded[0].serial}\n"}


def test_an_enrolment_that_has_ended(host: Host, service: ConfigService, clock: Clock) -> None:
    """With a new token: enrolled again, by one of the siblings. Without: the sentence. The old token is of no use."""
    host.give_token()
    host.process().fetch()
    clock.now += LEAF_LIFE_S + 1
    with pytest.raises(Refused, match="used"):
        host.process().fetch()
    host.token_file.unlink()
    with pytest.raises(ValueError, match="no valid enrolment"):
        host.process().fetch()
    host.give_token()
    before = len(service.calls)
    svids = [host.process().fetch()[0] for _ in range(3)]
    assert service.calls[before:] == ["enrol"]
    assert {svid.serial for svid in svids} == {_kept(host).serial}


def test_damaged_files_are_not_papered_over(host: Host, service: ConfigService) -> None:
    """A token would do, but somebody should know: the sentence says what to remove."""
    host.give_token(uses=2)
    host.process().fetch()
    (host.folder / "svid.pem").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"remove svid\.pem"):
        host.process().fetch()
    (host.folder / "svid.pem").unlink()
    host.process().fetch()
    (host.folder / "svid.pem").chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        host.process().fetch()
    assert service.calls == ["enrol", "enrol"]


def test_a_clock_that_is_behind_says_so(host: Host, service: ConfigService, clock: Clock) -> None:
    """By more than the backdated minute; the use of the token is not lost, nor is another one used up by the files."""
    host.give_token()
    service.skew_s = BACKDATE_S + 30
    source = host.process()
    for _ in range(2):
        with pytest.raises(ValueError, match="begins 30 s from now: set the clock"):
            source.fetch()
    _set_clock(30, clock, service)
    source.fetch()
    _set_clock(-30, clock, service)
    service.calls.clear()
    with pytest.raises(ValueError, match="set the clock"):
        host.process().fetch()
    assert service.calls == []


def _set_clock(by_s: float, clock: Clock, service: ConfigService) -> None:
    """That of this machine, not the service's."""
    clock.now += by_s
    service.skew_s -= by_s


def test_a_clock_within_the_minute_does_nothing(host: Host, service: ConfigService) -> None:
    """Laptops drift."""
    host.give_token()
    service.skew_s = BACKDATE_S - 1
    host.process().fetch()


def test_a_clock_that_is_far_ahead_is_refused(host: Host, service: ConfigService) -> None:
    """What is issued has ended already, for us: nothing is kept."""
    host.give_token()
    service.skew_s = -LEAF_LIFE_S - 10
    with pytest.raises(ValueError, match="new, and ended 10 s ago: set the clock"):
        host.process().fetch()
    assert Enrolment(host.folder, TRUST_DOMAIN, ORDERS).load() is None


class Lying(ConfigService):
    """Answers with something else."""

    what = ""

    def _answer(self, csr_pem: bytes, shown: int, enrolment: int | None) -> Issued:
        good, key = super()._answer(csr_pem, shown, enrolment), checked_csr(csr_pem).public_key
        other = CertificateAuthority.create(TRUST_DOMAIN, now=self.clock.now)
        somebody = SpiffeId.for_service(TRUST_DOMAIN, "signer.meshlib")
        lies = {
            "somebody else's id": Issued(self.roots.signer.sign(key, somebody, now=self.clock.now), good.bundle_pem, 1),
            "a key that is not ours": Issued(
                self.roots.signer.issue(ORDERS, now=self.clock.now).certificate_pem, good.bundle_pem, 1
            ),
            "roots that did not issue it": Issued(good.chain_pem, other.certificate_pem, 1),
            "a leaf as root": Issued(good.chain_pem, good.chain_pem, 1),
            "no roots": Issued(good.chain_pem, b"", 1),
            "no leaf": Issued(b"", good.bundle_pem, 1),
            "garbage": Issued(b"garbage", b"garbage", 1),
        }
        return lies.get(self.what, good)


@pytest.mark.parametrize(
    "what",
    [
        "somebody else's id",
        "a key that is not ours",
        "roots that did not issue it",
        "a leaf as root",
        "no roots",
        "no leaf",
        "garbage",
    ],
)
def test_an_answer_is_not_believed_blindly(tmp_path: Path, clock: Clock, what: str) -> None:
    """Neither at the first contact nor later: ValueError, the files and the identity stay as they were."""
    service = Lying(clock)
    host = Host(tmp_path, service, clock)
    host.give_token()
    source, service.what = host.process(), what
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        source.fetch()
    assert Enrolment(host.folder, TRUST_DOMAIN, ORDERS).load() is None
    service.what = ""
    held, _ = source.fetch()
    clock.now += OWN_LEAF_WITHIN_S
    service.what = what
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        source.fetch()
    service.what = ""
    assert _kept(host) == held
    clock.now += 1
    source.fetch()


def test_only_for_services() -> None:
    """A name that is none is a sentence at once."""
    with pytest.raises(ValueError, match="made of DNS labels"):
        ControlSource(Path("x"), TRUST_DOMAIN, "Orders!", ConfigService(Clock()), None)


def test_no_secret_is_ever_printed(host: Host, service: ConfigService, caplog: pytest.LogCaptureFixture) -> None:
    """Neither token nor key is in a log, a repr or an error, on good paths and bad."""
    token = host.give_token()
    source, texts = host.process(), []
    with caplog.at_level(logging.DEBUG):
        for service.down in (Refused("away"), None):
            try:
                texts.append(repr(source.fetch()))
            except Refused as error:
                texts.append(repr(error))
        host.token_file.write_text(str(token)[:-1])
        (host.folder / "svid.pem").unlink()
        with pytest.raises(ValueError, match="no join token") as caught:
            host.process().fetch()
    text = caplog.text + "".join(texts) + str(caught.value) + repr(token)
    assert (token.secret in text, "PRIVATE" in text) == (False, False)
