"""Several ranks train as one: the same gradients, the same run, one checkpoint, and an end that leaves nothing running.

The processes are real: gloo on 127.0.0.1, and torchrun. What they write is made once and read by several tests.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradients_on_ranks as on_ranks
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from quillgpt import checkpoint
from quillgpt.config import RunConfig
from quillgpt.model.gpt import GPT
from quillgpt.model.loss import IGNORED_TARGET
from quillgpt.run_dir import config_toml
from quillgpt.training import loop
from quillgpt.training.loop import train
from quillgpt.training.step import wrap
from small_runs import changed, column, newest, run_of, tensors_of

HERE = Path(__file__).parent
TIMEOUT_SECONDS = 180  # for what takes 10 on an idle machine


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills, once even where several pytest workers need it."""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    folder = (factory.getbasetemp().parent if is_worker else factory.getbasetemp()) / name
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".made").exists():
            make(folder)
            (folder / ".made").touch()
    return folder


@contextlib.contextmanager
def process_of(command: list[str], output: Path, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends with the block whatever happens, its children too (torchrun's have their own groups)."""
    paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **variables}
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            for pid in [*children(process), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def children(process: "subprocess.Popen[bytes]") -> list[int]:
    """The process's children, in the order in which they were started."""
    return sorted(int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Gradients


@pytest.fixture
def computed(small_run: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What gradients_on_ranks.py writes."""

    def make(folder: Path) -> None:
        recipe = folder / "recipe.toml"
        recipe.write_text(config_toml(small_run))
        command = [sys.executable, on_ranks.__file__, str(folder), str(recipe)]
        with process_of(command, folder / "output.txt") as process:
            assert process.wait(TIMEOUT_SECONDS) == 0, (folder / "output.txt").read_text()

    return made_once(tmp_path_factory, "gradients", make)


def facts(computed: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((computed / f"facts-2-{rank}.json").read_text())


def of_one_batch(size: int, *, lora_rank: int = 0) -> dict[str, Tensor]:
    """The gradients without any of the code that trains: a mean over the targets of one batch, in float64."""
    inputs, targets = on_ranks.global_batch(size)
    model = on_ranks.new_model(torch.float64, lora_rank=lora_rank)
    logits = model(inputs).flatten(0, 1)
    F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED_TARGET).backward()
    return on_ranks.gradients_of(model)


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The norm of the difference of two sets of gradients, as a share of the right one's."""
    assert left.keys() == right.keys()
    difference = sum((left[name].double() - right[name].double()).square().sum().item() for name in right)
    norm = sum(right[name].double().square().sum().item() for name in right)
    return (difference / norm) ** 0.5


def test_ranks_and_accumulation_have_the_gradient_of_the_one_large_batch(computed: Path) -> None:
    for name, case in on_ranks.CASES.items():
        expected = of_one_batch(case.global_batch_size, lora_rank=case.lora_rank)
        for dtype, tolerance in {"float32": 1e-6, "float64": 1e-12}.items():
            paths = [computed / f"{name}, {dtype}-{rank}.safetensors" for rank in range(case.world_size)]
            first, *others = map(load_file, paths)
            assert distance(first, expected) < tolerance, (name, dtype)
            for other in others:
                assert [parameter for parameter in other if not torch.equal(other[parameter], first[parameter])] == []


def test_accumulation_alone_has_the_gradient_of_the_one_large_batch() -> None:
    for micro_batch_size, size in ((1, 8), (8, 8), (3, 8), (2, 7)):
        case = on_ranks.Case(world_size=1, global_batch_size=size, micro_batch_size=micro_batch_size)
        model, runtime = on_ranks.new_model(), case.runtime()
        on_ranks.one_step(wrap(model, runtime), runtime, case, on_ranks.Ranks())
        assert distance(on_ranks.gradients_of(model), of_one_batch(size)) < 1e-6, case


def test_with_the_reduction_broken_the_comparison_fails_clearly(computed: Path) -> None:
    expected = of_one_batch(8)
    paths = [computed / f"{mutation}-{rank}.safetensors" for mutation in on_ranks.MUTATIONS for rank in range(2)]
    assert [path.name for path in paths if distance(load_file(path), expected) <= 0.2] == []


def test_gradients_are_reduced_once_a_step_while_the_backward_pass_still_runs(computed: Path) -> None:
    events, parameters = facts(computed), len(list(on_ranks.new_model().parameters()))
    assert events["no_sync left out"].count("reduction") == 4 * events["eager"].count("reduction")
    for kind in ("eager", "compiled"):
        assert events[kind].count("reduction") > 3, kind  # buckets
        assert events[kind].count("gradient") == 4 * parameters
        first = events[kind].index("reduction")
        assert events[kind][:first].count("gradient") > 3 * parameters  # the first three micro-batches are over
        assert events[kind][first:].count("gradient") > parameters / 2  # more than half of the last is to come


def test_ranks_compile_or_fall_back_to_eager_together_with_the_same_gradients(computed: Path) -> None:
    expected = of_one_batch(8)
    assert distance(load_file(computed / "compiled-0.safetensors"), expected) < 1e-6
    for rank, reason in enumerate(("on another rank", "no compiler on this node")):
        fact = facts(computed, rank)["fall back"]
        assert fact["compile"] is False
        assert fact["left gradients"] == 0
        (message,) = fact["messages"]
        assert reason in message
        assert distance(load_file(computed / f"fall back-{rank}.safetensors"), expected) < 1e-6


def test_ranks_with_unequal_memory_share_one_global_batch(
    computed: Path, small_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (facts(computed, rank)["run"]["inputs"] for rank in range(2))
    assert (len(first), len(second)) == (16, 16)  # of rank 0's 32
    gradients, alone = loop.gradients, []

    def recorded(*arguments: Any, **numbers: Any) -> Tensor:
        alone.append(arguments[1].tolist())
        return gradients(*arguments, **numbers)

    monkeypatch.setattr(loop, "gradients", recorded)
    train(changed(small_run, batch_size=32, gradient_accumulation_steps=1, steps=1))
    assert first + second == alone[0]


def test_a_signal_to_one_rank_is_obeyed_by_all_and_none_leaves_before_the_save(computed: Path) -> None:
    runs = [facts(computed, rank)["run"] for rank in range(2)]
    assert all("stopped after step 3, saved" in run["message"] for run in runs)
    assert all(run["left"] >= runs[0]["saved"] for run in runs)
    assert "saved" not in runs[1]


# Entire runs


@dataclass
class Ended:
    """How a torchrun ended that got a signal in the middle of a run."""

    code: int
    seconds: float
    left_alive: list[int]
    output: str
    saved_step: int
    logged_step: int


def signalled(config: RunConfig, folder: Path, name: str, number: int, *, worker: int | None) -> Ended:
    """Start or continue the run on two ranks; after some steps send a signal to one worker, or to torchrun."""
    output, before = folder / f"{name}.txt", len(column(config, "step"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "quillgpt"]
    command += ["train", str(folder / "recipe.toml"), "--out", config.train.out]
    with process_of(command, output) as process:
        started = time.monotonic()
        while len(column(config, "step")) < before + 12:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < started + TIMEOUT_SECONDS, output.read_text()
            time.sleep(0.05)
        workers = children(process)
        assert len(workers) == 2
        os.kill(process.pid if worker is None else workers[worker], number)
        sent = time.monotonic()
        process.wait(TIMEOUT_SECONDS)
        seconds = time.monotonic() - sent
    found = checkpoint.latest_intact(run_of(config))
    assert found is not None
    return Ended(
        code=process.returncode,
        seconds=seconds,
        left_alive=[pid for pid in workers if is_alive(pid)],
        output=output.read_text(),
        saved_step=found.step,
        logged_step=column(config, "step")[-1],
    )


@pytest.fixture
def long_run(small_run: RunConfig) -> RunConfig:
    """More steps than anyone waits for, at a rate that does not depend on their number; rank 0 monitors attention."""
    settings = {"steps": 1_000_000, "schedule": "constant", "eval_every": 0, "save_every": 10}
    return changed(small_run, attention="gaussian-poly-4", **settings)


Story = tuple[RunConfig, Ended, Ended]


@pytest.fixture
def story(long_run: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """One run on two ranks, ended by SIGTERM to torchrun, continued, and ended by SIGKILL of a worker."""

    def make(folder: Path) -> None:
        config = changed(long_run, out=str(folder / "run"))
        (folder / "recipe.toml").write_text(config_toml(config))
        first = signalled(config, folder, "SIGTERM", signal.SIGTERM, worker=None)
        second = signalled(config, folder, "SIGKILL", signal.SIGKILL, worker=1)
        (folder / "story.json").write_text(json.dumps([config.data.data, vars(first), vars(second)]))

    folder = made_once(tmp_path_factory, "story", make)
    data, first, second = json.loads((folder / "story.json").read_text())
    return changed(long_run, out=str(folder / "run"), data=data), Ended(**first), Ended(**second)


def test_a_signal_to_torchrun_saves_the_last_step_and_leaves_no_process(story: Story) -> None:
    _, ended, _ = story
    assert ended.code != 0
    assert ended.left_alive == []
    assert ended.saved_step == ended.logged_step >= 12
    assert ended.output.count(f"stopped after step {ended.saved_step:,}, saved") == 2
    assert ended.seconds < 20


def test_the_same_command_continues_where_the_signal_stopped_it(story: Story) -> None:
    config, first, second = story
    assert f"continuing {config.train.out}/checkpoints/step-{first.saved_step:06d}" in second.output
    assert "not bit-identical" not in second.output
    assert first.saved_step <= second.saved_step


def test_a_killed_rank_ends_the_job_quickly_with_the_checkpoint_before_it_intact(story: Story) -> None:
    _, first, ended = story
    assert ended.code != 0
    assert ended.seconds < 20  # 1 on an idle machine
    assert ended.left_alive == []
    assert ended.saved_step % 10 == 0 or ended.saved_step == first.saved_step
    assert "a bug" not in ended.output


def test_two_ranks_are_the_same_run_as_one_and_one_continues_it(
    story: Story, tmp_path: Path, messages: list[str]
) -> None:
    config, _, ended = story
    reached = ended.logged_step
    alone = changed(config, steps=reached, save_every=0, out=str(tmp_path / "alone"))
    train(alone)
    assert column(config, "step") == list(range(1, reached + 1))  # written by one rank, each step once
    assert column(config, "tokens") == column(alone, "tokens")
    for name, tolerance in {"train_loss": 1e-4, "grad_norm": 2e-4, "kernel_x_max": 2e-4}.items():
        of_two, of_one = (torch.tensor(column(run, name)) for run in (config, alone))
        torch.testing.assert_close(of_two, of_one, rtol=tolerance, atol=0)
    model = GPT(config.model)
    state = {f"{name}.{key}" for name, _ in model.named_parameters() for key in ("exp_avg", "exp_avg_sq", "step")}
    assert tensors_of(config).keys() == set(model.state_dict()) | state

    copied = changed(config, steps=ended.saved_step + 5, out=str(tmp_path / "copied"))
    shutil.copytree(config.train.out, copied.train.out)
    train(copied)
    assert "continuing, not bit-identical: ranks were 2, are 1" in messages
    assert column(copied, "step") == list(range(1, ended.saved_step + 6))


def test_two_nodes_continue_the_run_of_one_process(long_run: RunConfig, tmp_path: Path) -> None:
    """With the environment that torchrun sets on two machines."""
    train(changed(long_run, steps=10))
    alone = changed(long_run, steps=20, out=str(tmp_path / "alone"))
    train(alone)
    (tmp_path / "recipe.toml").write_text(config_toml(long_run))
    command = [sys.executable, "-m", "quillgpt", "train", str(tmp_path / "recipe.toml"), "--steps", "20"]
    shared = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(on_ranks.free_port())
    outputs = [tmp_path / f"node-{node}.txt" for node in range(2)]
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(process_of([*command, "--out", long_run.train.out], output, RANK=str(node), **shared))
            for node, output in enumerate(outputs)
        ]
        codes = [node.wait(TIMEOUT_SECONDS) for node in nodes]
    first, second = (output.read_text() for output in outputs)
    assert codes == [0, 0], (first, second)
    assert "continuing, not bit-identical: ranks were 1, are 2" in first
    assert first.count("val loss:") == 1
    assert "step" not in second  # the second node is silent
    assert column(long_run, "step") == list(range(1, 21))
    assert column(long_run, "train_loss") == pytest.approx(column(alone, "train_loss"), rel=1e-4)
    assert column(long_run, "val_loss")[-1] == pytest.approx(column(alone, "val_loss")[-1], rel=1e-4)
    assert tensors_of(long_run).keys() == tensors_of(alone).keys()
    assert newest(long_run).step == 20
