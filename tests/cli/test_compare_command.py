"""`quill compare`: tables that fit, JSON, patterns, one line for each mistake, and real runs."""

import json
from pathlib import Path

import pytest

import quillgpt
from quillgpt.cli import main as command_line
from quillgpt.errors import QuillError
from quillgpt.lab.compare.groups import experiment
from quillgpt.lab.run_record import read_run
from quillgpt.recipes import recipe_config
from synthetic_runs import write_group, write_run

BASE = {1337: 3.00, 1338: 3.02, 1339: 2.98}
BETTER = {1337: 2.81, 1338: 2.82, 1339: 2.78}


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two groups, the current directory."""
    monkeypatch.chdir(tmp_path)
    write_group(Path("runs/base"), BASE)
    write_group(Path("runs/relu2"), BETTER, settings={"mlp": "relu2"}, seconds_per_step=0.2)
    return tmp_path / "runs"


def printed(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert command_line.run(["compare", *words]) == 0
    return capsys.readouterr().out


def test_the_tables_fit_and_show_the_known_numbers(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (80, 140):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = printed(capsys, "runs/base-seed-*", "runs/relu2-seed-*")
        lines = [" ".join(line.split()) for line in text.splitlines()]
        assert max(map(len, text.splitlines())) <= columns
        assert lines[1:3] == ["A base 1337-1339 3 100 100,000 10.0", "B relu2 1337-1339 3 100 100,000 20.0"]
        assert "mlp gelu relu2" in lines
        validation = lines.index("validation loss, nats per token")
        assert lines[validation + 1 : validation + 4] == [
            "at step 100 at 100,000 tokens after 10.0 s",
            "A base 3.0000 ± 0.0200 3.0000 ± 0.0200 3.0000 ± 0.0200",
            "B relu2 2.8033 ± 0.0208 2.8033 ± 0.0208 4.0306 ± 0.0208",  # step 50: 4.8033 - 1.5 * (50 - 33) / (66 - 33)
        ]
        end = lines.index("validation, at the end")
        assert lines[end + 2 : end + 4] == [
            "A base 3.0000 ± 0.0200 4.5000 ± 0.0300",
            "B relu2 2.8033 ± 0.0208 4.2050 ± 0.0312",
        ]
        difference = lines.index("difference of validation loss, nats per token")
        assert lines[difference + 2] == "B - A at the end -0.1967 -0.2110 to -0.1823"
        assert "B is better than A. Validation loss at the end: B - A = -0.1967 nats per token" in " ".join(lines)
    found = json.loads(printed(capsys, "runs/base-seed-*", "runs/relu2-seed-*", "--json"))
    assert found["verdicts"][0]["verdict"] == "better"
    assert found["differing"] == {"mlp": ["gelu", "relu2"]}
    assert found["contrasts"][0]["intervals"][0]["difference"] == pytest.approx(-0.59 / 3)


def test_names_and_patterns_can_be_combined_and_a_pattern_matches_only_runs(
    capsys: pytest.CaptureFixture, runs: Path
) -> None:
    (runs / "relu2-seed-notes").mkdir()
    words = [*(str(path) for path in sorted(runs.glob("base-*"))), "runs/relu2-*", "--json"]
    assert len(json.loads(printed(capsys, *words))["groups"][1]["runs"]) == 3


def test_commands_that_would_settle_it_and_notes_are_printed(capsys: pytest.CaptureFixture) -> None:
    write_run(Path("runs/base-seed-1340"), seed=1340, until=50)
    text = printed(capsys, "runs/base-seed-*", "runs/relu2-seed-1337")
    assert "note: runs/base-seed-1340 is left out: it is not finished" in text
    assert "B against A: no verdict." in text
    assert "  quill train runs/relu2-seed-1337 --seed 1338 --seeds 2\n" in text
    assert "needs more seeds" in text


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture, runs: Path) -> None:
    (runs / "bad-config").mkdir()
    (runs / "bad-config" / "config.toml").write_text("lr = [")
    (write_run(runs / "bad-environment") / "environment.json").write_text("[]")
    mistakes = {
        "": (2, "no run given: quill compare RUN_A RUN_B ..."),
        "--json": (2, "no run given"),
        "runs/base-seed-1337": (2, "1 run named; a comparison needs two or more"),
        "runs/base-seed-1337 runs/base-seed-1336": (65, "no run there, it has no config.toml (did you mean"),
        "runs/nothing-*": (2, "no run matches 'runs/nothing-*'"),
        "runs/base-seed-* --jsn": (2, "no flag --jsn (did you mean --json?)"),
        "runs/base-seed-* --seeds 3": (2, "no flag --seeds"),
        "runs runs/base-seed-1337": (65, "runs: no run there"),
        "runs/base-seed-1337 runs/bad-config": (2, "config.toml"),
        "runs/base-seed-1337 runs/bad-environment": (65, "environment.json"),
    }
    wrong = []
    for words, (code, message) in mistakes.items():
        with pytest.raises(QuillError) as raised:
            command_line.run(["compare", *words.split()])
        found = command_line.explained(raised.value)
        if found[0] != code or message not in str(found[1]) or "\n" in str(found[1]) or capsys.readouterr().out:
            wrong.append((words, found))
    assert not wrong


def test_the_help_defines_a_group(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        command_line.run(["compare", "--help"])
    assert "differ in nothing but the seed are one group" in " ".join(capsys.readouterr().out.split())


def test_real_runs_without_a_real_difference_are_inside_the_noise(capsys: pytest.CaptureFixture) -> None:
    """pointwise_length_power is of another attention: equal seeds give the same bits, other seeds noise."""
    Path("text").mkdir()
    for letter in "abc":
        (Path("text") / f"{letter}.txt").write_text(f"the {letter} sat on the mat\n" * 100)

    def train(name: str, seed: int, **settings: object) -> str:
        fixed = {"source": "text", "path": "text", "n_embd": 16, "n_layer": 1, "steps": 6, "eval_every": 3}
        fixed |= {"warmup_steps": 2, "seed": seed, "out": f"runs/{name}-{seed}", "device": "cpu", "threads": 1}
        return str(quillgpt.train(recipe_config("debug", **fixed, **settings)).run)

    first = [train("first", seed) for seed in (1, 2, 3)]
    same = [train("same", seed, pointwise_length_power=0.5) for seed in (1, 2, 3)]
    other = [train("other", seed, pointwise_length_power=0.25, log_every=3) for seed in (4, 5, 6)]
    grouped_by = experiment(read_run(first[0]))
    assert grouped_by["batch_tokens"] == 1024  # as environment.json records it
    assert grouped_by["dtype"] in ("fp32", "bf16")
    found = json.loads(printed(capsys, *first, *same, *other, "--json"))
    assert found["differing"] == {"pointwise_length_power": [1.0, 0.5, 0.25]}
    assert [verdict["verdict"] for verdict in found["verdicts"]] == ["inside the noise"] * 2
    assert "to the last digit" in found["verdicts"][0]["sentence"]
    assert "to the last digit" not in found["verdicts"][1]["sentence"]
    alone = json.loads(printed(capsys, first[0], first[1], "--json"))
    assert alone["verdicts"][0]["verdict"] == "inside the noise"
