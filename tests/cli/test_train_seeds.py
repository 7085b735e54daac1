"""`quill train RECIPE --seeds N`: ordinary runs in turn, skipped if finished, continued after a stop."""

import json
import shutil
import signal
import statistics
from pathlib import Path

import pytest

from quillgpt.cli import demo, train
from quillgpt.cli.main import explained
from quillgpt.errors import CheckpointError, ConfigError, Interrupted, NonFiniteError, Stopped
from quillgpt.lab.run_record import read_run
from quillgpt.training import loop, setup

SHORT = (
    "--source text --path text --n-embd 16 --n-layer 1 --steps 4 --eval-every 2 --log-every 2 --threads 1 --device cpu"
)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a little text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "text").mkdir()
    for letter in "abc":
        (tmp_path / "text" / f"{letter}.txt").write_text(f"the {letter} sat on the mat\n" * 100)


def quill(line: str) -> None:
    """`quill train debug` with the short settings and these flags; --minutes replaces the steps."""
    words = SHORT.replace("--steps 4", "" if "--minutes" in line else "--steps 4").split()
    assert train.main(["debug", *words, *line.split()]) == 0


def val_loss(name: str) -> float:
    return float(read_run(f"runs/{name}").series("val_loss")[1][-1])


def signal_before(monkeypatch: pytest.MonkeyPatch, number: int, *, run: str, step: int) -> None:
    """Let a signal arrive just before a step of a run."""
    line = loop.Metrics.line

    def with_signal(self, *arguments):
        if self._path == Path("runs") / run / "metrics.jsonl" and self._state.step == step - 1:
            signal.raise_signal(number)
        return line(self, *arguments)

    monkeypatch.setattr(loop.Metrics, "line", with_signal)


def test_repeats_differ_in_the_seed_equal_the_runs_of_each_seed_alone_and_are_summarised(
    capsys: pytest.CaptureFixture,
) -> None:
    quill("--seed 5 --seeds 3")
    names = [path.name for path in sorted(Path("runs").iterdir())]
    assert names == ["debug-seed-5", "debug-seed-6", "debug-seed-7"]
    settings = [read_run(f"runs/{name}").settings for name in names]
    assert [one.pop("seed") for one in settings] == [5, 6, 7]
    assert settings[0] == settings[1] == settings[2]
    losses = [val_loss(name) for name in names]
    out = capsys.readouterr().out
    figure = f"{statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f} nats per token"
    assert f"val loss: {figure}" in out
    assert "(3 seeds, mean ± standard deviation)" in out
    assert "quill compare 'runs/debug-seed-*' 'runs/OTHER-seed-*'" in out

    quill("--seed 6 --out runs/alone")
    lines = [
        [{name: line[name] for name in ("step", "train_loss", "lr")} for line in read_run(f"runs/{run}").lines]
        for run in ("debug-seed-6", "alone")
    ]
    assert lines[0] == lines[1]


def test_the_same_command_skips_finished_runs_and_more_seeds_and_steps_continue(capsys: pytest.CaptureFixture) -> None:
    quill("--seeds 1 --out runs/x")
    first = Path("runs/x-seed-1337/environment.json").stat().st_mtime_ns
    capsys.readouterr()
    quill("--seeds 2 --out runs/x/")
    out = capsys.readouterr().out
    assert "run 1 of 2, seed 1337: runs/x-seed-1337 is finished\n" in out
    assert "run 2 of 2, seed 1338: runs/x-seed-1338\n" in out
    assert Path("runs/x-seed-1337/environment.json").stat().st_mtime_ns == first
    quill("--seeds 2 --out runs/x --steps 6")
    assert [read_run(f"runs/x-seed-{seed}").lines[-1]["step"] for seed in (1337, 1338)] == [6, 6]


def test_a_signal_stops_the_sequence_and_the_same_command_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    quill("--out runs/alone")
    for number, kind, step, code in (
        (signal.SIGTERM, Stopped, 2, 75),
        (signal.SIGINT, Interrupted, 2, 130),
        (signal.SIGINT, Interrupted, 4, 130),
    ):
        for run in Path("runs").glob("debug-*"):
            shutil.rmtree(run)
        with monkeypatch.context() as patched:
            signal_before(patched, number, run="debug-seed-1337", step=step)
            with pytest.raises(kind, match="run the same command again to continue") as raised:
                quill("--seeds 2")
        assert explained(raised.value)[0] == code
        assert not Path("runs/debug-seed-1338").exists()
        assert read_run("runs/debug-seed-1337").lines[-1]["step"] == step
        capsys.readouterr()
        quill("--seeds 2")
        assert ("runs/debug-seed-1337 is finished" in capsys.readouterr().out) == (step == 4)
        assert val_loss("debug-seed-1337") == val_loss("alone")


