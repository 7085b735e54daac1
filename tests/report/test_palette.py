import itertools

import pytest

from quillgpt.cli.report import MOST_RUNS
from quillgpt.report.palette import DARK, LIGHT, RUNS_ON_DARK, RUNS_ON_LIGHT, colour_number, contrast, dash

SCHEMES = {"light": (LIGHT, RUNS_ON_LIGHT), "dark": (DARK, RUNS_ON_DARK)}


def test_contrast_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lines_and_text_can_be_seen(scheme: str) -> None:
    colours, runs = SCHEMES[scheme]
    assert min(contrast(run, colours["ground"]) for run in runs) >= 3.0
    for text, ground in itertools.product(("text", "muted", "accent"), ("ground", "raised")):
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def test_every_run_of_a_report_looks_different() -> None:
    looks = {(colour_number(run), dash(run)) for run in range(MOST_RUNS)}
    assert len(looks) == MOST_RUNS
