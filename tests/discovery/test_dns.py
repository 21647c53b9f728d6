"""The resolver against a name server that misbehaves as asked: real sockets, UDP and TCP."""

from __future__ import annotations

import queue
import random
import re
import threading

import pytest

from meshlib.config.questions import Question
from meshlib.discovery import dns as asking
from meshlib.discovery import resolution
from meshlib.discovery.dns import DnsResolver

from .name_server import name_server

ORDERS = Question("dns", "orders.test", 8080)
PATIENCE_S = 20.0


class Asker:
    """A resolver, and what it has told so far. `until(…)` waits for an answer that is as wanted."""

    def __init__(self, *ports):
        self.told = queue.Queue()
        self.resolver = DnsResolver([("127.0.0.1", port) for port in ports], random.Random(1), self._changed)

    def _changed(self, answers):
        assert threading.current_thread().name == "meshlib-dns"
        self.told.put(answers)

    def until(self, question, wanted=lambda _: True):
        while True:
            answers = self.told.get(timeout=PATIENCE_S)
            if question in answers and wanted(answers[question]):
                return answers[question]


@pytest.fixture
def server():
    """A name server."""
    with name_server() as running:
        yield running


@pytest.fixture
def asker(server):
    """A resolver that asks it."""
    made = Asker(server.port)
    yield made
    made.resolver.stop()


def addresses(resolved):
    """Of the endpoints."""
    return [endpoint.address for endpoint in resolved.endpoints]


def test_a_records(server, asker):
    """Every address with the port of the question; IPv6 is not asked for where there is IPv4."""
    server.records["orders.test", "A"] = (60, ["127.0.0.2", "127.0.0.1"])
    server.records["orders.test", "AAAA"] = (60, ["::1"])
    asker.resolver.follow([ORDERS])
    assert addresses(asker.until(ORDERS)) == ["127.0.0.1:8080", "127.0.0.2:8080"]
    assert server.asked == [("orders.test", "A", "udp")]


def test_aaaa_records(server, asker):
    """Where there is no IPv4."""
    server.records["orders.test", "AAAA"] = (60, ["::1"])
    asker.resolver.follow([ORDERS])
    assert addresses(asker.until(ORDERS)) == ["[::1]:8080"]
    assert [kind for _, kind, _ in server.asked] == ["A", "AAAA"]


def test_500_addresses_come_by_tcp(server, asker):
    """An answer that is cut off by UDP is asked for again."""
    server.records["orders.test", "A"] = (60, [f"10.0.{n // 250}.{n % 250 + 1}" for n in range(500)])
    asker.resolver.follow([ORDERS])
    assert len(asker.until(ORDERS).endpoints) == 500
    assert server.asked == [("orders.test", "A", "udp"), ("orders.test", "A", "tcp")]


def test_srv_records(server, asker):
    """Targets, ports, priorities and weights; a target that cannot be resolved does not take the others with it."""
    question = Question("srv", "_http._tcp.orders.test")
    server.records["_http._tcp.orders.test", "SRV"] = (60, ["0 5 8080 a.test.", "1 7 8081 b.test.", "0 5 1 c.test."])
    server.records["a.test", "A"] = (60, ["127.0.0.1"])
    server.records["b.test", "A"] = (60, ["127.0.0.2"])
    server.trouble["c.test"] = "SERVFAIL"
    asker.resolver.follow([question])
    found = asker.until(question, lambda resolved: len(resolved.endpoints) == 2).endpoints
    assert {(each.address, each.priority, each.weight) for each in found} == {
        ("127.0.0.1:8080", 0, 5),
        ("127.0.0.2:8081", 1, 7),
    }


