"""How torch's threads wait for each other, which can be said only before torch is loaded.

A training step of a small network is a thousand short parallel pieces, and a token that is generated a hundred. By
default a thread that is done spins for milliseconds until the others are; where another program takes a core for a
moment, all of them spin through its time slice, in every piece: two threads on two cores were measured to drop to a
tenth of one thread's speed. Spinning briefly keeps it; spinning too briefly costs a fifth of the speed on a quiet
machine, where threads fall asleep in the gaps between two pieces. So how long depends on the machine (docs/speed.md).
"""

import os
import sys
import time
from pathlib import Path

SPINS_WHEN_QUIET, SPINS_WHEN_BUSY = "10000", "1000"
"""turns of the waiting loop, some hundred and some ten microseconds; GNU's OpenMP has 300,000 by itself"""
CORES_FOR_ONE = 8
"""so many cores bear another program that computes without being called busy; fewer bear none"""
LOOKS, SECONDS_BETWEEN = 3, 0.002
USERS_OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
LOAD = Path("/proc/loadavg")


def spin_briefly() -> None:
    """Set it for the libgomp that torch will bring, unless torch is loaded or the user has said how to wait."""
    if "torch" not in sys.modules and not any(name in os.environ for name in USERS_OWN):
        os.environ["GOMP_SPINCOUNT"] = SPINS_WHEN_BUSY if is_busy() else SPINS_WHEN_QUIET


def is_busy() -> bool:
    """Whether other programs compute right now, at every one of a few looks; where that is not told, no."""
    for look in range(LOOKS):
        if look:
            time.sleep(SECONDS_BETWEEN)
        if running_threads() - 1 <= (os.cpu_count() or 1) // CORES_FOR_ONE:  # this process is one of them
            return False
    return True


def running_threads() -> int:
    """Threads of this machine that use or want a core in this moment; 1 where that cannot be read."""
    try:
        return int(LOAD.read_text().split()[3].split("/")[0])  # as in "0.20 0.18 0.12 1/80 11206"
    except (OSError, ValueError, IndexError):
        return 1
