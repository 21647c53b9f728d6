"""`meshlib`, and `python -m meshlib`: the command line, where its libraries are installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line and exit: 0 ok, 1 no, 2 wrong usage or refusing to start."""
    if find_spec("click") is None:
        sys.stderr.write("meshlib: the command line needs more libraries: install service-meshlib[cli]\n")
        raise SystemExit(2)
    from .cli import meshlib

    meshlib(prog_name="meshlib")


if __name__ == "__main__":
    main()
