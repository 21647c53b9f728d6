"""Mutated files: only ConfigError may come out, and each problem has a place. MESHLIB_FUZZ: how many; MESHLIB_SEED."""

from __future__ import annotations

import os
import random

from meshlib.config import effective, parse_config
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
