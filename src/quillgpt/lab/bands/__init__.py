"""Reference bands: the interval of the training loss of a healthy run of a recipe. docs/doctor.md explains them.

RECIPE.json in this folder is made by `python benchmarks/reference_bands.py RECIPE` from at least 8 seeds.
"""

from quillgpt.lab.bands.band import Band, find_band, read_band, shipped_bands
from quillgpt.lab.bands.judge import BandWatch, Judge, Point, judged

__all__ = ["Band", "BandWatch", "Judge", "Point", "find_band", "judged", "read_band", "shipped_bands"]
