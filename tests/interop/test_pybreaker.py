"""pybreaker on the circuits of endpoints: who is told what, what a storage can do, and that nothing is there without."""

from __future__ import annotations

import logging
import random
import threading
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import httpx
import pybreaker
import pytest
from pybreaker import CircuitBreakerListener, CircuitMemoryStorage

from meshlib import Mesh, NoHealthyEndpoint
from meshlib.endpoint import Endpoint
from meshlib.errors import TransportError
from meshlib.interop.pybreaker import HOLD_S, Circuits, ErrorReply
from meshlib.learned import Learned
from meshlib.policy.breaker import Breaker
from meshlib.policy.node import Node
from meshlib.policy.outlier import OutlierPolicy
from meshlib.testing import FakeMesh
from tests.transport.raw_server import OK, RawServer, answering

RNG = random.Random(5)
OUTLIER = OutlierPolicy(consecutive_errors=2, base_ejection_time_s=10.0)
NAME = "inventory.default/10.0.0.1:80"
REFUSED = TransportError("refused", phase="connect", cause="refused", sent=False)
WITHIN_S = 10.0
"""How long a test waits for the thread of the storages; it looks every 0.5 s."""


class Changes(CircuitBreakerListener):
    """Hears of failures and changes only."""

    def __init__(self):
        self.heard = []

    def failure(self, cb, exc):
        self.heard.append(("failure", cb.name, exc, cb.fail_counter, cb.fail_max))

    def state_change(self, cb, old_state, new_state):
        self.heard.append(("state", cb.name, old_state.name, new_state.name, cb.current_state))

    def states(self):
        return [f"{event[2]} → {event[3]}" for event in self.heard if event[0] == "state"]


class Everything(Changes):
    """Overrides all four."""

    def before_call(self, cb, func, *args, **kwargs):
        self.heard.append(("before", cb.name, func.__name__, args))

    def success(self, cb):
        self.heard.append(("success", cb.name))


def node_of(circuits, address="10.0.0.1"):
    return circuits.node("inventory.default", Endpoint(address, 80), OUTLIER)


def fail(node, now=0.0):
    node.unreachable(now, RNG, node.begin(now), proof=True, cause=REFUSED)


def document(*addresses):
    """A mesh.yaml whose service has these endpoints, and never tries a call twice."""
    service = {"endpoints": [{"static": list(addresses)}], "retries": {"max_retries": 0}, "mtls": "disabled"}
    return {"version": 1, "mesh": "shop", "defaults": {"mtls": "disabled"}, "services": {"inventory": service}}


# Listeners


def test_the_life_of_a_circuit_is_told_in_pybreakers_words():
    """closed → open → half-open → open → half-open → closed, each failure before the change that it makes."""
    listener = Changes()
    node = node_of(Circuits([listener]))
    fail(node)
    assert listener.heard == [("failure", NAME, REFUSED, 5, 5), ("state", NAME, "closed", "open", "open")]
    assert not node.admits(0.1)
    fail(node, 5.0)
    node.succeeded(0.01, 20.0, node.begin(20.0))
    assert listener.states() == [
        "closed → open", "open → half-open", "half-open → open", "open → half-open", "half-open → closed"
    ]  # fmt: skip


def test_both_breakers_of_an_endpoint_are_one_circuit():
    """Open until both let through: while it is ejected, that it can be reached again changes nothing."""
    listener = Changes()
    node = node_of(Circuits([listener]))
    for _ in range(2):
        node.erred(0.0, RNG, 0, may_eject=True, cause=503)
    assert [type(event[2]) for event in listener.heard] == [ErrorReply, ErrorReply, str]
    assert [event[2].status for event in listener.heard[:2]] == [503, 503]
    assert (node.circuit.fail_counter, node.circuit.fail_max, node.circuit.reset_timeout) == (2, 2, 10.0)
    node.unreachable(0.0, RNG, 0, proof=True, cause=REFUSED)
    assert listener.states() == ["closed → open"]
    probe = node.begin(11.0)
    assert (probe, node.circuit.current_state) == (3, "half-open")
    node.erred(11.0, RNG, probe, may_eject=False, cause=500)
    assert (listener.states()[1:], node.state(11.0)) == (["open → half-open", "half-open → open"], "ejected")


