"""Scores against counting by hand, and what must not change them."""

import dataclasses
import math
import random
import statistics
from pathlib import Path

import pytest
import task_files
import torch
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError, DataError
from quillgpt.evaluate.score import TaskResult, score_task
from quillgpt.evaluate.tasks import TASKS, Task
from quillgpt.evaluate.tasks.task import Item, subset
from quillgpt.model.gpt import GPT
from quillgpt.tokenizer import load_tokenizer

CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=160, vocab_size=257, dropout=0.5)
TOKENIZER = load_tokenizer("byte")
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def scored(task: Task, model: GPT, folder: Path, **settings: object) -> TaskResult:
    return dataclasses.replace(score_task(task, model, TOKENIZER, directory=folder, **settings), seconds=0.0)


@torch.no_grad()
def slow_losses(model: GPT, task: Task, item: Item) -> list[list[float]]:
    """The loss of each token of each continuation, a candidate at a time; and whether it was the first choice."""
    model.eval()
    found = []
    for candidate in item.candidates:
        request = task.encode(TOKENIZER, candidate.context, candidate.continuation)
        tokens = [*request.context, *request.continuation]
        assert len(tokens) <= 161
        logits = model(torch.tensor([tokens[:-1]]))[0]
        places = range(len(request.context), len(tokens))
        found.append([-F.log_softmax(logits[place - 1], -1)[tokens[place]].item() for place in places])
    return found


def by_hand(task: Task, model: GPT, items: list[Item]) -> dict[str, list[float]]:
    """For each metric the value of each item, as docs/evaluation.md says it."""
    values: dict[str, list[float]] = {metric: [] for metric in task.metrics}
    for item in items:
        losses = slow_losses(model, task, item)
        if task.name == "lambada":
            values["perplexity"].append(sum(losses[0]))
            likely = [loss < math.log(2) for loss in losses[0]]
            assert not any(likely)  # no token has more than half of the probability: see the greedy test
            continue
        sums = [sum(row) for row in losses]
        lengths = [
            len(row) if task.name == "hellaswag-completion" else len(candidate.continuation) - 1
            for row, candidate in zip(losses, item.candidates, strict=True)
        ]
        means = [total / length for total, length in zip(sums, lengths, strict=True)]
        values["accuracy"].append(float(sums.index(min(sums)) == item.right))
        if "accuracy_norm" in values:
            values["accuracy_norm"].append(float(means.index(min(means)) == item.right))
    return values


@every_task
def test_the_scores_are_those_counted_by_hand(task: Task, model: GPT, folder: Path) -> None:
    expected = by_hand(task, model, task.read(folder))
    result = scored(task, model, folder)
    assert tuple(result.scores) == tuple(result.standard_errors) == task.metrics
    assert (result.task, result.items, result.limit) == (task.name, 12, 0)
    for metric, values in expected.items():
        if not values:
            continue
        mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(12)
        if metric == "perplexity":
            mean, error = math.exp(mean), math.exp(mean) * error
        assert result.scores[metric] == pytest.approx(mean, rel=1e-9)
        assert result.standard_errors[metric] == pytest.approx(error, rel=1e-9)


class Knowing(GPT):
    """Its first choice after any token is the token that follows it in a text."""

    def __init__(self, text: str) -> None:
        super().__init__(CONFIG)
        self.following = dict(zip(text.encode(), text.encode()[1:], strict=False))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def hidden(self, tokens: torch.Tensor, cache: object = None) -> torch.Tensor:
        follows = torch.tensor([[self.following.get(token, 0) for token in row] for row in tokens.tolist()])
        return 3 * F.one_hot(follows, 257).double()


def test_lambada_counts_a_word_whose_every_token_is_the_first_choice(tmp_path: Path) -> None:
    texts = ["the abcd", "xy abcd", "one abce", "we abcd"]
    (tmp_path / "lambada_test.jsonl").write_text(task_files.lines({"text": text} for text in texts))
    result = scored(TASKS["lambada"], Knowing("e abcd"), tmp_path)
    assert result.scores["accuracy"] == 2 / 4  # after "xy" the space was no first choice
    assert result.standard_errors["accuracy"] == pytest.approx(math.sqrt(1 / 3 / 4))


@every_task
@pytest.mark.parametrize("batch_tokens", [1, 500])
def test_the_batch_size_does_not_change_a_score(task: Task, batch_tokens: int, model: GPT, folder: Path) -> None:
    expected, result = scored(task, model, folder), scored(task, model, folder, batch_tokens=batch_tokens)
    assert result.scores == pytest.approx(expected.scores, rel=1e-12)
    assert result.standard_errors == pytest.approx(expected.standard_errors, rel=1e-12)


