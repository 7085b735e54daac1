"""How torch's threads wait for each other, which can be said only before torch is loaded.

A training step of a small network is a thousand short parallel pieces. By default a thread that is done spins for
milliseconds until the others are; where another program takes a core for a moment, all of them spin through its time
slice, in every piece: two threads on two cores were measured to drop to a tenth of one thread's speed. With spinning
for microseconds, and sleeping after that, they keep it (docs/speed.md).
"""

import os
import sys

SPINS = "1000"
"""turns of the waiting loop, some ten microseconds; GNU's OpenMP has 300,000 by itself"""
USERS_OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def spin_briefly() -> None:
    """Set it for the libgomp that torch will bring, unless torch is loaded or the user has said how to wait."""
    if "torch" not in sys.modules and not any(name in os.environ for name in USERS_OWN):
        os.environ["GOMP_SPINCOUNT"] = SPINS
