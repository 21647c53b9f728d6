"""Mutated files and parts: only ConfigError may come out, the same for both. MESHLIB_FUZZ: how many; MESHLIB_SEED."""

from __future__ import annotations

import copy
import os
import random
from typing import Any

import pytest

from meshlib.config import MeshConfig, config_of, effective, parse_config
from meshlib.config.compose import compose
from meshlib.errors import ConfigError, Problem

from .documents import FIVE_MISTAKES, FULL

SEED = int(os.environ.get("MESHLIB_SEED", "20"))
COUNT = int(os.environ.get("MESHLIB_FUZZ", "1500"))

PIECES = [
    "&a ", "*a", "<<: ", "!!python/object:os.system ", "!x ", "\t", "\x00", "\ud800", "\u2028", "\x85", "\ufeff", "\r",
    "- ", ": ", "? ", "{", "}", "[", "]", "|", ">", "'", '"', "#", "%", "@", "`", "~", "null", "true", "1e999", ".nan",
    "-.inf", "0x", "9" * 50, "1:30", "99999h", "100%", "0%", "1GiB", "mirror: {}", "weight: 0", "services: ", "static: ",
    "file: /", "file: ''", "file: '\\0'", "---\n", "...\n", "version: 1\n", "\n", "    ", "é", "𝕏", "[" * 70, "{a: " * 70,
]  # fmt: skip


def mutate(rng: random.Random, text: str) -> str:
    lines = text.split("\n")
    for _ in range(rng.randint(1, 4)):
        kind, at = rng.randrange(7), rng.randrange(len(lines))
        other, line = rng.randrange(len(lines)), lines[at]
        cut = rng.randint(0, len(line))
        if kind == 0:
            lines[at] = line[:cut] + rng.choice(PIECES) + line[cut:]
        elif kind == 1:
            lines[at] = line[:cut] + line[cut + rng.randint(1, 5) :]
        elif kind == 2:
            lines[at], lines[other] = lines[other], line
        elif kind == 3:
            lines.insert(other, line)
        elif kind == 4 and len(lines) > 1:
            del lines[at]
        elif kind == 5:
            lines[at] = rng.choice(["", "  ", "    "]) + line.lstrip()
        else:
            words = line.split()
            lines[at] = line.replace(rng.choice(words), rng.choice(PIECES), 1) if words else rng.choice(PIECES)
    return "\n".join(lines)


def outcome(text: str) -> tuple[Problem, ...] | None:
    """The problems of a text, or None: accepted, and every policy in it can be computed."""
    try:
        config = parse_config(text, "mesh.yaml")
    except ConfigError as error:
        return error.problems
    for name, service in config.services.items():
        for route in (None, *range(len(service.routes))):
            effective(config, name, route)
    return None


@pytest.mark.fuzz
def test_only_config_errors_come_out() -> None:
    """Whatever the text: a configuration whose policies can be computed, or problems that each have a place."""
    print(f"MESHLIB_SEED={SEED} MESHLIB_FUZZ={COUNT}")
    rng = random.Random(SEED)
    accepted = 0
    for number in range(COUNT):
        text = mutate(rng, rng.choice((FULL, FULL, FIVE_MISTAKES)))
        problems = outcome(text)
        if problems is None:
            accepted += 1
            continue
        assert problems, (number, text)
        for problem in problems:
            assert problem.line >= 1, (number, problem, text)
            assert problem.column >= 1, (number, problem, text)
            assert "\n" not in str(problem), (number, problem, text)
    print(f"accepted {accepted} of {COUNT}")
    assert COUNT // 50 < accepted < COUNT // 2, "the mutations must leave some files valid, not most"


VALUES: list[Any] = [
    None, True, 0, -1, 7, 1.5, "", "a", "orders", "1s", "99h", "50%", "127.0.0.1:1", "10.0.0.1:1", [], {}, ["a"], {"a": "b"},
    [{"registry": {}}], [{"file": "eps.yaml"}], {"registry": {}}, [{}], "v1", "strict", "nobody",
]  # fmt: skip


def places(node: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of everything in some data."""
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, value in inside for found in ((node, key), *places(value))]


def mutate_data(rng: random.Random, data: dict[str, Any]) -> None:
    """Change one to three values, or the key of one."""
    for _ in range(rng.randint(1, 3)):
        node, key = rng.choice(places(data))
        if isinstance(node, dict) and node is not data and rng.random() < 0.2:
            node[rng.choice(["timeout", "orders", "x", "subset", "backends"])] = node.pop(key)
        elif node is not data:
            node[key] = copy.deepcopy(rng.choice(VALUES))


def refused(make: Any) -> set[str] | None:
    """The paths of the problems; None: it was made."""
    try:
        made: MeshConfig = make()
    except ConfigError as error:
        return {problem.path for problem in error.problems}
    for name, service in made.services.items():
        for route in (None, *range(len(service.routes))):
            effective(made, name, route)
    return None


@pytest.mark.fuzz
def test_parts_are_judged_as_files_are() -> None:
    """The same data is refused at the same fields, or makes the same policy, whether it is a file or came in parts.

    But for the two things that a part of a mesh is judged by differently: whom it consents to, and files.
    """
    print(f"MESHLIB_SEED={SEED} MESHLIB_FUZZ={COUNT}")
    rng, accepted = random.Random(SEED), 0
    bootstrap = parse_config("version: 1\nmesh: shop\ncontrol: {urls: ['https://c:1']}\n")
    defaults, services = parse_config(FULL).raw_policy()
    for number in range(COUNT):
        data = copy.deepcopy({"defaults": defaults, "services": services})
        mutate_data(rng, data)
        whole = {"version": 1, "mesh": "shop", "control": {"urls": ["https://c:1"]}, **data}
        in_parts = refused(lambda data=data: compose(bootstrap, "source", data["defaults"], data["services"])) or set()
        as_file = refused(lambda whole=whole: config_of(whole)) or set()
        differ = {
            path for path in in_parts ^ as_file if ".allow_routes_from" not in path and not path.endswith(".file")
        }
        assert differ == set(), (number, data)
        accepted += not in_parts
    print(f"accepted {accepted} of {COUNT}")
    assert COUNT // 50 < accepted < COUNT // 2, "the mutations must leave some policies valid, not most"
