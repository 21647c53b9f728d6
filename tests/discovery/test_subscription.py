"""What arrives, what goes in, and what stays out: conversations with a config service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from discovery.fragments import endpoints, fragment, service
from meshlib.discovery.fragment import Fragment
from meshlib.discovery.subscription import REJECTED_TOLD_MAX, WANTED_MAX, Subscription
from meshlib.errors import ConfigError, Problem

OWN = "front.default"


def compose(defaults: Mapping[str, Any], services: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A policy is what it says; `bad` in a service is a mistake there, and so is a backend that is not there."""
    problems = []
    for name, policy in services.items():
        if policy.get("bad"):
            problems.append(Problem("control", 0, 0, f"services.{name}.bad", "is bad"))
        problems += [
            Problem("control", 0, 0, f"services.{name}.routes[0]", f"{target} is no service")
            for target in policy.get("to", ())
            if target not in services
        ]
    if "bad" in defaults:
        problems.append(Problem("control", 0, 0, "defaults.bad", "is bad"))
    if problems:
        raise ConfigError(problems)
    return {"defaults": dict(defaults), **{name: dict(policy) for name, policy in services.items()}}


class Process:
    """A subscription and what is in force by it."""

    def __init__(self, *want: str) -> None:
        self.subscription = Subscription("shop", OWN)
        self.subscription.want(want)
        self.policy: dict[str, Any] | None = None

    def hears(self, *fragments: Fragment, now: float = 0.0) -> list[str]:
        """One reply. Why fragments of it were ignored."""
        self.subscription.begin_report()
        ignored = [why for fragment in fragments if (why := self.subscription.take(fragment, now))]
        self.policy = self.subscription.settle(compose) or self.policy
        return ignored


def started(*want: str, **policies: dict[str, Any]) -> Process:
    """A process that has heard its first reply, of version 1."""
    process = Process(*want)
    told = [fragment("defaults", 1, {}), service(OWN, 1)]
    for name in want:
        told += [service(name, 1, policies.get(name.partition(".")[0])), endpoints(name, 1, "h:1")]
    assert process.hears(*told) == []
    return process


def test_a_service_goes_in_with_everything_it_needs() -> None:
    """Policy, endpoints, and both of what its routes name, also at second hand."""
    process = Process("a.default")
    process.hears(fragment("defaults", 1, {}), service(OWN, 1))
    assert process.policy == {"defaults": {}, OWN: {}}
    process.hears(
        service("a.default", 2, {"to": ["b.default"]}, needs=("b.default",)), endpoints("a.default", 2, "h:1")
    )
    assert not process.subscription.knows("a.default")
    process.hears(service("b.default", 3, {"to": ["c.default"]}, needs=("c.default",)), endpoints("b.default", 3))
    assert not process.subscription.knows("a.default")
    process.hears(service("c.default", 4), endpoints("c.default", 4, "h:2"))
    assert process.subscription.exists("a.default")
    assert set(process.policy or ()) == {"defaults", OWN, "a.default", "b.default", "c.default"}


def test_nothing_goes_in_before_the_defaults() -> None:
    """They decide about every service."""
    process = Process()
    process.hears(service(OWN, 1))
    assert process.policy is None
    process.hears(fragment("defaults", 2, {"timeout": "1s"}))
    assert process.policy == {"defaults": {"timeout": "1s"}, OWN: {}}


def test_a_route_changes_when_what_it_newly_needs_has_arrived() -> None:
    """Warm swap: until then the old one is in force."""
    process = started("a.default", a={"v": 1})
    process.hears(service("a.default", 2, {"v": 2, "to": ["b.default"]}, needs=("b.default",)))
    assert (process.policy or {})["a.default"] == {"v": 1}
    process.hears(service("b.default", 3), endpoints("b.default", 3, "h:9"))
    assert (process.policy or {})["a.default"] == {"v": 2, "to": ["b.default"]}


