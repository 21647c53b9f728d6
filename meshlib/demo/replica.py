"""`python -m meshlib.demo.replica NAME`: a program of the demo, as a process that ends when the demo does.

NAME is one of the applications, or `control`, which with its arguments is `meshlib control`. The demo holds the other
end of standard input: its end, however the demo ended, ends this process too.
"""

from __future__ import annotations

import logging
import os
import runpy
import sys
import threading

APPLICATIONS = ("storefront", "orders", "inventory", "prices")
CONTROL = "control"


def main(name: str, *arguments: str) -> None:
    """Run `name` as a program."""
    if name not in (*APPLICATIONS, CONTROL):
        raise SystemExit(f"{name!r} is no program of the demo; there are {', '.join((*APPLICATIONS, CONTROL))}")
    threading.Thread(target=_end_with_the_demo, name="demo-watchdog", daemon=True).start()
    if name == CONTROL:
        sys.argv = ["meshlib", CONTROL, *arguments]
        runpy.run_module("meshlib", run_name="__main__")
        return
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its line per call would fill the disk in `--keep`
    runpy.run_module(f"meshlib.demo.{name}", run_name="__main__")


def _end_with_the_demo() -> None:
    # Not sys.stdin: a thread inside its buffer would keep the interpreter from ending.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(*(sys.argv[1:] or [""]))
