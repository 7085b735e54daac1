"""The reference band while a run trains: where the run is, on the screen and in its metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quillgpt.config import RunConfig
from quillgpt.evaluate.bands import Band, find_band
from quillgpt.evaluate.bands.judging import Judge, judged
from quillgpt.run_dir import RunDirectory, read_metrics


class BandWatch:
    """Judges the logged lines of a run; what it knows is in metrics.jsonl, so a continued run goes on from there.

    Only looks at numbers that are there anyway. Ranks other than the first watch nothing.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        data_fingerprint: str,
        *,
        is_first: bool,
        say: Callable[[str], None],
        bands: Sequence[Band] | None = None,
    ) -> None:
        self._judge: Judge | None = None
        self._advice = f": check `quill doctor {run.path}`"
        if not is_first:
            return
        band = find_band(config, data_fingerprint, bands)
        if isinstance(band, str):
            say(f"reference band: {band}")
            return
        self._judge = judged(band, read_metrics(run.metrics), peak_lr=config.optim.lr)

    def judged(self, line: Mapping[str, Any]) -> dict[str, float]:
        """What a line that is logged gets besides: `band_excess`, where it is at a point of the band."""
        point = self._judge.take(line) if self._judge else None
        return {"band_excess": point.excess} if point else {}

    def told(self) -> dict[str, str]:
        """What the screen is told with every step; nothing without a band."""
        if self._judge is None:
            return {}
        is_outside = bool(self._judge.points and self._judge.points[-1].excess)
        return {"band": self._judge.told() + (self._advice if is_outside else "")}