def test_one_that_there_is_not() -> None:
    """null: known, and no service."""
    process = started()
    process.subscription.want(["nobody.default"])
    process.hears(fragment("service/nobody.default", 2, None), fragment("endpoints/nobody.default", 2, None))
    assert process.subscription.knows("nobody.default")
    assert not process.subscription.exists("nobody.default")
    process.hears(service("nobody.default", 3), endpoints("nobody.default", 3, "h:1"))
    assert process.subscription.exists("nobody.default")


def test_a_bad_resource_is_rejected_and_its_neighbours_go_in() -> None:
    """Reported with why; the last good version stays; asked for no more (A46)."""
    process = started("a.default", "b.default")
    process.hears(service("a.default", 2, {"bad": True}), service("b.default", 2, {"v": 2}))
    assert (process.policy or {})["a.default"] == {}
    assert (process.policy or {})["b.default"] == {"v": 2}
    request = process.subscription.request()
    assert "is bad" in request["rejected"]["service/a.default"]["why"]
    assert request["have"]["service/a.default"] == ("e1", 2)
    process.hears(service("a.default", 3, {"v": 3}))
    assert (process.policy or {})["a.default"] == {"v": 3}
    assert process.subscription.request()["rejected"] == {}


def test_bad_defaults_hold_back_what_was_written_for_them() -> None:
    """A service of the same edit relied on them; one of another edit goes in."""
    process = started("a.default", "b.default")
    process.hears(
        fragment("defaults", 2, {"bad": 1}), service("a.default", 2, {"v": 2}), service("b.default", 3, {"v": 3})
    )
    assert process.policy == {"defaults": {}, OWN: {}, "a.default": {}, "b.default": {"v": 3}}
    assert set(process.subscription.rejected) == {"defaults", "service/a.default"}
    process.hears(fragment("defaults", 4, {"good": 1}))
    assert process.policy == {"defaults": {"good": 1}, OWN: {}, "a.default": {"v": 2}, "b.default": {"v": 3}}
    assert process.subscription.rejected == {}


def test_laxer_defaults_do_not_go_in_without_the_stricter_service() -> None:
    """One edit moves `strict` from the defaults to the services, one of which cannot be used: all stays as it was."""
    process = Process("a.default", "b.default")
    process.hears(
        fragment("defaults", 1, {"mtls": "strict"}), service(OWN, 1), service("a.default", 1), service("b.default", 1),
        endpoints("a.default", 1, "h:1"), endpoints("b.default", 1, "h:2"),
    )  # fmt: skip
    before = process.policy
    process.hears(
        fragment("defaults", 2, {"mtls": "disabled"}), service("a.default", 2, {"mtls": "strict", "bad": True}),
        service("b.default", 2, {"mtls": "strict"}),
    )  # fmt: skip
    assert process.policy == before
    assert "service/a.default" in process.subscription.rejected


def test_nothing_is_in_force_before_our_own_service() -> None:
    """It is rejected at the start: what it would be served by is not its policy, so there is none."""
    process = Process("a.default")
    process.hears(
        fragment("defaults", 1, {"mtls": "disabled"}), service(OWN, 1, {"mtls": "strict", "bad": True}),
        service("a.default", 1), endpoints("a.default", 1, "h:1"),
    )  # fmt: skip
    assert process.policy is None
    assert not process.subscription.knows("a.default")
    process.hears(service(OWN, 2, {"mtls": "strict"}))
    assert process.policy == {"defaults": {"mtls": "disabled"}, OWN: {"mtls": "strict"}, "a.default": {}}


def test_what_breaks_a_neighbour_in_force_is_kept_out_until_the_neighbour_has_moved() -> None:
    """b is taken away while a's route names it: the removal waits; with a's new route it goes through."""
    process = started("b.default")
    process.subscription.want(["a.default"])
    process.hears(
        service("a.default", 2, {"to": ["b.default"]}, needs=("b.default",)), endpoints("a.default", 2, "h:1")
    )
    gone = fragment("service/b.default", 3, None)
    assert process.hears(gone) == ["it takes away so much that it must be said twice"]
    assert process.hears(gone) == []
    assert process.subscription.exists("b.default")
    assert "b.default is no service" in process.subscription.rejected["service/b.default"][1]
    process.hears(service("a.default", 4, {}))
    assert not process.subscription.exists("b.default")
    assert process.subscription.rejected == {}


