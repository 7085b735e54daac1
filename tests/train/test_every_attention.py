"""Every attention of the menu trains, resumes, evaluates, and samples with a cache."""

from pathlib import Path

import pytest
import torch

from quillgpt import checkpoint
from quillgpt.config import RunConfig, updated
from quillgpt.model.attention import ATTENTION
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.sample.generator import Generator, RecomputingGenerator, continued
from quillgpt.sample.settings import SamplingSettings
from quillgpt.train.loop import train


@pytest.mark.parametrize("attention", [*ATTENTION, "gaussian-poly-6"])
def test_an_attention_trains_resumes_evaluates_and_samples(
    small_run: RunConfig, tmp_path: Path, attention: str
) -> None:
    settings = {"attention": attention, "schedule": "constant", "steps": 12, "eval_every": 6, "save_every": 6}
    config = updated(small_run, settings, where="test")
    whole = updated(config, {"out": str(tmp_path / "whole")}, where="test")

    train(updated(config, {"steps": 6}, where="test"))
    outcome = train(config)
    at_once = train(whole)

    losses, losses_at_once = (
        [line["loss"] for line in read_metrics(RunDirectory(run.run).metrics)] for run in (outcome, at_once)
    )
    assert losses == losses_at_once
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.5
    assert outcome.held_out == at_once.held_out
    ours, theirs = (
        checkpoint.committed(RunDirectory(run.run))[-1].tensors(checkpoint.MODEL) for run in (outcome, at_once)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert sampled(outcome.run, Generator) == sampled(outcome.run, RecomputingGenerator)


def sampled(run: Path, kind: type[Generator] | type[RecomputingGenerator]) -> list[int]:
    """The likeliest 40 tokens after a prompt, past the context of 32."""
    model, _ = checkpoint.load_model(run)
    settings = SamplingSettings(temperature=0, max_new_tokens=40)
    return [int(token) for token in continued(kind(model), [100, 111, 99], settings, [0])]
