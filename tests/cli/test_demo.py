"""`quill demo`, small: it trains, compares with compressors and writes samples; a second demo overwrites nothing."""

import json
from pathlib import Path

import pytest

from quillgpt.cli import demo

SMALL = ["--minutes", "0", "--steps", "3", "--n-layer", "1", "--n-embd", "32", "--n-head", "2", "--eval-tokens", "2000"]
SMALL += ["--tokenizer", "byte", "--documents", "110", "--threads", "1", "--dtype", "fp32"]
WORDS = "this model|gzip -9|xz -9e|knowing the training text|after 'def main():'|what to do next|your own text"


def test_the_demo_trains_compares_and_samples_and_a_second_one_reuses_only_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "SAMPLE_TOKENS", 5)
    assert demo.main(SMALL) == 0
    shown = capsys.readouterr().out
    for words in WORDS.split("|"):
        assert words in shown
    path = next((tmp_path / "data").glob("*/compressors.json"))
    figures = json.loads(path.read_text())
    assert 1.0 < figures["xz -9e"] < figures["gzip -9"] < 4.0
    assert figures["xz -9e, knowing the training text"] < figures["xz -9e"]

    data = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.bin")}
    first = {path: path.read_bytes() for path in (tmp_path / "runs" / "demo").rglob("*.safetensors")}
    demo.main(SMALL)
    assert "preparing" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.bin")} == data
    assert {path: path.read_bytes() for path in (tmp_path / "runs" / "demo").rglob("*.safetensors")} == first
    assert (tmp_path / "runs" / "demo-2").is_dir()

    path.write_text(json.dumps({**figures, "gzip -9": 99.0}))
    assert demo.compressor_figures(path.parent)["gzip -9"] == 99.0, "the stored figures of the same data are used"
    path.write_text(json.dumps({**figures, "data": "other", "gzip -9": 99.0}))
    assert demo.compressor_figures(path.parent)["gzip -9"] == figures["gzip -9"]
