"""Writes the generated parts of these pages: what the code says of itself is not written a second time by hand.

    python docs/generate.py            write them
    python docs/generate.py --check    change nothing; exit 1 and name the pages that are stale

A part stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`, and is made by the function of that name in
`parts.py`, `parts_control.py` or `parts_mesh_yaml.py`. What is outside the markers is prose, and is left alone.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import parts
import parts_control
import parts_mesh_yaml

DOCS = Path(__file__).resolve().parent
PARTS = {**parts.PARTS, **parts_control.PARTS, **parts_mesh_yaml.PARTS}

_PART = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL)
_MARK = re.compile(r"<!-- (?:generated|end): ")


def fresh(text: str, page: str) -> str:
    """The text of a page with every generated part made anew. ValueError: a marker without its partner or its part."""

    def made(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in PARTS:
            raise ValueError(f"{page}: there is no part {name!r}; there are {', '.join(sorted(PARTS))}")
        return f"{match[1]}\n{PARTS[name]().strip()}\n\n{match[3]}"

    found = len(_PART.findall(text))
    if len(_MARK.findall(text)) != 2 * found:
        raise ValueError(f"{page}: a `generated` marker without its `end`, or the other way round")
    return _PART.sub(made, text)


def main(arguments: list[str]) -> int:
    """Write or check every page; the exit code."""
    check = arguments == ["--check"]
    if arguments and not check:
        sys.stderr.write("usage: python docs/generate.py [--check]\n")
        return 2
    stale = []
    for page in sorted(DOCS.glob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = fresh(before, page.name)
        if after != before:
            stale.append(page.name)
            if not check:
                page.write_text(after, encoding="utf-8")
    for name in stale:
        sys.stderr.write(f"docs/{name}: {'stale; run python docs/generate.py' if check else 'written'}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