def test_a_probe_that_is_given_up_leaves_it_half_open():
    """As the breaker has it: the permit is free again, nothing was learned."""
    listener = Changes()
    node = node_of(Circuits([listener]))
    fail(node)
    node.abandoned(node.begin(5.0))
    assert (node.circuit.current_state, node.admits(5.0)) == ("half-open", True)
    assert listener.states() == ["closed → open", "open → half-open"]


def test_the_state_objects_are_pybreakers():
    """Their classes, so that a listener that asks isinstance works; `cb` cannot be changed."""
    seen = []

    class Asks(CircuitBreakerListener):
        def state_change(self, cb, old_state, new_state):
            seen.extend((type(old_state), type(new_state)))
            for attribute in ("name", "current_state", "fail_max", "reset_timeout", "fail_counter", "other"):
                with pytest.raises(AttributeError):
                    setattr(cb, attribute, "x")

    fail(node_of(Circuits([Asks()])))
    assert seen == [pybreaker.CircuitClosedState, pybreaker.CircuitOpenState]


def test_only_what_a_listener_overrides_is_told():
    """Without `success` and `before_call` the methods of a good call are Node's own, not ours that skip."""
    quiet, loud = node_of(Circuits([Changes()])), node_of(Circuits([Changes(), listener := Everything()]))
    for method in ("admits", "begin", "succeeded", "abandoned", "load"):
        assert getattr(type(quiet), method) is getattr(Node, method)
    for method in ("begin", "admits", "succeeded"):
        assert getattr(type(quiet.reach), method) is getattr(Breaker, method)
    loud.succeeded(0.01, 0.0, loud.begin(0.0))
    assert listener.heard == [("before", NAME, "attempt", ()), ("success", NAME)]


@pytest.mark.parametrize("overridden", ["before_call", "success", "failure", "state_change"])
def test_a_listener_that_raises_is_logged_once_and_changes_nothing(overridden, caplog):
    """The one after it is told, and the breaker does what it does."""

    def explode(*_arguments):
        raise RuntimeError("listener")

    bad = type("Bad", (CircuitBreakerListener,), {overridden: explode})()
    node, plain = node_of(Circuits([bad, good := Everything()])), Node(Endpoint("10.0.0.1", 80), OUTLIER)
    for tried in (node, plain):
        for now in (0.0, 5.0):
            tried.succeeded(0.01, now, tried.begin(now))
            fail(tried, now)
    assert len({(n.reach.failures, n.reach.trips, n.inflight, n.admits(5.0)) for n in (node, plain)}) == 1
    assert {event[0] for event in good.heard} == {"before", "success", "failure", "state"}
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert messages == ["the breaker listener Bad failed; breakers go on without it, and this is said once"]


def test_a_policy_update_keeps_the_circuit():
    """The node survives by its address, with what listeners and storage know of it."""
    learned = Learned(nullcontext, Circuits([Changes()]).node)
    node = learned.node("inventory.default", Endpoint("10.0.0.1", 80), OUTLIER)
    fail(node)
    again = learned.node("inventory.default", Endpoint("10.0.0.1", 80, weight=2), OutlierPolicy())
    assert (again, again.circuit.current_state, again.circuit.reset_timeout) == (node, "open", 30.0)


def test_calls_of_a_mesh_are_told():
    """Through routes, retries and balancing: 5xx as ErrorReply, refusals as our error, others as success."""
    mesh = FakeMesh(document("10.0.0.1:80", "10.0.0.2:80"), breaker_listeners=[listener := Everything()])
    mesh.service("inventory").reply(status=404)
    client = mesh.sync_client("inventory")
    client.get("/")
    assert [event[0] for event in listener.heard] == ["before", "success"]
    with mesh.fault("inventory", abort=500):
        client.get("/")
    with mesh.fault("inventory", refuse=True), pytest.raises(httpx.ConnectError) as caught:
        client.get("/")
    failures = [event[2] for event in listener.heard if event[0] == "failure"]
    assert isinstance(failures[0], ErrorReply)
    assert str(failures[0]) == "the endpoint answered 500"
    assert isinstance(failures[1], TransportError)
    assert str(failures[1]) in str(caught.value)
    assert listener.states() == ["closed → open"]


# Storages