@every_task
def test_the_order_of_the_items_does_not_change_a_score(task: Task, model: GPT, folder: Path, tmp_path: Path) -> None:
    for path in task.paths:
        lines = (folder / path).read_text().splitlines(keepends=True)
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("".join(random.Random(1).sample(lines, len(lines))))
    for limit in (0, 5):
        shuffled, expected = scored(task, model, tmp_path, limit=limit), scored(task, model, folder, limit=limit)
        assert shuffled.scores == pytest.approx(expected.scores, rel=1e-12)
        assert shuffled.items == expected.items == (limit or 12)


@pytest.mark.parametrize("limit", [1, 2, 7, 12, 13])
def test_any_limit_from_1_up_works_and_is_the_fixed_subset(limit: int, model: GPT, folder: Path) -> None:
    task = TASKS["hellaswag-completion"]
    result = scored(task, model, folder, limit=limit)
    values = by_hand(task, model, subset(task.read(folder), limit))
    assert result.items == min(limit, 12)
    assert result.limit == limit
    assert result.scores["accuracy_norm"] == pytest.approx(statistics.fmean(values["accuracy_norm"]))
    assert result.task_fingerprint == scored(task, model, folder).task_fingerprint
    assert math.isfinite(result.standard_errors["accuracy"])


@every_task
def test_the_ranks_shares_add_up_to_the_whole(
    task: Task, model: GPT, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scored(task, model, folder)
    shares: list[torch.Tensor] = []
    monkeypatch.setattr("quillgpt.evaluate.score.total", lambda values, ranks: shares.append(values) or values)
    for rank in range(5):
        scored(task, model, folder, ranks=Ranks(rank=rank, world_size=5))
    assert sum(len(share.any(dim=1).nonzero()) for share in shares) <= 12  # nothing is scored by two
    monkeypatch.setattr("quillgpt.evaluate.score.total", lambda values, ranks: torch.stack(shares).sum(dim=0))
    together = scored(task, model, folder, ranks=Ranks(rank=3, world_size=5))
    assert together.scores == pytest.approx(whole.scores, rel=1e-12)
    assert together.standard_errors == pytest.approx(whole.standard_errors, rel=1e-12)


def test_a_rank_without_items_takes_part(model: GPT, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quillgpt.evaluate.score.total", lambda values, ranks: values)
    result = scored(TASKS["piqa"], model, folder, limit=2, ranks=Ranks(rank=7, world_size=8))
    assert result.items == 2


@every_task
def test_scoring_touches_no_random_state_and_leaves_the_mode(task: Task, model: GPT, folder: Path) -> None:
    model.train()
    states = torch.get_rng_state(), random.getstate()
    first = scored(task, model, folder, limit=3)
    assert scored(task, model, folder, limit=3) == first
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert model.training
    model.eval()
    scored(task, model, folder, limit=1)
    assert not model.training


def test_contexts_that_were_cut_are_counted(folder: Path) -> None:
    small = GPT(dataclasses.replace(CONFIG, context_length=70))
    result = scored(TASKS["hellaswag-completion"], small, folder)
    items = TASKS["hellaswag-completion"].read(folder)
    lengths = [len(one.context) + len(one.continuation) for item in items for one in item.candidates]
    assert result.cut_contexts == sum(length > 71 for length in lengths)
    assert 0 < result.cut_contexts < len(lengths)


def test_an_ending_longer_than_the_model_can_see_is_one_line(folder: Path) -> None:
    small = GPT(dataclasses.replace(CONFIG, context_length=8))
    with pytest.raises(DataError, match=r"piqa: a continuation of \d+ tokens cannot be scored.*context_length = 8"):
        scored(TASKS["piqa"], small, folder)


def test_another_tokenizer_than_the_model_s_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="the model has 300 tokens and byte 257"):
        scored(TASKS["piqa"], GPT(dataclasses.replace(CONFIG, vocab_size=300)), folder)


def test_a_hopeless_model_has_a_finite_perplexity(folder: Path) -> None:
    torch.manual_seed(2)
    model = GPT(CONFIG)
    with torch.no_grad():
        model.token_embedding.weight.mul_(50_000)
    assert math.isfinite(scored(TASKS["lambada"], model, folder).scores["perplexity"])


def test_the_heartbeat_knows_how_much_there_is(model: GPT, folder: Path) -> None:
    beats: list[tuple[int, int]] = []
    score_task(
        TASKS["piqa"], model, TOKENIZER, directory=folder, batch_tokens=300, heartbeat=lambda *beat: beats.append(beat)
    )
    assert beats[-1] == (24, 24)
    assert {count for _, count in beats} == {24}
