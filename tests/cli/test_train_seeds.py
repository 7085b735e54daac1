"""`quill train RECIPE --seeds N`: ordinary runs in turn, skipped when finished, continued when stopped."""

import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from quillgpt.cli import demo, train
from quillgpt.cli.train_seeds import without_seeds
from quillgpt.errors import ConfigError, Interrupted, NonFiniteError, Stopped
from quillgpt.run_record import read_run
from quillgpt.train import loop, setup

SHORT = (
    "--source text --path text --n-embd 16 --n-layer 1 --steps 4 --eval-every 2 --log-every 2 --threads 1 --device cpu"
)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a little text, where the command is typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "text").mkdir()
    for letter in "abc":
        (tmp_path / "text" / f"{letter}.txt").write_text(f"the {letter} sat on the mat\n" * 100)


def quill(line: str) -> None:
    """`quill train debug` with the short settings and these flags; --minutes takes the place of the steps."""
    words = SHORT.replace("--steps 4", "" if "--minutes" in line else "--steps 4").split()
    assert train.main(["debug", *words, *line.split()]) == 0


def held_out(name: str) -> float:
    return float(read_run(f"runs/{name}").series("held_out_loss")[1][-1])


def signal_at(monkeypatch: pytest.MonkeyPatch, number: int, *, run: str, step: int) -> None:
    """Let a signal arrive while a step of a run is done."""
    unsignalled = loop.Metrics.line

    def line(self, position, **numbers):
        if self._path == Path("runs") / run / "metrics.jsonl" and position.step == step:
            signal.raise_signal(number)
        return unsignalled(self, position, **numbers)

    monkeypatch.setattr(loop.Metrics, "line", line)


def test_repeats_differ_in_the_seed_and_are_summed_up(capsys: pytest.CaptureFixture) -> None:
    quill("--seed 5 --seeds 3")
    names = [path.name for path in sorted(Path("runs").iterdir())]
    assert names == ["debug-seed-5", "debug-seed-6", "debug-seed-7"]
    settings = [read_run(f"runs/{name}").settings for name in names]
    assert [one.pop("seed") for one in settings] == [5, 6, 7]
    assert settings[0] == settings[1] == settings[2]
    losses = [held_out(name) for name in names]
    out = capsys.readouterr().out
    figure = f"{statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f} nats per token"
    assert f"held out: {figure}" in out
    assert "(3 seeds, mean ± standard deviation)" in out
    assert "quill compare 'runs/debug-seed-*' 'runs/OTHER-seed-*'" in out


def test_a_repeat_is_the_run_that_its_seed_makes_alone() -> None:
    quill("--seeds 2")
    quill("--seed 1338 --out runs/alone")
    lines = [
        [{name: line[name] for name in ("step", "loss", "lr")} for line in read_run(f"runs/{run}").lines]
        for run in ("debug-seed-1338", "alone")
    ]
    assert lines[0] == lines[1]


def test_the_same_command_skips_what_is_finished_and_more_seeds_go_on(capsys: pytest.CaptureFixture) -> None:
    quill("--seeds 1 --out runs/x")
    first = Path("runs/x-seed-1337/environment.json").stat().st_mtime_ns
    capsys.readouterr()
    quill("--seeds 2 --out runs/x/")
    out = capsys.readouterr().out
    assert "run 1 of 2, seed 1337: runs/x-seed-1337 is finished\n" in out
    assert "run 2 of 2, seed 1338: runs/x-seed-1338\n" in out
    assert Path("runs/x-seed-1337/environment.json").stat().st_mtime_ns == first


