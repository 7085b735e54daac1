"""Which band a run is judged by: one of the same settings and data, or the reason why there is none.

The settings that define a run must be the band's. Those that a band is there to judge need not be: the learning rate
and the optimizer's other numbers. Those that leave the training loss alone neither: where it runs, what is logged,
evaluated and kept. Schedule and length are compared step by step while a run is judged (`judging.py`).
"""

from collections.abc import Sequence

from quillgpt.config import RunConfig, Scalar, flatten, group_of
from quillgpt.evaluate.bands.band import Band, shipped_bands

THE_SAME = {"explicit": "softmax"}
"""attentions that compute the same numbers"""
STILL_THE_RECIPE = 4
"""a run with more settings changed than this is another recipe"""
MEANT = 12  # digits of a fingerprint that are shown


def tokens_per_step(config: RunConfig) -> int:
    """Tokens in one step, where the settings say it; 0 where the machine decides."""
    train = config.train
    if train.batch_tokens:
        return train.batch_tokens
    return train.batch_size * config.model.context_length * max(1, train.gradient_accumulation_steps)


def defining_settings(config: RunConfig) -> dict[str, Scalar]:
    """The settings that define the training loss of a run, beside its data and its schedule."""
    settings = flatten(config)
    shape = {name: settings[name] for name, group in group_of().items() if group == "model"}
    shape["attention"] = THE_SAME.get(config.model.attention, config.model.attention)
    others = {name: settings[name] for name in ("optimizer", "init", "lora_rank", "batch_ramp")}
    return shape | others | {"tokens_per_step": tokens_per_step(config)}


def find_band(config: RunConfig, data_fingerprint: str, bands: Sequence[Band] | None = None) -> Band | str:
    """The band for a run of these settings on this data, or in words why there is none."""
    band, differences = nearest_band(config, bands)
    if band is None or len(differences) > STILL_THE_RECIPE:
        return "no band for this recipe"
    if differences:
        return f"no band for these settings: {'; '.join(differences)} (of the recipe {band.recipe})"
    if data_fingerprint != band.fingerprint:
        ours, theirs = data_fingerprint[:MEANT] or "unknown", band.fingerprint[:MEANT]
        return f"no band for this data: its fingerprint is {ours}, the band's is {theirs} ({band.data})"
    return band


def nearest_band(config: RunConfig, bands: Sequence[Band] | None = None) -> tuple[Band | None, list[str]]:
    """The band whose settings differ least from the run's, and what differs, as "n_layer 6, not 3"."""
    candidates = shipped_bands() if bands is None else bands
    ours, usual = defining_settings(config), defining_settings(RunConfig())
    found: list[tuple[int, Band, list[str]]] = []
    for band in candidates:
        differing = [
            f"{name} {value}, not {theirs}"
            for name, value in ours.items()
            if value != (theirs := band.settings.get(name, usual[name]))  # a setting younger than the band
        ]
        found.append((len(differing), band, differing))
    if not found:
        return None, []
    _, band, differing = min(found, key=lambda entry: entry[0])
    return band, differing
