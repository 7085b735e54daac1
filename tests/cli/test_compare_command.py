"""`quill compare` as it is typed: tables that fit, JSON, patterns, one line for each mistake, and real runs."""

import json
import sys
from pathlib import Path

import pytest

import quillgpt
from quillgpt.cli import compare
from quillgpt.cli import main as command_line
from quillgpt.recipes import load_recipe
from synthetic_runs import write_group, write_run

BASE = {1337: 3.00, 1338: 3.02, 1339: 2.98}
BETTER = {1337: 2.81, 1338: 2.82, 1339: 2.78}


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two groups, where the command is typed."""
    monkeypatch.chdir(tmp_path)
    write_group(Path("runs/base"), BASE)
    write_group(Path("runs/relu2"), BETTER, settings={"mlp": "relu2"}, seconds_per_step=0.2)
    return tmp_path / "runs"


def printed(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert compare.main(list(words)) == 0
    return capsys.readouterr().out


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str]:
    """The exit code and the one line of a mistake."""
    monkeypatch.setattr(sys, "argv", ["quill", "compare", *words])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1
    return stopped.value.code, written.err


@pytest.mark.parametrize("columns", [80, 140])
def test_the_tables_fit_and_say_what_is_known(
    columns: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = printed(capsys, "runs/base-seed-*", "runs/relu2-seed-*")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert max(map(len, text.splitlines())) <= columns
    assert lines[1:3] == ["A base 1337-1339 3 100 100,000 10.0", "B relu2 1337-1339 3 100 100,000 20.0"]
    assert "mlp gelu relu2" in lines
    held_out = lines.index("held-out loss, nats per token")
    assert lines[held_out + 1 : held_out + 4] == [
        "at step 100 at 100,000 tokens after 10.0 s",
        "A base 3.0000 ± 0.0200 3.0000 ± 0.0200 3.0000 ± 0.0200",
        "B relu2 2.8033 ± 0.0208 2.8033 ± 0.0208 4.0306 ± 0.0208",  # at step 50: 4.8033 - 1.5 * (50 - 33) / (66 - 33)
    ]
    end = lines.index("held out, at the end")
    assert lines[end + 2 : end + 4] == [
        "A base 3.0000 ± 0.0200 4.5000 ± 0.0300",
        "B relu2 2.8033 ± 0.0208 4.2050 ± 0.0312",
    ]
    difference = lines.index("difference of held-out loss, nats per token")
    assert lines[difference + 2] == "B - A at the end -0.1967 -0.2110 to -0.1823"
    assert "B is better than A. Held-out loss at the end: B - A = -0.1967 nats per token" in " ".join(lines)


def test_json_is_the_same_comparison(capsys: pytest.CaptureFixture) -> None:
    found = json.loads(printed(capsys, "runs/base-seed-*", "runs/relu2-seed-*", "--json"))
    assert found["verdicts"][0]["verdict"] == "better"
    assert found["differing"] == {"mlp": ["gelu", "relu2"]}
    assert found["contrasts"][0]["intervals"][0]["difference"] == pytest.approx(-0.59 / 3)


def test_names_and_patterns_may_be_mixed_and_a_pattern_takes_only_runs(
    capsys: pytest.CaptureFixture, runs: Path
) -> None:
    (runs / "relu2-seed-notes").mkdir()
    words = [*(str(path) for path in sorted(runs.glob("base-*"))), "runs/relu2-*", "--json"]
    assert len(json.loads(printed(capsys, *words))["groups"][1]["runs"]) == 3


def test_what_to_run_and_the_notes_are_printed(capsys: pytest.CaptureFixture) -> None:
    write_run(Path("runs/base-seed-1340"), seed=1340, until=50)
    text = printed(capsys, "runs/base-seed-*", "runs/relu2-seed-1337")
    assert "note: runs/base-seed-1340 is left out: it is not finished" in text
    assert "B against A: no verdict." in text
    assert "  quill train runs/relu2-seed-1337 --seed 1338 --seeds 2\n" in text
    assert "needs more seeds" in text


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ([], 2, "which runs? `quill compare RUN_A RUN_B ...`"),
        (["--json"], 2, "which runs?"),
        (["runs/base-seed-1337"], 2, "1 run named; a comparison needs two or more"),
        (["runs/base-seed-1337", "runs/base-seed-1336"], 65, "no run there, it has no config.toml (did you mean"),
        (["runs/nothing-*"], 2, "no run matches 'runs/nothing-*'"),
        (["runs/base-seed-*", "--jsn"], 2, "no flag --jsn (did you mean --json?)"),
        (["runs/base-seed-*", "--seeds", "3"], 2, "no flag --seeds"),
        (["runs", "runs/base-seed-1337"], 65, "runs: no run there"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    found, message = refused(monkeypatch, capsys, *words)
    assert found == code
    assert line in message


def test_a_damaged_run_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, runs: Path) -> None:
    (runs / "base-seed-1337" / "config.toml").write_text("lr = [")
    assert refused(monkeypatch, capsys, "runs/base-seed-*")[0] == 2
    (runs / "base-seed-1338" / "environment.json").write_text("[]")
    assert refused(monkeypatch, capsys, "runs/base-seed-1338", "runs/base-seed-1339")[0] == 65


def test_the_help_tells_what_a_group_is(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    assert "differ in nothing but the seed are one group" in " ".join(capsys.readouterr().out.split())


def train(name: str, seed: int, **settings: object) -> str:
    """A real run of a second on text of ours."""
    fixed = {
        "source": "text",
        "path": "text",
        "n_embd": 16,
        "n_layer": 1,
        "steps": 6,
        "eval_every": 3,
        "warmup_steps": 2,
    }
    outcome = quillgpt.train(
        load_recipe("debug", **fixed, **settings, seed=seed, out=f"runs/{name}-{seed}", device="cpu", threads=1)
    )
    return str(outcome.run)


def test_real_runs_that_differ_in_nothing_that_matters_are_inside_the_noise(capsys: pytest.CaptureFixture) -> None:
    """pointwise_length_power is of another attention: with the same seeds the same bits, with others the noise."""
    Path("text").mkdir()
    for letter in "abc":
        (Path("text") / f"{letter}.txt").write_text(f"the {letter} sat on the mat\n" * 100)
    first = [train("first", seed) for seed in (1, 2, 3)]
    same = [train("same", seed, pointwise_length_power=0.5) for seed in (1, 2, 3)]
    other = [train("other", seed, pointwise_length_power=0.25, log_every=3) for seed in (4, 5, 6)]
    found = json.loads(printed(capsys, *first, *same, *other, "--json"))
    assert found["differing"] == {"pointwise_length_power": [1.0, 0.5, 0.25]}
    assert [verdict["verdict"] for verdict in found["verdicts"]] == ["inside the noise"] * 2
    assert "to the last digit" in found["verdicts"][0]["sentence"]
    assert "to the last digit" not in found["verdicts"][1]["sentence"]
    alone = json.loads(printed(capsys, first[0], first[1], "--json"))
    assert alone["verdicts"][0]["verdict"] == "inside the noise"
