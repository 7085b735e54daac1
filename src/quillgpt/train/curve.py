"""A small line plot in characters, for the training screen."""

import itertools
import math
from collections.abc import Sequence

LEVELS = " ▁▂▃▄▅▆▇█"


def curve(values: Sequence[float], *, width: int, height: int) -> list[str]:
    """Bars for the finite values, oldest left, each column the mean of its share; the range stands at the left."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return []
    columns = min(width, len(values))
    bounds = [len(values) * column // columns for column in range(columns + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    steps = height * (len(LEVELS) - 1)
    filled = [1 + round((mean - low) / span * (steps - 1)) for mean in means]
    lines = []
    for line in reversed(range(height)):
        base = line * (len(LEVELS) - 1)
        bars = "".join(LEVELS[min(len(LEVELS) - 1, max(0, level - base))] for level in filled)
        label = {height - 1: f"{high:.2f}", 0: f"{low:.2f}"}.get(line, "")
        lines.append(f"{label:>6} {bars}")
    return lines