def test_more_steps_continue_every_run() -> None:
    quill("--seeds 2")
    quill("--seeds 2 --steps 6")
    assert [read_run(f"runs/debug-seed-{seed}").lines[-1]["step"] for seed in (1337, 1338)] == [6, 6]


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, Stopped), (signal.SIGINT, Interrupted)])
@pytest.mark.parametrize("step", [2, 4], ids=["within a run", "at the end of a run"])
def test_a_signal_stops_the_sequence_and_the_same_command_goes_on(
    number: int, kind: type[Exception], step: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        signal_at(patched, number, run="debug-seed-1337", step=step)
        with pytest.raises(kind, match="run the same command again to continue"):
            quill("--seeds 2")
    assert not Path("runs/debug-seed-1338").exists()
    assert read_run("runs/debug-seed-1337").lines[-1]["step"] == step
    quill("--seeds 2")
    assert ("runs/debug-seed-1337 is finished" in capsys.readouterr().out) == (step == 4)
    quill("--out runs/alone")
    assert held_out("debug-seed-1337") == held_out("alone")


def test_a_signal_between_two_runs_is_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the second one is set up, before its loop listens."""
    unsignalled = setup.open_data

    def open_data(config, *rest):
        if config.train.seed == 1338:
            signal.raise_signal(signal.SIGTERM)
        return unsignalled(config, *rest)

    monkeypatch.setattr(setup, "open_data", open_data)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped between two runs; run the same command again"):
        quill("--seeds 2")
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_process_ends_with_75() -> None:
    script = (
        "import signal, sys\n"
        "from quillgpt.cli import main\n"
        "from quillgpt.train.metrics import Metrics\n"
        "line = Metrics.line\n"
        "def signalled(self, position, **numbers):\n"
        "    if position.step == 1:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    return line(self, position, **numbers)\n"
        "Metrics.line = signalled\n"
        f"sys.argv = ['quill', 'train', 'debug', *{SHORT.split()}, '--seeds', '2']\n"
        "main.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 75
    assert done.stderr.startswith("quill: stopped after step 2, saved in runs/debug-seed-1337; run the same command")


def test_minutes_are_measured_once_and_all_repeats_do_the_same_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    measured = iter([3, 5, 7])
    monkeypatch.setattr(setup, "steps_for_minutes", lambda *_: next(measured))
    with monkeypatch.context() as patched:
        signal_at(patched, signal.SIGTERM, run="debug-seed-1338", step=2)
        with pytest.raises(Stopped):
            quill("--minutes 1 --seeds 3")
    quill("--minutes 1 --seeds 3")
    records = [read_run(f"runs/debug-seed-{seed}") for seed in (1337, 1338, 1339)]
    assert [record.environment["steps"] for record in records] == [3, 3, 3]
    assert [record.lines[-1]["step"] for record in records] == [3, 3, 3]
    assert next(measured) == 5
    assert "(3 seeds, mean" in capsys.readouterr().out  # one group, though `minutes` is in the first's settings alone


def test_what_an_existing_repeat_measured_counts_for_a_first_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    measured = iter([3, 5])
    monkeypatch.setattr(setup, "steps_for_minutes", lambda *_: next(measured))
    quill("--minutes 1 --seeds 2")
    shutil.rmtree("runs/debug-seed-1337")
    quill("--minutes 1 --seeds 2")
    assert read_run("runs/debug-seed-1337").environment["steps"] == 3


def test_repeats_of_a_run_are_called_as_it_is() -> None:
    quill("--out runs/mine")
    assert train.main(["runs/mine", "--seed", "1338", "--seeds", "1"]) == 0
    assert train.main(["runs/mine-seed-1338/config.toml", "--seed", "1339", "--seeds", "1"]) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"mine", "mine-seed-1338", "mine-seed-1339"}


def test_a_dry_run_shows_the_runs_and_does_nothing(capsys: pytest.CaptureFixture) -> None:
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
    assert "as many steps as fit into 3 minutes are measured once, for all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    {
        "--seeds": "--seeds '' is not possible: expected a whole number from 1 to 1,000",
        "--seeds 0": "--seeds '0' is not possible",
        "--seeds=-1": "--seeds '-1' is not possible",
        "--seeds 2.5": "--seeds '2.5' is not possible",
        "--seeds 1001": "--seeds '1001' is not possible",
        "--seeds=": "--seeds '' is not possible",
        "--seeds two": "--seeds 'two' is not possible",
        "--seeds 2 --eval-only": "--seeds trains, and eval_only does not",
        "--seeds 2 --seed 9223372036854775807": "at most 64 bits",
        "--seeds 2 --out runs/plain": "runs/plain holds a run; --seeds makes runs/plain-seed-1337, ...",
        "--seeds 2 --sedes 3": "no flag --sedes (did you mean --seeds?)",
    }.items(),
)
def test_nonsense_is_refused_before_anything_is_done(line: str, message: str) -> None:
    Path("runs/plain").mkdir(parents=True)
    Path("runs/plain/config.toml").write_text("")
    with pytest.raises(ConfigError) as caught:
        quill(line)
    assert message in str(caught.value)
    assert [path.name for path in Path("runs").iterdir()] == ["plain"]


def test_a_run_of_the_recipes_own_name_is_not_in_the_way() -> None:
    quill("")
    quill("--seeds 1")
    assert Path("runs/debug-seed-1337").is_dir()


def test_runs_of_other_settings_are_no_repeats() -> None:
    quill("--seeds 1")
    with pytest.raises(ConfigError, match=r"debug-seed-1337 was begun with other settings: lr 0.003 -> 0.001; repeats"):
        quill("--seeds 2 --lr 1e-3")
    with pytest.raises(ConfigError, match=r"has done 4 steps, more than --steps 3"):
        quill("--seeds 2 --steps 3")
    quill("--seeds 1 --log-every 1")


def test_fresh_refuses_what_is_there() -> None:
    from quillgpt.errors import CheckpointError

    quill("--seeds 1")
    with pytest.raises(CheckpointError, match="leave out --fresh"):
        quill("--seeds 1 --fresh")


def test_torchrun_and_seeds_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "x", "MASTER_PORT": 1}
    for name, value in ranks.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match="--seeds does not work under torchrun; start each run by itself"):
        quill("--seeds 2")


def test_the_demo_has_no_repeats() -> None:
    with pytest.raises(ConfigError, match="no flag --seeds"):
        demo.main(["--seeds", "3"])


@pytest.mark.parametrize("words", [["--seeds", "3"], ["--seeds=3"], ["--seeds=7", "--seeds", "3"]])
def test_the_flag_is_taken_out_wherever_it_stands(words: list[str]) -> None:
    assert without_seeds(["debug", *words, "--lr=1", "--seed", "4"]) == (["debug", "--lr=1", "--seed", "4"], 3)
    assert without_seeds(["debug"]) == (["debug"], 0)


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


def test_a_seed_that_diverges_does_not_keep_the_others_from_running(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
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
