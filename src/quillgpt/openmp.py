"""How long torch's idle OpenMP threads spin before they sleep; it has to be set before torch is loaded.

A training step of a small network is a thousand short parallel regions. By default a thread that is done spins for
milliseconds until the others are done. Where another program uses a core, all threads spin through its time slices:
two threads on two cores were measured at a tenth of the speed of one. Short spinning avoids this, but on an idle
machine it costs a fifth of the speed, because threads fall asleep between regions. So the spin count depends on the
load of the machine (docs/speed.md).
"""

import os
import sys
import time
from pathlib import Path

SPINS_WHEN_QUIET, SPINS_WHEN_BUSY = "10000", "1000"  # about 100 and 10 microseconds; the default is 300,000
CORES_PER_OTHER_THREAD = 8  # one other running thread for this many cores does not make a machine busy
SAMPLES, SECONDS_BETWEEN = 3, 0.002
USERS_OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
LOAD = Path("/proc/loadavg")


def spin_briefly() -> None:
    """Set the spin count of torch's libgomp, unless torch is already loaded or the user has set one."""
    if "torch" not in sys.modules and not any(name in os.environ for name in USERS_OWN):
        os.environ["GOMP_SPINCOUNT"] = SPINS_WHEN_BUSY if is_busy() else SPINS_WHEN_QUIET


def is_busy() -> bool:
    """Whether other programs are computing, in each of a few samples; False where the load cannot be read."""
    for sample in range(SAMPLES):
        if sample:
            time.sleep(SECONDS_BETWEEN)
        if running_threads() - 1 <= (os.cpu_count() or 1) // CORES_PER_OTHER_THREAD:  # one is this process
            return False
    return True


def running_threads() -> int:
    """Threads of this machine that are running or ready to run; 1 where that cannot be read."""
    try:
        return int(LOAD.read_text().split()[3].split("/")[0])  # as in "0.20 0.18 0.12 1/80 11206"
    except (OSError, ValueError, IndexError):
        return 1