class World:
    """Circuits over one storage per name, and the clocks of their rounds."""

    def __init__(self, storages=None, listeners=()):
        self.storages = {} if storages is None else storages
        self.circuits = Circuits(listeners, lambda name: self.storages.setdefault(name, CircuitMemoryStorage("closed")))
        self.node = node_of(self.circuits)
        self.now, self.wall = 100.0, datetime(2026, 1, 1, 12, 0, 0, 700_000, tzinfo=UTC)

    def round(self, seconds=0.5):
        self.now += seconds
        self.wall += timedelta(seconds=seconds)
        nodes = [("inventory.default", self.node), ("other.default", Node(Endpoint("10.0.0.9", 80), OUTLIER))]
        self.circuits.exchange(nodes, lambda _service: nullcontext(), lambda: self.now, lambda: self.wall)

    @property
    def storage(self):
        return self.storages[NAME]


def test_our_changes_are_written():
    """open with the second it opened in, half-open, closed; nothing before there is a change."""
    world = World()
    world.round()
    assert (list(world.storages), world.storage.opened_at) == ([NAME], None)
    fail(world.node, world.now)
    world.round()
    assert (world.storage.state, world.storage.opened_at) == ("open", datetime(2026, 1, 1, 12, 0, 1, tzinfo=UTC))
    probe = world.node.begin(world.now + 5)
    world.round(5)
    assert world.storage.state == "half-open"
    world.node.succeeded(0.01, world.now, probe)
    world.round()
    assert world.storage.state == "closed"


def test_an_open_of_our_own_ends_by_our_own_probe():
    """It is not held by what it wrote itself, in the same round or later."""
    world = World()
    fail(world.node, world.now)
    for _ in range(8):
        world.round()
        assert world.node.held_until == 0.0
    assert world.node.admits(world.now)


def test_one_process_protects_the_other_until_it_knows_better():
    """Held while the first says open; free when it probes; both listeners hear it."""
    heard = Changes()
    first = World()
    second = World(first.storages, [heard])
    fail(first.node, first.now)
    for world in (first, second):
        world.round()
    assert not second.node.admits(second.now)
    assert (second.node.state(second.now), second.node.circuit.current_state) == ("ejected", "open")
    assert second.node.why_not(second.now) == f"held open by breaker_storage, which says open for {NAME!r}"
    probe = first.node.begin(first.now + 5)
    first.node.succeeded(0.01, first.now + 5, probe)
    for world in (first, second):
        world.round()
    assert second.node.admits(second.now)
    assert (first.storage.state, heard.states()) == ("closed", ["closed → open", "open → closed"])


def test_being_held_is_not_written_back():
    """What a process only heard it does not say: else two would keep each other shut."""
    world = World({NAME: CircuitMemoryStorage("open")})
    for _ in range(3):
        world.round()
    assert (world.node.circuit.current_state, world.storage.opened_at) == ("open", None)
    world.storage.state = "closed"
    world.round()
    assert (world.node.circuit.current_state, world.storage.state) == ("closed", "closed")


def test_an_open_whose_maker_is_gone_is_not_obeyed():
    """Up to reset_timeout seconds old, and not a moment longer; without opened_at it was set by hand and stays."""
    world = World({NAME: CircuitMemoryStorage("open")})
    world.storage.opened_at = world.wall
    world.round(9.9)
    assert not world.node.admits(world.now)
    world.round(0.1)
    assert world.node.admits(world.now)
    world.storage.opened_at = None
    world.round(1000.0)
    assert not world.node.admits(world.now)


def test_a_storage_that_hangs_holds_for_one_reading_only():
    """HOLD_S after the last round that ended."""
    world = World({NAME: CircuitMemoryStorage("open")})
    world.round()
    assert not world.node.admits(world.now + HOLD_S - 0.001)
    assert world.node.admits(world.now + HOLD_S)


class Broken(CircuitMemoryStorage):
    """Fails while it is told to."""

    failing = True

    @property
    def state(self):
        if self.failing:
            raise ConnectionError("no storage")
        return self._state

    @state.setter
    def state(self, state):
        if self.failing:
            raise ConnectionError("no storage")
        self._state = state


def test_a_storage_that_fails_is_logged_once_and_holds_nothing(caplog):
    """Our own breaker goes on; what could not be written is written when it works again."""
    world = World({NAME: Broken("open")})
    world.storage.failing = False
    world.round()
    assert not world.node.admits(world.now)
    world.storage.failing = True
    for _ in range(3):
        world.round()
    assert world.node.admits(world.now)
    fail(world.node, world.now)
    world.round(0.1)
    assert not world.node.admits(world.now)
    world.storage.failing, world.storage._state = False, "closed"
    world.round()
    assert world.storage.state == "open"
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["the breaker storage failed; breakers go on without it, and this is said once"]