def test_two_that_go_only_together_go_together() -> None:
    """a's new route names the new service b: neither order alone would compose."""
    process = started("a.default")
    process.hears(
        service("c.default", 2, {"bad": True}),
        service("a.default", 2, {"to": ["b.default"]}, needs=("b.default",)),
        service("b.default", 2), endpoints("b.default", 2, "h:2"), endpoints("c.default", 2),
    )  # fmt: skip
    assert (process.policy or {})["a.default"] == {"to": ["b.default"]}
    assert set(process.subscription.rejected) == {"service/c.default"}


def test_versions_do_not_go_back_within_an_epoch() -> None:
    """Older and equal ones are ignored, and it is said which (F04)."""
    process = started("a.default")
    process.hears(service("a.default", 5, {"v": 5}))
    assert process.hears(service("a.default", 4, {"v": 4})) == ["it is version 4, older than 5"]
    assert process.hears(service("a.default", 5, {"v": "other"})) == ["it is known already"]
    assert (process.policy or {})["a.default"] == {"v": 5}


def test_a_new_epoch_begins_anew_and_an_old_one_never_returns() -> None:
    """The store was replaced: lower numbers are taken. What replays the old one is ignored."""
    process = started("a.default")
    assert process.hears(service("a.default", 1, {"v": "new"}, epoch="e2")) == []
    assert (process.policy or {})["a.default"] == {"v": "new"}
    assert process.hears(service("a.default", 99, {"v": "old"}, epoch="e1")) == ["it is of epoch e1, which was left"]
    assert (process.policy or {})["a.default"] == {"v": "new"}


def test_a_disk_says_nothing_about_the_present_epoch() -> None:
    """A snapshot has parts of several: the config service may be of any of them, or of another."""
    for present in ("e1", "e2", "e3"):
        process = Process("a.default")
        kept = [
            fragment("defaults", 9, {}, epoch="e1"), service(OWN, 8, epoch="e2"), service("a.default", 7, epoch="e1"),
            endpoints("a.default", 6, "h:1", epoch="e2"),
        ]  # fmt: skip
        assert [process.subscription.take(part, 0.0) for part in kept] == [""] * 4
        assert process.subscription.settle(compose) is not None
        assert process.hears(service("a.default", 10, {"v": present}, epoch=present)) == []
        assert (process.policy or {})["a.default"] == {"v": present}


def test_another_mesh_says_nothing() -> None:
    """Signed by the same root, but not ours."""
    process = started()
    assert process.hears(fragment("defaults", 9, {"v": 9}, mesh="other")) == [
        "it is of the mesh 'other', not of 'shop'"
    ]


def test_what_could_not_be_read_is_not_asked_for_again() -> None:
    """Its version counts as had, until a newer one is taken."""
    process = started("a.default")
    process.subscription.refuse("service/a.default", ("e1", 7), "it has no content")
    assert process.subscription.request()["have"]["service/a.default"] == ("e1", 7)
    process.hears(service("a.default", 8, {"v": 8}))
    assert process.subscription.request()["have"]["service/a.default"] == ("e1", 8)
    assert process.subscription.request()["rejected"] == {}


def test_a_guarded_withdrawal_is_asked_for_again() -> None:
    """Its version is not in `have`, so that the next poll brings it once more."""
    process = started("a.default")
    process.hears(endpoints("a.default", 2, "h:1", "h:2", "h:3", "h:4"))
    process.hears(endpoints("a.default", 3, "h:1"))
    assert process.subscription.request()["have"]["endpoints/a.default"] == ("e1", 2)
    assert len(process.subscription.endpoints(0.0)["a.default"]) == 4
    process.hears(endpoints("a.default", 3, "h:1"))
    assert process.subscription.request()["have"]["endpoints/a.default"] == ("e1", 3)
    assert len(process.subscription.endpoints(0.0)["a.default"]) == 1


