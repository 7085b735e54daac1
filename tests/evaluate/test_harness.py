"""lm-evaluation-harness over our models: its scores of the small files are ours, its questions are answered rightly."""

import json
import math
import random
import types
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import task_files
import torch
from torch.nn import functional as F

from quillgpt.errors import ConfigError
from quillgpt.evaluate import harness_library
from quillgpt.evaluate.harness import HarnessModel, rolling_requests, run_harness
from quillgpt.evaluate.likelihood import Likelihood, likelihoods
from quillgpt.evaluate.score import TaskResult, score_task
from quillgpt.evaluate.tasks import TASKS, Task
from quillgpt.model.gpt import GPT
from quillgpt.sample.generate import generate
from quillgpt.tokenizer import load_tokenizer

pytest.importorskip("lm_eval")
TOKENIZER = load_tokenizer("byte")
OURS = {task.name: task for task in TASKS.values() if task.harness_name}
METRICS = {"accuracy": "acc", "accuracy_norm": "acc_norm", "perplexity": "perplexity"}


@dataclass
class Run:
    """What the harness found, what it asked and was answered, and whether it touched the random states."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    asked: dict[tuple[str, str], Likelihood] = field(default_factory=dict)
    random_states_are_equal: bool = False


def random_states() -> tuple[object, ...]:
    _, keys, place, *_ = np.random.get_state()
    return random.getstate(), (keys.tolist(), place), torch.get_rng_state().tolist()


@pytest.fixture(scope="module")
def run(model: GPT, folder: Path) -> Run:
    """HellaSwag by itself, then all others."""
    answer, run, before = HarnessModel.continuations, Run(), random_states()

    def noted(self: HarnessModel, pairs: list[tuple[str, str]]) -> list[Likelihood]:
        found = answer(self, pairs)
        run.asked |= dict(zip(pairs, found, strict=True))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("DISABLE_MULTIPROC", "1")
        patch.setattr(HarnessModel, "continuations", noted)
        names = [task.harness_name for task in OURS.values()]
        for some in (["hellaswag"], [name for name in names if name != "hellaswag"]):
            run.scores |= run_harness(some, model, TOKENIZER, data_dir=folder, limit=9)
    run.random_states_are_equal = before == random_states()
    return run


def ours(task: Task, model: GPT, folder: Path) -> TaskResult:
    return score_task(task, model, TOKENIZER, directory=folder, limit=9)


@pytest.mark.parametrize("task", OURS.values(), ids=OURS)
def test_the_harness_s_scores_are_ours(task: Task, run: Run, model: GPT, folder: Path) -> None:
    expected, found = ours(task, model, folder), run.scores[task.harness_name]
    assert {METRICS[metric] for metric in expected.scores} <= set(found)
    for metric, score in expected.scores.items():
        assert found[METRICS[metric]] == pytest.approx(score, rel=1e-12)
        if metric != "perplexity":  # the harness draws samples for it
            assert found[f"{METRICS[metric]}_stderr"] == pytest.approx(expected.standard_errors[metric], rel=1e-12)
    assert found.get("perplexity_stderr", 1.0) > 0


def test_hellaswag_is_exactly_the_same_item_by_item(run: Run, model: GPT, folder: Path) -> None:
    task = TASKS["hellaswag-harness"]
    expected, found = ours(task, model, folder), run.scores["hellaswag"]
    assert found["acc"] == expected.scores["accuracy"]
    assert found["acc_norm"] == expected.scores["accuracy_norm"]
    assert 0 < found["acc"] < 1
    items = harness_library.subset(task.read(folder), 9)
    pairs = [(one.context, one.continuation) for item in items for one in item.candidates]
    likelihood_of = likelihoods(model, [task.encode(TOKENIZER, *pair) for pair in pairs])
    assert len(pairs) == 36
    assert [run.asked[pair] for pair in pairs] == likelihood_of


def test_the_harness_asks_about_the_texts_of_our_items(run: Run, folder: Path) -> None:
    pairs = {
        (one.context, one.continuation)
        for task in OURS.values()
        for item in harness_library.subset(task.read(folder), 9)
        for one in item.candidates
    }
    assert pairs == set(run.asked)


def test_the_harness_touches_no_random_state(run: Run) -> None:
    assert run.random_states_are_equal


def test_what_draws_random_numbers_in_between_leaves_no_trace() -> None:
    before = random_states()
    with harness_library.kept_random_states():
        random.random()
        np.random.rand()
        torch.rand(1)
        assert all(now != then for now, then in zip(random_states(), before, strict=True))
    assert random_states() == before


WRITTEN = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
ASKED = {
    "output_type": "generate_until",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n", "zz"], "max_gen_toks": 7},
    "metric_list": [{"metric": "exact_match"}],
}


def test_tasks_of_whole_texts_and_of_generated_text_run_too(model: GPT, tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    model = model.float()
    texts = ["one two three", "four " * 90, "naïve 🙂"]
    answers = generate_greedily(model, texts[:2], 7)
    rows = [{"text": text, "answer": answer} for text, answer in zip(texts, [*answers, "wrong"], strict=True)]
    (tmp_path / "rows.jsonl").write_text(task_files.lines(rows))
    for name, settings in {"whole": WRITTEN, "generated": ASKED}.items():
        data = {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")}
        definition = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
        definition |= {"metric_list": [{"metric": "bits_per_byte"}]} | settings
        (tmp_path / f"{name}.yaml").write_text(json.dumps(definition))
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = harness_library.evaluate(
        HarnessModel(model=model, tokenizer=TOKENIZER), ["whole", "generated"], tasks, limit=0
    )
    nats = sum(slow_loss(model, text) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert found["whole"]["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-5)
    assert found["generated"]["exact_match"] == pytest.approx(2 / 3)
    model.double()


def generate_greedily(model: GPT, prompts: list[str], count: int) -> list[str]:
    return [
        generate(model, TOKENIZER, prompt[-(160 - count) :], max_new_tokens=count, temperature=0, stop=["\n", "zz"])[0]
        for prompt in prompts
    ]


@torch.no_grad()
def slow_loss(model: GPT, text: str) -> float:
    """Nats of all tokens: windows of 160 predictions, the last with as much context as the model can see."""
    tokens = [TOKENIZER.end_of_text, *TOKENIZER.encode(text)]
    nats = 0.0
    for start in range(1, len(tokens), 160):
        end = min(start + 160, len(tokens))
        first = max(0, end - 161)
        logits = F.log_softmax(model(torch.tensor([tokens[first : end - 1]]))[0].double(), dim=-1)
        nats -= sum(logits[place - 1 - first, tokens[place]].item() for place in range(start, end))
    return nats


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 9, 11])
def test_long_texts_are_cut_as_the_harness_cuts_them(count: int) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    tokens = list(range(10, 10 + count))
    windows = map(make_disjoint_window, get_rolling_token_windows(tokens, prefix_token=0, max_seq_len=4, context_len=1))
    found = rolling_requests(tokens, end_of_text=0, context_length=4)
    assert [(list(one.context), list(one.continuation)) for one in found] == [(a, b) for a, b in windows]
    assert [token for one in found for token in one.continuation] == tokens


def answered(model: GPT, prompt: str, **settings: object) -> str:
    return HarnessModel(model=model, tokenizer=TOKENIZER).answers([(prompt, settings)])[0]


def test_generation_stops_before_the_first_stop_string_and_at_the_most_tokens(model: GPT) -> None:
    whole = answered(model, "once", max_gen_toks=12)
    assert whole == generate(model, TOKENIZER, "once", max_new_tokens=12, temperature=0)[0]
    assert len(TOKENIZER.encode(answered(model, "once", until=[], max_gen_toks=3, do_sample=False))) <= 9
    stop = whole[3]
    assert answered(model, "once", until=[stop], max_gen_toks=12) == whole[: whole.index(stop)]
    assert (
        answered(model, "once", until=stop, max_gen_toks=12, do_sample=True, temperature=0)
        == whole[: whole.index(stop)]
    )


def test_a_long_prompt_makes_room_for_the_answer(model: GPT) -> None:
    prompt = "".join(chr(97 + number % 26) for number in range(400))
    assert answered(model, prompt, max_gen_toks=10) == answered(model, prompt[-150:], max_gen_toks=10)
    assert answered(model, prompt, max_gen_toks=500, until=["\n"]) is not None
    assert answered(model, "", max_gen_toks=2) == generate(model, TOKENIZER, "", max_new_tokens=2, temperature=0)[0]


def test_a_task_that_wants_sampled_text_is_refused(model: GPT) -> None:
    with pytest.raises(ConfigError, match="asks for sampled text; only greedy"):
        answered(model, "once", do_sample=True, temperature=0.7)


def test_without_the_library_the_message_says_how_to_get_it(
    model: GPT, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness_library, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'quillgpt\[harness\]'"):
        run_harness(["hellaswag"], model, TOKENIZER, data_dir=folder)


def test_an_unknown_task_is_refused_with_the_nearest_name(
    model: GPT, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = types.SimpleNamespace(task_index={"hellaswag": None, "wikitext": None})
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: known)  # finding all of them takes seconds
    with pytest.raises(ConfigError, match=r"harness = 'wikitxt' does not exist \(did you mean wikitext\?\)"):
        run_harness(["hellaswag", "wikitxt"], model, TOKENIZER, data_dir=folder)


def test_only_data_that_is_there_is_taken_from_the_directory(folder: Path, tmp_path: Path) -> None:
    assert harness_library.has_data("piqa", folder)
    assert not harness_library.has_data("piqa", tmp_path)
    assert not harness_library.has_data("wikitext", folder)
    task_files.write_archive(tmp_path / TASKS["winogrande"].archive, task_files.FILES["winogrande"](3))
    assert harness_library.has_data("winogrande", tmp_path)
