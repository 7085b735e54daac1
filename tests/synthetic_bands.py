"""Reference bands of made-up losses, for runs of settings that a test knows."""

import numpy as np

from quillgpt.config import RunConfig, flatten, group_of
from quillgpt.lab.bands.band import Band, defining_settings, make_band


def band_of(
    config: RunConfig,
    losses: np.ndarray,
    *,
    tokens_per_step: int,
    gradient_norms: np.ndarray | None = None,
    recipe: str = "debug",
    fingerprint: str = "f" * 64,
) -> Band:
    """The band of runs of these settings with mean losses (runs, lines), as benchmarks/reference_bands.py makes it."""
    about = {
        "recipe": recipe,
        "settings": defining_settings(config),
        "fingerprint": fingerprint,
        "data": "synthetic",
        "optim": {name: value for name, value in flatten(config).items() if group_of()[name] == "optim"},
        "schedule_steps": config.train.steps,
        "seeds": list(range(len(losses))),
        "commit": "none",
        "hardware": "none",
        "made_with": {},
    }
    norms = np.ones_like(losses) if gradient_norms is None else gradient_norms
    return make_band(losses, norms, about=about, tokens_per_step=tokens_per_step, log_every=config.train.log_every)
