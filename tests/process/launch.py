"""Runs one script as a process that cannot outlive the test: `python launch.py PARENT SCRIPT ARGUMENT…`.

The kernel kills it when its parent is gone (PR_SET_PDEATHSIG), whatever ended the parent.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the test that started this process is gone")
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
