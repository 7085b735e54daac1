"""Several ranks train as one: the same gradients, the same run, one checkpoint, and an end that leaves nothing behind.

The processes are real: gloo on 127.0.0.1, and torchrun. What they leave is made once and read by several tests.
"""

import contextlib
import fcntl
import json
import os
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
from recorded_quill import row_hashes
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from quillgpt import checkpoint
from quillgpt.config import RunConfig, updated
from quillgpt.data.held_out import IGNORED_TARGET
from quillgpt.data.loader import BatchLoader
from quillgpt.model.gpt import GPT
from quillgpt.run_dir import RunDirectory, config_toml, read_metrics
from quillgpt.train import update
from quillgpt.train.loop import train
from quillgpt.train.progress import Quiet

HERE = Path(__file__).parent
PATIENCE_SECONDS = 90  # for what takes 10 on an idle machine


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills, once even where several pytest workers want it."""
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    folder = (factory.getbasetemp().parent if is_worker else factory.getbasetemp()) / name
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".made").exists():
            make(folder)
            (folder / ".made").touch()
    return folder


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **more}


# Gradients


@pytest.fixture
def computed(small_run: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What gradients_on_ranks.py leaves."""

    def make(folder: Path) -> None:
        recipe = folder / "recipe.toml"
        recipe.write_text(config_toml(small_run))
        command = [sys.executable, on_ranks.__file__, str(folder), str(recipe)]
        with process_of(command, folder / "output.txt", environment()) as process:
            assert process.wait(PATIENCE_SECONDS) == 0, (folder / "output.txt").read_text()

    return made_once(tmp_path_factory, "gradients", make)


def one_big_batch(rows: int, *, lora_rank: int = 0) -> dict[str, Tensor]:
    """The gradients without any of the code that trains: a mean over the targets of one batch, in float64."""
    inputs, targets = on_ranks.global_batch(rows)
    model = on_ranks.new_model(torch.float64, lora_rank=lora_rank)
    logits = model(inputs).flatten(0, 1)
    F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED_TARGET).backward()
    return on_ranks.gradients_of(model)


