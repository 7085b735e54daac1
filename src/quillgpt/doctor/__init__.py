"""What is wrong with a run: `diagnose` compares it with its reference band and looks for causes in its records.

`observed.py` and `examine.py` gather what is known, `probe.py` looks at the checkpoint, `causes/` is the menu.
docs/doctor.md shows each with its evidence.
"""

from quillgpt.doctor.diagnose import Diagnosis, diagnose
from quillgpt.doctor.finding import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