def test_a_signal_between_two_runs_stops_the_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the second one is set up, before its loop handles signals."""
    open_data = setup.open_data

    def with_signal(config, *arguments):
        if config.train.seed == 1338:
            signal.raise_signal(signal.SIGTERM)
        return open_data(config, *arguments)

    monkeypatch.setattr(setup, "open_data", with_signal)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped between two runs; run the same command again"):
        quill("--seeds 2")
    assert signal.getsignal(signal.SIGTERM) is before


def test_minutes_are_measured_once_and_all_repeats_do_the_same_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    measured = iter([3, 5, 7])
    monkeypatch.setattr("quillgpt.training.calibrate.steps_for_minutes", lambda *_: next(measured))
    with monkeypatch.context() as patched:
        signal_before(patched, signal.SIGTERM, run="debug-seed-1338", step=2)
        with pytest.raises(Stopped):
            quill("--minutes 1 --seeds 3")
    quill("--minutes 1 --seeds 3")
    records = [read_run(f"runs/debug-seed-{seed}") for seed in (1337, 1338, 1339)]
    assert [record.environment["steps"] for record in records] == [3, 3, 3]
    assert [record.lines[-1]["step"] for record in records] == [3, 3, 3]
    assert "(3 seeds, mean" in capsys.readouterr().out  # one group, though only the first one's settings have `minutes`
    shutil.rmtree("runs/debug-seed-1337")
    quill("--minutes 1 --seeds 2")
    assert read_run("runs/debug-seed-1337").environment["steps"] == 3, "taken from the second run"
    assert next(measured) == 5


def test_repeats_of_a_run_keep_its_name() -> None:
    quill("--out runs/mine")
    assert train.main(["runs/mine", "--seed", "1338", "--seeds", "1"]) == 0
    assert train.main(["runs/mine-seed-1338/config.toml", "--seed", "1339", "--seeds", "1"]) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"mine", "mine-seed-1338", "mine-seed-1339"}


def test_a_dry_run_shows_the_runs_and_does_nothing(capsys: pytest.CaptureFixture) -> None:
    quill("")  # a run with the recipe's own name is no obstacle
    quill("--seeds 1")
    capsys.readouterr()
    quill("--seeds 2 --dry-run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "2 runs, one after the other",
        "  seed 1337  runs/debug-seed-1337  finished",
        "  seed 1338  runs/debug-seed-1338  new",
    ]
    assert not Path("runs/debug-seed-1338").exists()
    quill("--seeds 2 --dry-run --minutes 3")
    assert "the steps that fit into 3 minutes are measured once, for all" in capsys.readouterr().out


def test_wrong_arguments_are_refused_and_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs/plain").mkdir(parents=True)
    Path("runs/plain/config.toml").write_text("")
    for line, message in {
        "--seeds": "invalid --seeds: '' (must be an integer from 1 to 1,000)",
        "--seeds 0": "invalid --seeds: '0'",
        "--seeds=-1": "invalid --seeds: '-1'",
        "--seeds 2.5": "invalid --seeds: '2.5'",
        "--seeds 1001": "invalid --seeds: '1001'",
        "--seeds=": "invalid --seeds: ''",
        "--seeds two": "invalid --seeds: 'two'",
        "--seeds 2 --eval-only": "--seeds trains, and eval_only does not",
        "--seeds 2 --seed 9223372036854775807": "at most 64 bits",
        "--seeds 2 --out runs/plain": "runs/plain contains a run; --seeds creates runs/plain-seed-1337, ...",
        "--seeds 2 --sedes 3": "no flag --sedes (did you mean --seeds?)",
    }.items():
        with pytest.raises(ConfigError) as caught:
            quill(line)
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match="no flag --seeds"):
        demo.main(["--seeds", "3"])
    ranks = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "x", "MASTER_PORT": 1}
    for name, value in ranks.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match="--seeds does not work under torchrun; start each run separately"):
        quill("--seeds 2")
    assert [path.name for path in Path("runs").iterdir()] == ["plain"]


def test_existing_runs_that_are_not_repeats_are_refused() -> None:
    quill("--seeds 1")
    with pytest.raises(ConfigError, match=r"debug-seed-1337 was started with other settings: lr 0.003 -> 0.001; rep"):
        quill("--seeds 2 --lr 1e-3")
    with pytest.raises(ConfigError, match=r"has done 4 steps, more than --steps 3"):
        quill("--seeds 2 --steps 3")
    with pytest.raises(CheckpointError, match="leave out --fresh"):
        quill("--seeds 1 --fresh")
    quill("--seeds 1 --log-every 1")


def test_a_finished_run_whose_last_line_was_lost_is_evaluated_again(capsys: pytest.CaptureFixture) -> None:
    """A full disk loses lines of metrics, not the run."""
    quill("--seeds 1")
    metrics = Path("runs/debug-seed-1337/metrics.jsonl")
    lines = metrics.read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 4
    metrics.write_text("\n".join(lines[:-1]) + "\n")
    capsys.readouterr()
    quill("--seeds 1")
    assert "runs/debug-seed-1337 is finished: 4 of 4 steps" in capsys.readouterr().out


def test_the_other_seeds_run_after_one_diverges(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    gradients = loop.gradients

    def poisoned(*arguments, seed, **rest):
        loss = gradients(*arguments, seed=seed, **rest)
        return loss * float("nan") if seed == 1338 else loss

    monkeypatch.setattr(loop, "gradients", poisoned)
    with pytest.raises(NonFiniteError, match=r"^1 of 3 runs diverged: runs/debug-seed-1338$"):
        quill("--seeds 3")
    out = capsys.readouterr().out
    assert "update not applied (3 of 3 in a row)" in out
    assert "(2 seeds, mean ± standard deviation)" in out
    assert read_run("runs/debug-seed-1338").lines[-1]["diverged"] is True
