"""Is one setting better than another, or is the difference noise between seeds? See `compare_runs`."""

from quillgpt.lab.compare.comparison import Comparison, compare_runs

__all__ = ["Comparison", "compare_runs"]
