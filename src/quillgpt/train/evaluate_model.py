"""Models on tasks: what `quill eval` and `--eval-only` both do. Checked first, then computed, and kept at once."""

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from quillgpt.distributed import Ranks, first_goes_first, joined
from quillgpt.errors import ConfigError, NonFiniteError
from quillgpt.evaluate.asked_tasks import have_task_data
from quillgpt.evaluate.harness import run_harness
from quillgpt.evaluate.harness_library import all_tasks, check_installed, has_data
from quillgpt.evaluate.held_out_text import HeldOutText, own_split
from quillgpt.evaluate.loss_task import LOSS, score_loss
from quillgpt.evaluate.results import Evaluation, ModelRecord, harness_evaluation, task_evaluation, write_evaluation
from quillgpt.evaluate.score import score_task
from quillgpt.hardware import Machine, detect
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import parameter_count
from quillgpt.sample.generate import check_vocabulary
from quillgpt.train.resolve import DTYPES, choose_device, choose_dist_backend
from quillgpt.train.setup import set_up_torch
from quillgpt.train.subject import Subject
from quillgpt.train.wanted import Means, Wanted, Watcher, choose_means


def evaluate_models(subjects: Sequence[Subject], wanted: Wanted, ranks: Ranks, watcher: Watcher) -> list[Evaluation]:
    """Evaluate one model after the other; everything that can be told beforehand is told before the first.

    Each result is written where the subject's results go, or to `wanted.out`, as soon as it is there.
    """
    machine = detect()
    device = choose_device(wanted.device, machine, ranks)[0]
    backend = choose_dist_backend(wanted.dist_backend, device.partition(":")[0], machine, ranks)
    with joined(ranks, backend=backend, timeout_seconds=wanted.dist_timeout_seconds, device=device):
        return _evaluate(subjects, wanted, machine, ranks, watcher)


def _evaluate(
    subjects: Sequence[Subject], wanted: Wanted, machine: Machine, ranks: Ranks, watcher: Watcher
) -> list[Evaluation]:
    for subject in subjects:
        _check_subject(subject, wanted)
    if wanted.harness:
        _check_harness(wanted.harness, wanted.task_data)
    with first_goes_first(ranks):
        have_task_data(
            wanted.tasks, wanted.task_data, may_fetch=ranks.is_first, flag=wanted.task_data_flag, say=watcher.say
        )
    found: list[Evaluation] = []
    with tempfile.TemporaryDirectory(prefix="quill-", ignore_cleanup_errors=True) as folder:
        texts = _Texts(wanted, Path(folder), watcher)
        for subject in subjects:
            means = choose_means(subject, wanted, machine, ranks, watcher.say)
            set_up_torch(means.device, threads=means.threads, matmul_precision=means.matmul_precision)
            for evaluation in _evaluations(subject, wanted, texts, means, ranks, watcher):
                if ranks.is_first:
                    write_evaluation(evaluation, Path(wanted.out or subject.folder), subject.file_name)
                found.append(evaluation)
    return found


def _check_subject(subject: Subject, wanted: Wanted) -> None:
    """Refuse a model without data to score it on, the largest thing that can be missing, or without tokenizer."""
    if wanted.has_loss:
        _check_data(subject, wanted)
    _ = subject.tokenizer.fingerprint  # read here for the first time, so that a missing one is told


def _check_data(subject: Subject, wanted: Wanted) -> None:
    if wanted.data is not None:
        wanted.data.check(wanted.splits)
    elif subject.own_data is None:
        raise ConfigError(f"{subject.name}: which text? it is not known what it was trained on; give --data")
    else:
        subject.own_data.find(subject.name)


class _Texts:
    """The texts of the splits; what has to be encoded anew is so once for each tokenizer."""

    def __init__(self, wanted: Wanted, folder: Path, watcher: Watcher) -> None:
        self._wanted, self._folder, self._watcher = wanted, folder, watcher
        self._known: dict[tuple[str, str, int], HeldOutText] = {}

    def of(self, subject: Subject, split: str, max_tokens: int) -> HeldOutText:
        """A split's text in the model's tokens; of text that is encoded here at least `max_tokens` of them (0: all)."""
        data = self._wanted.data
        if data is None:
            assert subject.own_data is not None
            return own_split(subject.own_data.find(subject.name), split)
        key = (subject.tokenizer.fingerprint, split, max_tokens)
        if key not in self._known:
            self._watcher.progress(f"{subject.name}: reading {data.path}", 0, 1)
            folder = self._folder / str(len(self._known))
            self._known[key] = data.split(split, subject.tokenizer, folder, max_tokens)
        return self._known[key]