def test_an_srv_target_of_a_dot_says_that_there_is_no_service(server, asker):
    """RFC 2782."""
    question = Question("srv", "_http._tcp.orders.test")
    server.records["_http._tcp.orders.test", "SRV"] = (60, ["0 0 1 ."])
    asker.resolver.follow([question])
    assert asker.until(question).missing


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("SERVFAIL", "SERVFAIL"),
        ("REFUSED", "REFUSED"),
        ("", "no such records"),
        ("silent", "timed out|in time|lifetime"),
    ],
)
def test_trouble_keeps_the_addresses_and_is_told(server, asker, monkeypatch, caplog, trouble, said):
    """Once in the log; the next good answer is taken."""
    monkeypatch.setattr(asking, "LOOKUP_S", 0.4)
    monkeypatch.setattr(asking, "TRY_S", 0.1)
    monkeypatch.setattr(resolution, "RETRY_MAX_S", 0.2)
    monkeypatch.setattr(resolution, "TTL_MIN_S", 0.2)
    server.records["orders.test", "A"] = (0, ["127.0.0.1"])
    asker.resolver.follow([ORDERS])
    asker.until(ORDERS)
    server.records = {("orders.test", "TXT"): (0, ["nothing"])}
    server.trouble["orders.test"] = trouble
    before = len(server.asked)
    while len(server.asked) < before + 3:
        threading.Event().wait(0.05)
    assert addresses(asker.resolver.answers()[ORDERS]) == ["127.0.0.1:8080"]
    server.trouble.clear()
    server.records["orders.test", "A"] = (0, ["127.0.0.9"])
    assert addresses(asker.until(ORDERS)) == ["127.0.0.9:8080"]
    lines = [record.getMessage() for record in caplog.records if record.name == "meshlib.discovery"]
    assert len(lines) == 1
    assert re.search(said, lines[0])


def test_a_name_that_does_not_exist(server, asker):
    """It is missing at once when it never was there."""
    asker.resolver.follow([ORDERS])
    resolved = asker.until(ORDERS)
    assert resolved.missing
    assert resolved.trouble == "there is no such name"


def test_a_first_answer_that_does_not_come_says_why(server, asker, monkeypatch):
    """No endpoint, and the reason; the name is not taken for one that does not exist."""
    monkeypatch.setattr(asking, "LOOKUP_S", 0.3)
    server.trouble["orders.test"] = "silent"
    asker.resolver.follow([ORDERS])
    resolved = asker.until(ORDERS)
    assert resolved.endpoints == ()
    assert not resolved.missing
    assert resolved.trouble


def test_the_next_name_server_is_asked(server, monkeypatch):
    """One that is silent does not keep the others from answering."""
    monkeypatch.setattr(asking, "TRY_S", 0.1)
    server.records["orders.test", "A"] = (60, ["127.0.0.1"])
    with name_server() as silent:
        silent.trouble["orders.test"] = "silent"
        asker = Asker(silent.port, server.port)
        asker.resolver.follow([ORDERS])
        assert addresses(asker.until(ORDERS)) == ["127.0.0.1:8080"]
        asker.resolver.stop()


def test_it_stops_while_it_asks(server):
    """And asks nothing afterwards."""
    server.trouble["orders.test"] = "silent"
    asker = Asker(server.port)
    asker.resolver.follow([ORDERS])
    asker.resolver.stop()
    thread = asker.resolver._thread
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    asker.resolver.stop()


def test_a_lookup_that_breaks_is_a_failure_like_any_other(server, asker, monkeypatch):
    """The name is asked again; a library that is missing is said by its extra."""
    broken = [ImportError("dns"), ValueError("odd")]

    async def records(_resolver, name):
        if broken:
            raise broken.pop(0)
        return ("127.0.0.1",), 60.0

    monkeypatch.setattr(resolution, "RETRY_MAX_S", 0.1)
    monkeypatch.setattr(DnsResolver, "_records", records)
    asker.resolver.follow([ORDERS])
    assert "service-meshlib[dns]" in asker.until(ORDERS).trouble
    assert addresses(asker.until(ORDERS, lambda found: bool(found.endpoints))) == ["127.0.0.1:8080"]


def test_a_policy_that_cannot_be_put_in_force_does_not_end_it(server, caplog):
    """What comes after is told all the same."""
    told = queue.Queue()

    def changed(answers):
        told.put(answers)
        raise RuntimeError("not now")

    resolver = DnsResolver([("127.0.0.1", server.port)], random.Random(1), changed)
    server.records["a.test", "A"] = server.records["b.test", "A"] = (60, ["127.0.0.1"])
    for name in ("a.test", "b.test"):
        resolver.follow([Question("dns", name, 1)])
        assert Question("dns", name, 1) in told.get(timeout=PATIENCE_S)
    resolver.stop()
