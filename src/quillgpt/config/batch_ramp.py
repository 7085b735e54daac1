"""How `batch_ramp` is written: `0.25@0,0.5@0.3,1@0.6` is a quarter of the batch from the start, half of it from 0.3 of
the steps on, all of it from 0.6 on.
"""

import math

from quillgpt.errors import ConfigError, shown

MOST_STAGES = 64
EXPECTED = "stages as in 0.25@0,0.5@0.3,1@0.6: share@beginning, both rising, from 0 of the steps on, the last share 1"

Stage = tuple[float, float]
"""share of the batch, and the share of the steps at which it begins"""


def batch_stages(ramp: str) -> list[Stage]:
    """The stages of a ramp in their order; of none, one of the whole batch. A `ConfigError` shows how it is written."""
    if not ramp:
        return [(1.0, 0.0)]
    words = ramp.split(",")
    try:
        stages = [
            (float(share), float(begin)) for share, begin in (word.split("@") for word in words[: MOST_STAGES + 1])
        ]
    except ValueError:
        stages = []
    if not _is_ramp(stages):
        raise ConfigError(f"batch_ramp = {shown(ramp)} is not possible: expected {EXPECTED}")
    return stages


def _is_ramp(stages: list[Stage]) -> bool:
    """Whether the stages are finite, both columns rise from (above 0, 0), and the last has all of the batch."""
    if not 1 <= len(stages) <= MOST_STAGES or not all(
        map(math.isfinite, (number for stage in stages for number in stage))
    ):
        return False
    shares, begins = zip(*stages, strict=True)
    rise = all(list(column) == sorted(set(column)) for column in (shares, begins))
    return rise and shares[0] > 0 and shares[-1] == 1 and begins[0] == 0 and begins[-1] < 1
