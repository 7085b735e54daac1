"""The rows of every step where the batch grows: decided once from the ramp, kept with the run, never looked up again.

A ramp is written in shares (`config/batch_ramp.py`). With the steps known it becomes (step, rows), which is what the
loader's `BatchSchedule` takes and the checkpoint holds; so the position in the data stays a closed form of the step,
and a continued run has the batches it had. Where the ramp is changed, what was done stays and the rest follows the new.
"""

import math
from collections.abc import Callable, Sequence

from quillgpt.config.batch_ramp import batch_stages

Piece = tuple[int, int]
"""step from which on, and rows"""


def smallest_rows(ramp: str, rows: int) -> int:
    """Rows of the first stage, of a whole batch of `rows`."""
    return _share_of(rows, batch_stages(ramp)[0][0])


def stage_rows(ramp: str, rows: int) -> list[int]:
    """The different numbers of rows that a run with this ramp may have, of a whole batch of `rows`."""
    return list(dict.fromkeys(_share_of(rows, share) for share, _ in batch_stages(ramp)))


def pieces(ramp: str, *, rows: int, steps: int) -> list[Piece]:
    """(step, rows) of a run of so many steps, from step 0 on; a stage that is shorter than half a step is left out."""
    found: list[Piece] = []
    for share, begin in batch_stages(ramp):
        step = round(begin * steps)
        found = [piece for piece in found if piece[0] < step]
        if not found or found[-1][1] != _share_of(rows, share):
            found.append((step, _share_of(rows, share)))
    return found


def rows_in_all(ramp: str, *, rows: int, steps: int) -> int:
    """Rows of all steps together."""
    plan = pieces(ramp, rows=rows, steps=steps)
    ends = [*(step for step, _ in plan[1:]), steps]
    return sum((end - begin) * size for (begin, size), end in zip(plan, ends, strict=True))


def continued(done: Sequence[Piece], planned: Sequence[Piece], step: int) -> list[Piece]:
    """The pieces that began before the step as they were, and from the step on as planned."""
    kept = [piece for piece in done if piece[0] < step]
    now = [piece for piece in planned if piece[0] <= step][-1][1]
    if not kept or kept[-1][1] != now:
        kept.append((step, now))
    return kept + [piece for piece in planned if piece[0] > step]


def rate_share(rows: int, whole: int) -> float:
    """The share of the schedule's rate for a step of fewer rows: the square root of its share of the batch.

    The noise of a gradient falls with the root of the rows it is averaged over, and so grows the rate that suits an
    optimizer that divides by the gradient's size, as AdamW does [Malladi 2022]; for Muon it is taken over untested.
    """
    return math.sqrt(rows / whole)


def steps_within(
    budget: float, *, ramp: str, rows: int, first: int, seconds: Callable[[int], float], besides: float = 0.0
) -> int:
    """The most steps from step `first` on that the budget of seconds has room for, at least 1.

    A step of so many rows takes `seconds(rows)` and `besides`. The ramp is stretched over all steps, so that their
    number is searched for: more steps never take less time.
    """

    def needed(count: int) -> float:
        plan = pieces(ramp, rows=rows, steps=first + count)
        ends = [*(step for step, _ in plan[1:]), first + count]
        parts = [(max(0, end - max(first, begin)), size) for (begin, size), end in zip(plan, ends, strict=True)]
        return sum(length * (seconds(size) + besides) for length, size in parts if length)

    low, high = 1, 2
    while needed(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle) <= budget else (low, middle)
    return low


def _share_of(rows: int, share: float) -> int:
    return max(1, round(share * rows))
