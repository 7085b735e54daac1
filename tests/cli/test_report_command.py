"""`quill report` as a user sees it: what it writes and where, and its errors in one line."""

import json
import sys
from pathlib import Path

import pytest

from quillgpt import files
from quillgpt.cli.main import run
from quillgpt.errors import CheckpointError, ConfigError, DiskError
from quillgpt.recipes import recipe_config
from quillgpt.run_dir import config_toml


def make_run(path: Path, **settings: float) -> Path:
    path.mkdir(parents=True)
    (path / "config.toml").write_text(config_toml(recipe_config("debug", **settings)))
    lines = [{"step": n, "tokens": n * 1024, "train_loss": 5 / n, "elapsed_seconds": n / 10} for n in range(1, 9)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/one"))
    make_run(Path("runs/two"), lr=1e-2)


def names_in(directory: str) -> list[str]:
    return sorted(path.name for path in Path(directory).iterdir())


def test_the_report_of_one_run_is_in_its_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "runs/one"]) == 0
    assert capsys.readouterr().out.startswith("runs/one/report.html (")
    assert "<title>one · quillgpt report</title>" in Path("runs/one/report.html").read_text()
    assert run(["report", "runs/one", "--out", "runs/one/report.html"]) == 0  # a report is replaced


def test_the_report_of_several_runs_is_in_reports_or_where_out_says() -> None:
    assert run(["report", "runs/one", "runs/two"]) == 0
    assert "Two runs side by side" in Path("reports/one-two.html").read_text()
    for name in "xyz":
        make_run(Path("runs") / (name * 60))
    assert run(["report", *(f"runs/{name * 60}" for name in "xyz")]) == 0
    assert names_in("reports") == ["one-two.html", f"{'x' * 60}-and-2-more.html"]
    assert run(["report", "runs/one", "runs/two", "--out", "elsewhere/both.html"]) == 0
    assert names_in("elsewhere") == ["both.html"]


def test_png_writes_only_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "runs/one", "--png", "figures"]) == 0
    assert capsys.readouterr().out == "2 figures in figures: loss.png, loss-by-time.png\n"
    assert names_in("figures") == ["loss-by-time.png", "loss.png"]
    assert Path("figures/loss.png").read_bytes().startswith(b"\x89PNG")
    assert not Path("runs/one/report.html").exists()


def test_text_prints_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "runs/one", "--text"]) == 0
    shown = capsys.readouterr().out
    assert "A GPT (2 layers, 64 wide) was trained on Python's standard library" in shown
    assert "\x1b" not in shown
    assert not Path("runs/one/report.html").exists()


def test_without_a_run_it_reports_on_the_newest() -> None:
    checkpoint = Path("runs/two/checkpoints/step-000008")
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    assert run(["report"]) == 0
    assert Path("runs/two/report.html").is_file()


def test_mistakes_in_the_arguments_are_one_line() -> None:
    mistakes = {
        ("--text", "--png", "x"): "--text prints and --png writes figures; give one of them",
        ("--text", "--out", "x"): "--out names the HTML file; leave it out with --text and --png",
        ("--out=",): "--out is empty",
        ("--out", "runs"): "--out runs is a directory; name a file in it, such as runs/report.html",
        ("--out", "runs/one/config.toml"): "config.toml exists and is not a report of quill's",
        ("runs/one/",): "runs/one is given twice",
        ("runs/one",) * 28: r"29 runs are too many for one report \(at most 28\)",
    }
    for words, message in mistakes.items():
        with pytest.raises(ConfigError, match=message):
            run(["report", "runs/one", *words])
    with pytest.raises(CheckpointError, match=r"runs/oen: no run there, it has no config.toml \(did you mean runs/one"):
        run(["report", "runs/oen"])


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for way in ([], ["--png", "figures"]):
        with pytest.raises(ConfigError, match=r"^the figures need matplotlib: pip install 'quillgpt\[lab\]'; --text"):
            run(["report", "runs/one", *way])


def test_a_failed_write_leaves_the_older_report(monkeypatch: pytest.MonkeyPatch) -> None:
    run(["report", "runs/one"])
    before = Path("runs/one/report.html").read_bytes()

    def fail(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(DiskError, match="No space left"):
        run(["report", "runs/one"])
    assert Path("runs/one/report.html").read_bytes() == before
    assert names_in("runs/one") == ["config.toml", "metrics.jsonl", "report.html"]