def test_own_endpoints_are_followed_only_by_who_calls_its_own_service() -> None:
    """A service of n replicas would cost n² otherwise."""
    process = Process()
    process.hears(fragment("defaults", 1, {}), service(OWN, 1))
    assert process.subscription.exists(OWN)
    caller = Process(OWN)
    caller.hears(fragment("defaults", 1, {}), service(OWN, 1))
    assert not caller.subscription.knows(OWN)
    caller.hears(endpoints(OWN, 2, "h:1"))
    assert caller.subscription.exists(OWN)


def test_own_routes_are_of_no_use_to_who_only_serves() -> None:
    """What they name is not followed, and not waited for; once the process calls its own service, it is."""
    process = Process()
    process.hears(fragment("defaults", 1, {}), service(OWN, 1, {"v": 1, "routes": [], "to": []}, needs=("b.default",)))
    assert process.policy == {"defaults": {}, OWN: {"v": 1, "to": []}}
    process.subscription.want([OWN])
    process.hears(endpoints(OWN, 2, "h:1"))
    assert process.policy == {"defaults": {}, OWN: {"v": 1, "to": []}}
    process.hears(service("b.default", 3), endpoints("b.default", 3))
    assert (process.policy or {})[OWN] == {"v": 1, "routes": [], "to": []}


def test_what_is_kept_for_a_restart_is_what_is_in_force() -> None:
    """Not what was rejected."""
    process = started("a.default")
    process.hears(service("a.default", 2, {"bad": True}))
    kept = {text for signed in process.subscription.signed() for text in [signed.payload]}
    assert not any('"bad"' in text for text in kept)
    again = Process("a.default")
    from meshlib.discovery.fragment import parse_fragment

    again.hears(*(parse_fragment(signed) for signed in process.subscription.signed()))
    assert again.policy == process.policy


def test_an_unchanged_reply_changes_nothing() -> None:
    """No new policy is made of it."""
    process = started("a.default")
    assert process.subscription.settle(compose) is None
    process.hears(endpoints("a.default", 2, "h:1", "h:2"))
    assert process.subscription.settle(compose) is None


def test_names_are_bounded() -> None:
    """Beyond, a name is not followed; and no poll tells more rejections than the service takes."""
    process = Process(*(f"s{n}.default" for n in range(WANTED_MAX + 10)))
    assert len(process.subscription.wanted) == WANTED_MAX
    for n in range(REJECTED_TOLD_MAX + 10):
        process.subscription.refuse(f"service/s{n}.default", ("e", 1), "why" * 1000)
    told = process.subscription.request()["rejected"]
    assert len(told) == REJECTED_TOLD_MAX
    assert max(len(item["why"]) for item in told.values()) <= 500


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_in_whatever_order_ends_as_the_last_word(seed: int) -> None:
    """Replies lost, doubled and shuffled; once the last version of each has been said twice, it is in force."""
    import random

    rng = random.Random(seed)
    names = ["a.default", "b.default", "c.default"]
    process = started(*names)
    for n in range(2, 40):
        name = rng.choice(names)
        told = [
            service(name, n, rng.choice([{"v": n}, {"bad": True}])),
            endpoints(name, n, *rng.sample(["h:1", "h:2", "h:3", "h:4"], rng.randint(0, 4))),
        ]
        rng.shuffle(told)
        process.hears(*told[: rng.randint(0, 2)])
    last = [
        part
        for i, name in enumerate(names)
        for part in (service(name, 100 + i, {"last": name}), endpoints(name, 100 + i, "h:7"))
    ]
    process.hears(*last)
    process.hears(*last)
    assert {name: (process.policy or {})[name] for name in names} == {name: {"last": name} for name in names}
    assert {e.port for name in names for e in process.subscription.endpoints(0.0)[name]} == {7}