def test_a_callable_that_returns_no_storage_is_logged(caplog):
    """The sentence says what it must return; the node is as if there were none."""
    circuits = Circuits((), lambda _name: "redis")
    node = node_of(circuits)
    circuits.exchange([("inventory.default", node)], lambda _service: nullcontext())
    assert node.admits(0.0)
    assert "breaker_storage must return a pybreaker.CircuitBreakerStorage, not 'redis'" in caplog.text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"breaker_listeners": [object()]}, "breaker_listeners takes pybreaker.CircuitBreakerListener objects"),
        ({"breaker_listeners": 7}, "breaker_listeners takes pybreaker.CircuitBreakerListener objects"),
        ({"breaker_storage": CircuitMemoryStorage("closed")}, "breaker_storage takes a callable, name → pybreaker"),
    ],
)
def test_what_pybreaker_would_not_take_is_refused(options, sentence):
    """TypeError when the Mesh is made."""
    with pytest.raises(TypeError, match=sentence):
        Mesh("orders", **options)


class Announcing(CircuitMemoryStorage):
    """Sets an event for each state that is written to it."""

    def __init__(self):
        self.written = {state: threading.Event() for state in ("open", "half-open", "closed")}
        super().__init__("closed")

    @property
    def state(self):
        return self._state

    @state.setter
    def state(self, state):
        self._state = state
        self.written[state].set()


class Until(CircuitBreakerListener):
    """Sets an event for each state that a circuit comes to."""

    def __init__(self):
        self.reached = {state: threading.Event() for state in ("open", "half-open", "closed")}

    def state_change(self, cb, old_state, new_state):
        self.reached[new_state.name].set()


def test_two_meshes_share_a_memory_storage(tmp_path):
    """What one found out protects the other, whose call is refused unsent; when one finds it well, both use it."""
    storage, listener = Announcing(), Until()
    with RawServer(answering(OK)) as server:
        port = server.port
        config = {**document(f"127.0.0.1:{port}"), "state_dir": str(tmp_path)}
        one = Mesh("one", config, breaker_storage=lambda _name: storage)
        two = Mesh("two", config, breaker_storage=lambda _name: storage, breaker_listeners=[listener])
        with one, two:
            assert [mesh.sync_client("inventory").get("/").status_code for mesh in (one, two)] == [200, 200]
            # A failure that only `one` sees: the endpoint is told to it as unreachable.
            node = next(node for _, node in one._engine._learned.nodes())
            node.unreachable(0.0, RNG, 0, proof=True, cause=REFUSED)
            assert storage.written["open"].wait(WITHIN_S)
            assert listener.reached["open"].wait(WITHIN_S)
            before = len(server.peers)
            with pytest.raises(NoHealthyEndpoint, match="held open by breaker_storage"):
                two.sync_client("inventory").get("/")
            assert one.sync_client("inventory").get("/").status_code == 200  # its probe
            assert storage.written["closed"].wait(WITHIN_S)
            assert listener.reached["closed"].wait(WITHIN_S)
            assert two.sync_client("inventory").get("/").status_code == 200
            assert len(server.peers) == before


# Without either


def test_without_either_nothing_is_added(tmp_path):
    """Nodes, breakers and bound stacks are of the same types, layer by layer, and no thread is added."""

    def shape(service):
        """The filters of a bound stack, outermost first, down to what ends it."""
        found = []
        while hasattr(service, "keywords"):
            found.append(type(service.func))
            service = service.keywords["service"]
        return [*found, type(service)]

    def made(**options):
        mesh = Mesh("orders", {**document("127.0.0.1:1"), "state_dir": str(tmp_path)}, **options)
        with mesh:
            service = mesh._engine.scope_of_threads().service("inventory")
            router = service.keywords["service"].keywords["service"]
            routes = [shape(router.bind(index)) for index in range(len(router.routes))]
            node = next(node for _, node in mesh._engine._learned.nodes())
            return shape(service), routes, node, mesh._engine._storage_agent is not None

    plain, listening = made(), made(breaker_listeners=[Everything()])
    assert (type(plain[2]), type(plain[2].reach), type(plain[2].ejection)) == (Node, Breaker, Breaker)
    assert plain[:2] == listening[:2]
    assert plain[1][0][-1].__name__ == "Balance"
    assert (plain[3], listening[3], made(breaker_storage=CircuitMemoryStorage)[3]) == (False, False, True)
