"""Is one setting better than another, or is it the luck of the seeds? `compare_runs` puts runs side by side.

Runs that differ in nothing but the seed are one group (`groups.py`); their losses are read at equal steps, tokens and
seconds (`readings.py`); the difference of two groups gets an interval (`difference.py`) and a verdict (`verdict.py`).
"""

from quillgpt.compare.comparison import Comparison, compare_runs

__all__ = ["Comparison", "compare_runs"]
