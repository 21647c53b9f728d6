"""The endpoints of a service over time: stale beats empty, a withdrawal is said twice, a new store is given time."""

from __future__ import annotations

from meshlib.discovery.registered import EPOCH_GRACE_S, FOREVER, Registered
from meshlib.endpoint import Endpoint


def listed(*ports: int) -> tuple[Endpoint, ...]:
    return tuple(Endpoint("h", port) for port in ports)


def report(registered: Registered, number: int, *ports: int, epoch: str = "e1", now: float = 0.0) -> bool:
    """Take report `number`, if it is believed."""
    if not registered.believes(epoch, listed(*ports), number):
        return False
    registered.update(epoch, listed(*ports), now)
    return True


def ports(registered: Registered, now: float = 0.0) -> list[int]:
    return [endpoint.port for endpoint in registered.endpoints(now)]


def test_what_is_reported_is_there() -> None:
    """Added, changed, removed: as reported, in its order."""
    registered = Registered()
    assert report(registered, 1, 1, 2, 3)
    assert report(registered, 2, 2, 3, 4)
    assert ports(registered) == [2, 3, 4]
    assert registered.next_at() == FOREVER


def test_more_than_half_of_four_is_said_twice() -> None:
    """The first report changes nothing; the next that says it, or something like it, is believed (F03)."""
    registered = Registered()
    report(registered, 1, 1, 2, 3, 4)
    assert not report(registered, 2, 1)
    assert ports(registered) == [1, 2, 3, 4]
    assert report(registered, 3, 1)
    assert ports(registered) == [1]


def test_a_suspicion_is_over_with_a_report_that_is_none() -> None:
    """A flap: gone, back, gone. The second `gone` is a first one again."""
    registered = Registered()
    report(registered, 1, 1, 2, 3, 4)
    assert not report(registered, 2)
    assert report(registered, 3, 1, 2, 3, 4)
    assert not report(registered, 4)
    assert ports(registered) == [1, 2, 3, 4]


def test_the_same_report_does_not_confirm_itself() -> None:
    """Twice in one reply is once."""
    registered = Registered()
    report(registered, 1, 1, 2, 3, 4)
    assert not report(registered, 2, 1)
    assert not report(registered, 2, 1)


def test_half_of_four_and_most_of_three_need_no_second_word() -> None:
    """The guard is for more than half of four or more; small services roll."""
    registered = Registered()
    report(registered, 1, 1, 2, 3, 4)
    assert report(registered, 2, 1, 2)
    small = Registered()
    report(small, 1, 1, 2, 3)
    assert report(small, 2, 1)


def test_stale_beats_empty() -> None:
    """An empty list, confirmed, marks the last endpoints absent; the next that is not empty takes their place."""
    registered = Registered()
    report(registered, 1, 1)
    assert not report(registered, 2)
    assert report(registered, 3)
    (kept,) = registered.endpoints(1e9)
    assert (kept.port, kept.absent) == (1, True)
    assert report(registered, 4, 2)
    assert ports(registered) == [2]


def test_an_absent_endpoint_that_registers_again_is_ready() -> None:
    """It is reported: that wins over what was kept."""
    registered = Registered()
    report(registered, 1, 1)
    report(registered, 2)
    report(registered, 3)
    report(registered, 4, 1)
    (back,) = registered.endpoints(0.0)
    assert not back.absent


def test_a_new_store_is_given_time_to_learn() -> None:
    """Of another epoch, a list is merged with what was known, for twice the lease (F04)."""
    registered = Registered()
    report(registered, 1, 1, 2, 3, 4, now=100.0)
    assert report(registered, 2, epoch="e2", now=101.0)
    assert ports(registered, 101.0) == [1, 2, 3, 4]
    assert report(registered, 3, 4, 5, epoch="e2", now=102.0)
    assert ports(registered, 102.0) == [4, 5, 1, 2, 3]
    assert registered.next_at() == 101.0 + EPOCH_GRACE_S
    assert ports(registered, 101.0 + EPOCH_GRACE_S) == [4, 5]


def test_a_second_loss_of_memory_extends_the_grace() -> None:
    """The store is lost again before its instances are back."""
    registered = Registered()
    report(registered, 1, 1, 2, now=0.0)
    report(registered, 2, epoch="e2", now=1.0)
    report(registered, 3, epoch="e3", now=20.0)
    assert ports(registered, 90.0) == [1, 2]
    assert [e.absent for e in registered.endpoints(90.0)] == [False, False]
    assert ports(registered, 20.0 + EPOCH_GRACE_S) == [1, 2], "stale beats empty"
    assert [e.absent for e in registered.endpoints(20.0 + EPOCH_GRACE_S)] == [True, True]
