"""What the scripts in benchmarks/ compute from their runs: spreads, crossings, what is missing, and the bare net."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts find each other as they do when one is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


MODERN = """
optimizer = "muon"
n_layer = 1
n_head = 1
n_embd = 16
context_length = 16
vocab_size = 257
source = "text"
tokenizer = "byte"
position = "rotary"
mlp = "relu2"
lr = 0.02
embedding_lr = 0.1
momentum_warmup_steps = 5
batch_size = 2
steps = 3
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "small.toml").write_text(MODERN, encoding="utf-8")
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 200, encoding="utf-8")
    return str(tmp_path / "small.toml")


def test_an_interval_is_students() -> None:
    from finished_runs import interval

    values = [1.0, 2.5, 4.0]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert math.isnan(interval([3.0])[1])


def test_a_finished_run_is_not_repeated_and_a_changed_recipe_is(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import finished_runs
    from finished_runs import KEPT_NOTHING, ONE_THREAD, append, one_run, rows_of

    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results.jsonl"
    wanted = {
        f"seed {seed}": {**KEPT_NOTHING, **ONE_THREAD, "seed": seed, "path": str(tmp_path / "text.txt")}
        for seed in (1, 2)
    }
    row = one_run("seed 1", recipe, wanted["seed 1"])
    assert row["steps"] == 3
    assert row["tokens"] == 3 * 2 * 16
    assert row["bits_per_byte"] == pytest.approx(row["loss"] / math.log(2), rel=0.05)  # a byte is a token
    results.write_text('{"torn": ')
    append(results, row)
    assert list(rows_of(results, recipe, wanted)) == ["seed 1"]
    Path(recipe).write_text(MODERN.replace("lr = 0.02", "lr = 0.03"), encoding="utf-8")
    assert rows_of(results, recipe, wanted) == {}
    assert finished_runs.commit()


def test_leaving_one_out_changes_that_line_only_and_only_lines_that_the_recipe_has(recipe: str) -> None:
    from ablations import FULL, GPT2S, lines_of

    runs = lines_of(recipe, 3, 1, {}, [])
    without_muon = [line for line in GPT2S if line.startswith("Muon")]
    assert set(runs) == {FULL, "rotary positions", "ReLU²", "momentum warm-up", *without_muon}
    for line, settings in runs.items():
        assert {name: value for name, value in settings.items() if name not in runs[FULL]} == GPT2S.get(line, {})
    assert set(lines_of(recipe, 3, 1, {}, ["relu"])) == {FULL, "ReLU²"}
    assert set(lines_of("gpt2-124m", 3, 1, {}, [])) == {FULL, "no biases"}


def test_every_replacement_of_the_ablations_is_a_possible_setting() -> None:
    from ablations import GPT2S

    from quillgpt.config import RunConfig, updated

    for settings in GPT2S.values():
        updated(RunConfig(), settings, where="test")


def test_the_difference_in_the_table_is_taken_seed_by_seed() -> None:
    from ablations import FULL, table

    def row(seed: int, bits: float | None) -> dict[str, object]:
        return {"bits_per_byte": bits, "settings": {"seed": seed}}

    luck = {1: 0.0, 2: 0.5, 3: -0.5}
    rows = {f"{FULL}, seed {seed}": row(seed, 2.0 + own) for seed, own in luck.items()}
    rows |= {f"QK-norm, seed {seed}": row(seed, 2.1 + own + seed / 1000) for seed, own in luck.items()}
    rows |= {f"ReLU², seed {seed}": row(seed, None) for seed in luck}
    text = table(rows).splitlines()
    assert text[2] == "| nothing: the full recipe | 2.0000 | 0.5000 | | 3 | 0 |"
    low, high = stats.t.interval(0.95, 2, loc=0.102, scale=0.001 / math.sqrt(3))
    assert f"+0.1020 ({low:+.4f} to {high:+.4f})" in text[3]
    assert text[4] == "| ReLU² | | | | 0 | 3 |"


def test_the_steps_to_a_loss_are_between_the_runs_on_either_side() -> None:
    from steps_to_loss import steps_to

    losses = {10: 3.0, 100: 2.0, 1000: 1.0, 50: None}
    assert steps_to(losses, 1.5) == pytest.approx(10**2.5)
    assert steps_to(losses, 2.0) == pytest.approx(100)
    assert steps_to(losses, 3.5) == 10
    assert steps_to(losses, 0.5) == 0


def test_both_sides_of_the_steps_differ_from_the_recipe_as_they_say(recipe: str) -> None:
    from argparse import Namespace

    from ablations import GPT2S
    from steps_to_loss import settings_of

    options = Namespace(recipe=recipe, path="")
    modern = settings_of("modern", 0.04, 1, 40, options)
    assert (modern["lr"], modern["embedding_lr"], modern["steps"]) == (0.04, 0.2, 40)
    gpt2 = settings_of("gpt2", 0.004, 1, 40, options)
    assert (gpt2["lr"], gpt2["min_lr"], gpt2["optimizer"], gpt2["schedule"]) == (0.004, 0.0004, "adamw", "cosine")
    replaced = {name for settings in GPT2S.values() for name in settings}
    assert replaced <= gpt2.keys()


def test_the_bare_net_is_nanogpt_cpus() -> None:
    """The same weights give the same loss, so that the two loops are timed on the same work."""
    from bare_loop import GPT2, Net

    from quillgpt import GPT, load_recipe

    torch.manual_seed(1)
    bare, config = GPT2(Net(vocab_size=257)).double(), load_recipe("nanogpt-cpu")
    ours = GPT(updated_vocabulary(config.model)).double()
    with torch.no_grad():
        ours.token_embedding.weight[:257] = bare.tokens.weight
        ours.position_embedding.weight.copy_(bare.positions.weight)
        for block, theirs in zip(ours.blocks, bare.blocks, strict=True):
            block.attention.qkv.weight.copy_(theirs.qkv.weight)
            block.attention.projection.weight.copy_(theirs.mix.weight)
            block.mlp.expand.weight.copy_(theirs.expand.weight)
            block.mlp.project.weight.copy_(theirs.contract.weight)
    rows = torch.randint(257, (3, 65))
    logits = ours(rows[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    assert loss.item() == pytest.approx(bare(rows[:, :-1], rows[:, 1:]).item(), abs=1e-10)


def updated_vocabulary(model):
    from dataclasses import replace

    return replace(model, vocab_size=257)


def test_the_bare_loop_has_the_rates_of_nanogpt_cpu_and_learns() -> None:
    from bare_loop import BareLoop, Net

    from quillgpt import load_recipe
    from quillgpt.optim.schedules import learning_rate

    torch.set_num_threads(1)
    settings = load_recipe("nanogpt-cpu").optim
    loop = BareLoop(Net(layers=1, width=32, heads=2), np.tile(np.arange(65), 40), seed=1)
    for step in (0, 50, 99, 100, 1000, 1999):
        loop.step = step
        assert loop.rate() == pytest.approx(learning_rate(step, 2000, settings), rel=1e-9)
    loop.step = 100
    with torch.no_grad():
        rows = torch.arange(65)[None]
        before = loop.model(rows[:, :-1], rows[:, 1:]).item()
    assert len(loop.run(30)) == 30
    with torch.no_grad():
        assert loop.model(rows[:, :-1], rows[:, 1:]).item() < before - 1
    assert loop.step == 130


def test_the_verdict_on_the_time_needs_every_seed_to_reach_the_loss() -> None:
    from time_to_loss import summary

    def rows(seconds: list[float], reached: list[bool]) -> list[dict[str, object]]:
        return [{"seconds": s, "reached": r} for s, r in zip(seconds, reached, strict=True)]

    slow = rows([100.0, 110.0, 90.0], [True, False, True])
    text = summary({"baseline": slow, "challenger": rows([10.0, 11.0, 9.0], [True] * 3)}, 1.8857)
    assert "challenger / baseline: 0.100" in text
    assert "1 of 3 did not reach the loss" in text
    assert "goal 0.2: met" in text
    for fast, holds in itertools.product(([10.0] * 3, [30.0] * 3), (True, False)):
        text = summary({"baseline": slow, "challenger": rows(fast, [True, True, holds])}, 1.8857)
        assert ("goal 0.2: met" in text) == (holds and fast[0] == 10.0)


def test_rows_name_no_place_of_a_machine() -> None:
    from finished_runs import OF_A_MACHINE, RESULTS

    rows = [json.loads(line) for file in sorted(RESULTS.glob("*.jsonl")) for line in file.read_text().splitlines()]
    assert rows
    assert not [row["run"] for row in rows if set(OF_A_MACHINE) & row.get("settings", {}).keys()]


def test_a_run_leaves_out_where_its_text_lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finished_runs import KEPT_NOTHING, ONE_THREAD, one_run

    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question\n" * 200)
    small = {"source": "text", "path": str(text), "steps": 1, "n_layer": 1}
    row = one_run("a run", "debug", {**KEPT_NOTHING, **ONE_THREAD, **small})
    assert row["loss"] > 0
    assert str(tmp_path) not in json.dumps(row)