def distance(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """How far the left gradients are from the right ones, as a share of the right ones' global norm."""
    assert left.keys() == right.keys()
    difference = sum((left[name].double() - right[name].double()).square().sum().item() for name in right)
    norm = sum(right[name].double().square().sum().item() for name in right)
    return (difference / norm) ** 0.5


@pytest.mark.parametrize("dtype", on_ranks.DTYPES)
@pytest.mark.parametrize("name", on_ranks.CASES)
def test_ranks_and_accumulation_have_the_gradient_of_the_one_big_batch(computed: Path, name: str, dtype: str) -> None:
    case = on_ranks.CASES[name]
    of_ranks = [load_file(computed / f"{name}, {dtype}-{rank}.safetensors") for rank in range(case.world_size)]
    big = one_big_batch(case.rows, lora_rank=case.lora_rank)
    assert distance(of_ranks[0], big) < {"float32": 1e-6, "float64": 1e-12}[dtype]
    for other in of_ranks[1:]:
        assert all(torch.equal(other[parameter], of_ranks[0][parameter]) for parameter in other)


@pytest.mark.parametrize(("batch_size", "rows"), [(1, 8), (8, 8), (3, 8), (2, 7)])
def test_accumulation_alone_has_the_gradient_of_the_one_big_batch(batch_size: int, rows: int) -> None:
    case = on_ranks.Case(world_size=1, rows=rows, batch_size=batch_size)
    model, choices = on_ranks.new_model(), on_ranks.choices_for(case)
    on_ranks.one_step(update.wrap(model, choices), choices, case, on_ranks.Ranks())
    assert distance(on_ranks.gradients_of(model), one_big_batch(rows)) < 1e-6


@pytest.mark.parametrize("mutation", on_ranks.MUTATIONS)
def test_with_the_reduction_broken_the_comparison_fails_clearly(computed: Path, mutation: str) -> None:
    big = one_big_batch(8)
    for rank in range(2):
        assert distance(load_file(computed / f"{mutation}-{rank}.safetensors"), big) > 0.2


def facts(computed: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads((computed / f"facts-2-{rank}.json").read_text())


def test_gradients_are_reduced_once_a_step_however_many_micro_batches(computed: Path) -> None:
    events = facts(computed)
    assert events["eager"].count("reduction") > 3  # buckets
    assert events["no_sync left out"].count("reduction") == 4 * events["eager"].count("reduction")
    parameters = len(list(on_ranks.new_model().parameters()))
    first = events["eager"].index("reduction")
    assert events["eager"][:first].count("gradient") > 3 * parameters  # the first three micro-batches are over


@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_the_reduction_overlaps_with_the_backward_pass(computed: Path, kind: str) -> None:
    events = facts(computed)[kind]
    parameters = len(list(on_ranks.new_model().parameters()))
    assert events.count("gradient") == 4 * parameters
    first = events.index("reduction")
    assert events[first:].count("gradient") > parameters / 2  # more than half of the backward pass is still to come
    assert events.count("reduction") > 3


def test_compiled_with_ddp_and_accumulation_the_gradients_are_the_same(computed: Path) -> None:
    assert distance(load_file(computed / "compiled-0.safetensors"), one_big_batch(8)) < 1e-6


def test_ranks_fall_back_to_eager_together(computed: Path) -> None:
    for rank, reason in enumerate(("on another rank", "no compiler on this node")):
        fact = facts(computed, rank)["fall back"]
        assert fact["compile"] is False
        assert fact["left gradients"] == 0
        assert len(fact["said"]) == 1
        assert reason in fact["said"][0]
        assert distance(load_file(computed / f"fall back-{rank}.safetensors"), one_big_batch(8)) < 1e-6


def test_a_rank_with_another_checkpoint_than_the_first_refuses(computed: Path) -> None:
    assert facts(computed, 0)["other start"] == ""
    message = facts(computed, 1)["other start"]
    assert "runs/apart: rank 0 continues from step 100, rank 1 from step 90; put --out where all nodes" in message


def test_ranks_with_unequal_memory_share_one_global_batch(computed: Path) -> None:
    assert [facts(computed, rank)["run"]["rows"] for rank in range(2)] == [16, 16]  # of rank 0's 32


def test_no_rank_leaves_before_the_checkpoint_is_saved(computed: Path) -> None:
    saved = facts(computed, 0)["run"]["saved"]
    assert all(facts(computed, rank)["run"]["left"] >= saved for rank in range(2))


# Whole runs, by torchrun


@contextlib.contextmanager
def process_of(command: list[str], output: Path, variables: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is ended with the block whatever happens, its children too (torchrun's have their own groups)."""
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=variables)
    try:
        yield process
    finally:
        if process.poll() is None:
            for pid in [*children(process), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def torchrun(*arguments: str, module: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *arguments, "-m", module, "train"]


def children(process: "subprocess.Popen[bytes]") -> list[int]:
    """The process's children, in the order in which they were started."""
    return sorted(int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def lines_of(run: RunDirectory) -> int:
    return run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0


@dataclass
class Ended:
    """How a torchrun ended that was signalled in the middle of a run."""

    code: int
    seconds: float
    left_alive: list[int]
    output: str
    saved_step: int
    logged_step: int


def signalled(config: RunConfig, folder: Path, name: str, number: int, *, worker: int | None) -> Ended:
    """Start or continue the run on two ranks; after some steps send a signal to one worker, or to torchrun."""
    run, output = RunDirectory(Path(config.train.out)), folder / f"{name}.txt"
    before = lines_of(run)
    command = [*torchrun("--standalone", "--nproc_per_node=2", module="recorded_quill"), str(folder / "recipe.toml")]
    record = environment(RECORD=str(folder))
    with process_of([*command, "--out", config.train.out], output, record) as process:
        patience = time.monotonic() + PATIENCE_SECONDS
        while lines_of(run) < before + 12:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < patience, output.read_text()
            time.sleep(0.05)
        workers = children(process)
        assert len(workers) == 2
        os.kill(process.pid if worker is None else workers[worker], number)
        sent = time.monotonic()
        process.wait(PATIENCE_SECONDS)
        ended_seconds = time.monotonic() - sent
    newest = checkpoint.newest_intact(run, print)
    assert newest is not None
    return Ended(
        code=process.returncode,
        seconds=ended_seconds,
        left_alive=[pid for pid in workers if is_alive(pid)],
        output=output.read_text(),
        saved_step=newest.step,
        logged_step=int(str(read_metrics(run.metrics)[-1]["step"])),
    )


STORY = {
    "SIGTERM to torchrun": (signal.SIGTERM, None),
    "SIGTERM to one worker": (signal.SIGTERM, 1),
    "SIGKILL of one worker": (signal.SIGKILL, 1),
}


@pytest.fixture
def long_run(small_run: RunConfig) -> RunConfig:
    """More steps than anyone waits for, at a rate that does not depend on their number."""
    settings = {"steps": 1_000_000, "schedule": "constant", "eval_every": 0, "save_every": 10}
    return updated(small_run, settings, where="test")


@pytest.fixture
def story(long_run: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Ended]]:
    """One run on two ranks, ended three times and continued twice by the same command."""

    def make(folder: Path) -> None:
        config = updated(long_run, {"out": str(folder / "run")}, where="test")
        (folder / "recipe.toml").write_text(config_toml(config))
        told = {name: vars(signalled(config, folder, name, *how[:1], worker=how[1])) for name, how in STORY.items()}
        (folder / "story.json").write_text(json.dumps([config.data.data, told]))

    folder = made_once(tmp_path_factory, "story", make)
    data, told = json.loads((folder / "story.json").read_text())
    config = updated(long_run, {"out": str(folder / "run"), "data": data}, where="test")
    return config, {name: Ended(**ended) for name, ended in told.items()}


def test_a_signal_to_torchrun_saves_the_last_step_and_leaves_no_process(story: tuple[RunConfig, dict]) -> None:
    ended = story[1]["SIGTERM to torchrun"]
    assert ended.code != 0
    assert ended.left_alive == []
    assert ended.saved_step == ended.logged_step >= 12
    assert ended.output.count(f"stopped after step {ended.saved_step:,}, saved") == 2
    assert ended.seconds < 20


def test_a_signal_to_one_rank_is_obeyed_by_all_at_the_same_step(story: tuple[RunConfig, dict]) -> None:
    ended = story[1]["SIGTERM to one worker"]
    assert ended.code != 0
    assert ended.left_alive == []
    assert ended.saved_step == ended.logged_step
    assert ended.output.count(f"stopped after step {ended.saved_step:,}, saved") == 2


def test_the_same_command_continues_where_the_signal_stopped_it(story: tuple[RunConfig, dict]) -> None:
    first, second, third = story[1].values()
    assert f"continuing {story[0].train.out}/checkpoints/step-{first.saved_step:06d}" in second.output
    assert f"continuing {story[0].train.out}/checkpoints/step-{second.saved_step:06d}" in third.output
    assert "not bit-identical" not in second.output + third.output
    assert first.saved_step < second.saved_step <= third.saved_step


def test_a_killed_rank_ends_the_job_quickly_with_the_checkpoint_before_it_intact(
    story: tuple[RunConfig, dict],
) -> None:
    ended = story[1]["SIGKILL of one worker"]
    assert ended.code != 0
    assert ended.seconds < 20  # 1 on an idle machine
    assert ended.left_alive == []
    assert ended.saved_step % 10 == 0 or ended.saved_step == story[1]["SIGTERM to one worker"].saved_step
    assert "a bug" not in ended.output


def listened(config: RunConfig) -> tuple[list[str], Quiet]:
    """A screen that keeps what is said."""
    screen = Quiet()
    said: list[str] = []
    screen.say = said.append  # type: ignore[method-assign]
    return said, screen


def test_two_ranks_are_the_same_run_as_one_and_one_continues_it(
    story: tuple[RunConfig, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, told = story
    reached = told["SIGKILL of one worker"].logged_step
    rows: dict[int, list[str]] = {}
    unrecorded = BatchLoader.batch

    def recorded(self: BatchLoader, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        batch = unrecorded(self, step, rank, world_size)
        rows[step] = row_hashes(*batch)
        return batch

    monkeypatch.setattr(BatchLoader, "batch", recorded)
    alone = updated(config, {"steps": reached, "save_every": 0, "out": str(tmp_path / "alone")}, where="test")
    train(alone)

    of_two = read_metrics(RunDirectory(Path(config.train.out)).metrics)
    of_one = read_metrics(RunDirectory(Path(alone.train.out)).metrics)
    assert [line["step"] for line in of_two] == list(range(1, reached + 1))  # written by one rank, each step once
    assert [line["tokens"] for line in of_two] == [line["tokens"] for line in of_one]
    assert [line["loss"] for line in of_two] == pytest.approx([line["loss"] for line in of_one], rel=1e-4)

    ranks = [(Path(config.train.out).parent / f"rank-{rank}.jsonl").read_text().splitlines() for rank in range(2)]
    for first, second in zip(*ranks, strict=False):
        step, first_rows = json.loads(first)
        same_step, second_rows = json.loads(second)
        assert step == same_step
        assert step >= reached or first_rows + second_rows == rows[step]


def test_one_rank_continues_the_run_of_two_and_says_what_is_not_the_same(
    story: tuple[RunConfig, dict], tmp_path: Path
) -> None:
    config, told = story
    import shutil

    copied = updated(config, {"out": str(tmp_path / "copied")}, where="test")
    shutil.copytree(config.train.out, copied.train.out)
    saved = told["SIGKILL of one worker"].saved_step
    said, screen = listened(copied)
    outcome = train(updated(copied, {"steps": saved + 5}, where="test"), screen)
    assert "continuing, not bit-identical: ranks were 2, are 1" in said
    steps = [line["step"] for line in read_metrics(RunDirectory(outcome.run).metrics)]
    assert steps == list(range(1, saved + 6))


def names_of(config: RunConfig) -> set[str]:
    last = checkpoint.committed(RunDirectory(Path(config.train.out)))[-1]
    return set(last.tensors(checkpoint.MODEL)) | set(last.tensors(checkpoint.OPTIMIZER))


def test_a_checkpoint_of_two_ranks_has_the_names_of_the_model(story: tuple[RunConfig, dict]) -> None:
    model = GPT(story[0].model)
    state = {f"{name}.{key}" for name, _ in model.named_parameters() for key in ("exp_avg", "exp_avg_sq", "step")}
    assert names_of(story[0]) == set(model.state_dict()) | state


def test_two_nodes_continue_the_run_of_one_process(long_run: RunConfig, tmp_path: Path) -> None:
    train(updated(long_run, {"steps": 10}, where="test"))
    alone = updated(long_run, {"steps": 20, "out": str(tmp_path / "alone")}, where="test")
    train(alone)

    (tmp_path / "recipe.toml").write_text(config_toml(long_run))
    where = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={on_ranks.free_port()}"]
    words = [str(tmp_path / "recipe.toml"), "--steps", "20", "--out", long_run.train.out]
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(
                process_of(
                    [*torchrun(*where, f"--node_rank={node}", module="quillgpt"), *words],
                    tmp_path / f"node-{node}.txt",
                    environment(),
                )
            )
            for node in range(2)
        ]
        codes = [node.wait(PATIENCE_SECONDS) for node in nodes]
    outputs = [(tmp_path / f"node-{node}.txt").read_text() for node in range(2)]
    assert codes == [0, 0], outputs
    assert "continuing, not bit-identical: ranks were 1, are 2" in outputs[0]
    assert outputs[0].count("held out:") == 1
    assert "step" not in outputs[1]  # the second node is silent

    of_two = read_metrics(RunDirectory(Path(long_run.train.out)).metrics)
    of_one = read_metrics(RunDirectory(Path(alone.train.out)).metrics)
    assert [line["step"] for line in of_two] == list(range(1, 21))
    assert [line["loss"] for line in of_two] == pytest.approx([line["loss"] for line in of_one], rel=1e-4)
    assert of_two[-1]["held_out_loss"] == pytest.approx(of_one[-1]["held_out_loss"], rel=1e-4)
    assert names_of(long_run) == names_of(alone)
