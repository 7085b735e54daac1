"""Reference bands: where the loss of a healthy run of a recipe lies, for every recipe that trains here in minutes.

A band is a JSON file in this folder, RECIPE.json, made by `python benchmarks/reference_bands.py RECIPE` from at least 8
seeds. It says for each point, a number of tokens, in which interval the smoothed training loss of one more run lies
with 99.9 %. `band.py` is the format, `making.py` the statistics, `finding.py` which run a band is for, `judging.py` the
comparison. docs/doctor.md explains all of it.
"""

from quillgpt.evaluate.bands.band import Band, read_band, shipped_bands
from quillgpt.evaluate.bands.finding import find_band

__all__ = ["Band", "find_band", "read_band", "shipped_bands"]
