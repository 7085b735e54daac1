"""`quill demo`, small: it trains, compares itself with compressors, writes samples; run again it loses nothing."""

import json
from pathlib import Path

import pytest

from quillgpt.cli import demo

SMALL = ["--minutes", "0", "--steps", "3", "--n-layer", "1", "--n-embd", "32", "--n-head", "2", "--eval-tokens", "2000"]
SMALL += ["--tokenizer", "byte", "--documents", "110", "--threads", "1", "--dtype", "fp32"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "SAMPLE_TOKENS", 5)
    return tmp_path


def test_the_demo_trains_compares_samples_and_says_what_next(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(SMALL) == 0
    shown = capsys.readouterr().out
    for words in (
        "this model",
        "gzip -9",
        "xz -9e",
        "knowing the training text",
        "after 'def main():'",
        "what to do next",
        "your own text",
    ):
        assert words in shown
    kept = json.loads(next((here / "data").glob("*/compressors.json")).read_text())
    assert 1.0 < kept["xz -9e"] < kept["gzip -9"] < 4.0
    assert kept["xz -9e, knowing the training text"] < kept["xz -9e"]


def test_a_second_demo_reuses_the_data_and_keeps_the_first_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.main(SMALL)
    data = {path: path.stat().st_mtime_ns for path in (here / "data").rglob("*.bin")}
    first = {path: path.read_bytes() for path in (here / "runs" / "demo").rglob("*.safetensors")}
    capsys.readouterr()
    demo.main(SMALL)
    assert "preparing" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (here / "data").rglob("*.bin")} == data
    assert {path: path.read_bytes() for path in (here / "runs" / "demo").rglob("*.safetensors")} == first
    assert (here / "runs" / "demo-2").is_dir()


def test_the_figures_of_other_data_are_not_reused(here: Path) -> None:
    demo.main(SMALL)
    kept = next((here / "data").glob("*/compressors.json"))
    figures = json.loads(kept.read_text())
    kept.write_text(json.dumps({**figures, "data": "other", "gzip -9": 99.0}))
    assert demo.compressor_figures(kept.parent)["gzip -9"] == figures["gzip -9"]
