"""`python -m meshlib.demo.replica NAME`: an application of the demo, as a process that ends when the demo does.

The demo holds the other end of standard input: its end, however the demo ended, ends this process too.
"""

from __future__ import annotations

import logging
import os
import runpy
import sys
import threading

APPLICATIONS = ("storefront", "orders", "inventory")


def main(name: str) -> None:
    """Run the application `name` as a program."""
    if name not in APPLICATIONS:
        raise SystemExit(f"{name!r} is no application of the demo; there are {', '.join(APPLICATIONS)}")
    threading.Thread(target=_end_with_the_demo, name="demo-watchdog", daemon=True).start()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its line per call would fill the disk in `--keep`
    runpy.run_module(f"meshlib.demo.{name}", run_name="__main__")


def _end_with_the_demo() -> None:
    # Not sys.stdin: a thread inside its buffer would keep the interpreter from ending.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
