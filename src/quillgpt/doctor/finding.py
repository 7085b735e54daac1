"""What the doctor says: a cause, how sure it is, the numbers that speak for it, and what to do."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quillgpt.doctor.observed import Observed

CERTAIN, VERY_LIKELY, LIKELY, POSSIBLE = "certain", "very likely", "likely", "possible"
CERTAINTIES = (CERTAIN, VERY_LIKELY, LIKELY, POSSIBLE)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One cause that the evidence speaks for; `certainty` is one of `CERTAINTIES`."""

    certainty: str
    evidence: tuple[str, ...]
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Cause:
    """An entry of the menu: what it needs to be looked for, how it is, and which findings follow from it.

    `needs` are names of `Observed.missing`. What a cause `explains` is not told besides, where it is at least likely.
    """

    needs: tuple[str, ...]
    look: "Callable[[Observed], Finding | None]"
    explains: tuple[str, ...] = ()
