"""Find what is wrong with a run: `diagnose` compares it with its reference band and looks for causes in its records.

`observe.py` gathers what is known about the run, `probe.py` scores text with its checkpoint, `causes/` is the menu of
causes. docs/doctor.md explains each with its evidence.
"""

from quillgpt.lab.doctor.diagnose import Diagnosis, diagnose
from quillgpt.lab.doctor.observe import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