def _evaluations(
    subject: Subject, wanted: Wanted, texts: _Texts, means: Means, ranks: Ranks, watcher: Watcher
) -> Iterator[Evaluation]:
    """The evaluations of one model, each as it is ready."""
    watcher.progress(f"{subject.name}: loading", 0, 1)
    model = subject.load(means.device)
    check_vocabulary(model, subject.tokenizer)
    _check_finite(model, subject.name)
    record = ModelRecord(
        name=subject.name,
        fingerprint=subject.source.fingerprint,
        parameters=parameter_count(subject.config),
        step=subject.step,
        tokens=subject.tokens,
    )
    for split in wanted.splits if wanted.has_loss else ():
        yield _loss(subject, model, record, split, wanted, texts, means, ranks, watcher)
    for task, limit in wanted.tasks:
        result = score_task(
            task,
            model,
            subject.tokenizer,
            directory=wanted.task_data,
            limit=limit,
            device=means.device,
            dtype=DTYPES[means.dtype],
            batch_tokens=means.batch_tokens,
            ranks=ranks,
            heartbeat=partial(watcher.progress, f"{subject.name}: {task.name}"),
        )
        if result.cut_contexts:
            watcher.say(f"{subject.name}: {task.name}: {result.cut_contexts:,} contexts were cut to fit its context")
        yield task_evaluation(task, result, wanted.task_data, record, means.record)
    if wanted.harness:
        watcher.progress(f"{subject.name}: lm-evaluation-harness", 0, 1)
        yield from _harness(subject, model, record, wanted, means)


def _loss(
    subject: Subject,
    model: GPT,
    record: ModelRecord,
    split: str,
    wanted: Wanted,
    texts: _Texts,
    means: Means,
    ranks: Ranks,
    watcher: Watcher,
) -> Evaluation:
    """The loss on a split. Of the training split, as many tokens from its beginning as the held-out text has."""
    limit, length = wanted.eval_tokens, model.config.context_length
    held_out = texts.of(subject, "val", limit)
    count = held_out.windows(length, limit).target_count
    text = texts.of(subject, "train", count) if split == "train" else held_out
    if split == "train":
        watcher.say(f"{subject.name}: the train split's first {count:,} tokens, as many as of the held-out text")
    elif wanted.data is None and subject.own_data is not None and 0 < subject.own_data.eval_tokens < count:
        fewer = subject.own_data.eval_tokens
        told = f"its training scored the first {fewer:,} of {count:,} tokens"
        watcher.say(f"{subject.name}: {told}; --eval-tokens {fewer} repeats that number")
    result = score_loss(
        model,
        subject.tokenizer,
        text,
        max_tokens=count,
        batch_size=means.batch_size,
        device=means.device,
        dtype=DTYPES[means.dtype],
        ranks=ranks,
        heartbeat=partial(watcher.progress, f"{subject.name}: {LOSS} {split}"),
    )
    is_limited = held_out.windows(length, 0).target_count > count
    return result.evaluation(record, means.record, limit=limit if is_limited else 0)


def _harness(subject: Subject, model: GPT, record: ModelRecord, wanted: Wanted, means: Means) -> Iterator[Evaluation]:
    """The tasks of lm-evaluation-harness; data of theirs that is in the directory of the tasks is taken from there."""
    found = run_harness(
        wanted.harness,
        model,
        subject.tokenizer,
        data_dir=wanted.task_data if wanted.task_data.is_dir() else None,
        limit=wanted.limit,
        device=means.device,
        dtype=DTYPES[means.dtype],
        batch_tokens=means.batch_tokens,
    )
    for name, numbers in found.items():
        yield harness_evaluation(name, numbers, wanted.limit, wanted.task_data, record, means.record)


def _check_harness(names: Sequence[str], directory: Path) -> None:
    """Refuse a harness that is not installed, and tasks that it does not know."""
    check_installed()
    others = [name for name in names if not has_data(name, directory)]
    if others:
        all_tasks(others)


def _check_finite(model: GPT, name: str) -> None:
    """Refuse weights that are not numbers: a loss would be none either, and an accuracy noise that looks like one."""
    for weight_name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise NonFiniteError(f"{name}: {weight_name} is not finite; use a checkpoint from before it broke")
