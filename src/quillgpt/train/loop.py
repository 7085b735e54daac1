"""One training run, straight down: settings, data, model, steps, checkpoints."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT

import torch

from quillgpt import checkpoint
from quillgpt.config import RunConfig
from quillgpt.data.held_out import IGNORED_TARGET, HeldOutWindows
from quillgpt.distributed import Ranks, first_goes_first, joined, ranks_from_environment, total
from quillgpt.errors import Interrupted, Stopped
from quillgpt.evaluate.held_out_loss import HeldOutLoss, device_for_sums, evaluate_held_out
from quillgpt.hardware import detect
from quillgpt.optim import state_tensors
from quillgpt.optim.schedules import learning_rate, momentum
from quillgpt.run_dir import RunDirectory, config_toml
from quillgpt.train.band_watch import BandWatch
from quillgpt.train.batch_ramp import rate_share
from quillgpt.train.eval_only import evaluate_only, held_out_of
from quillgpt.train.guard import Guard, check_weights, stop_unless_finite
from quillgpt.train.kernel_statistics import KernelMonitor
from quillgpt.train.metrics import Metrics
from quillgpt.train.open_data import Data
from quillgpt.train.progress import Quiet, Screen
from quillgpt.train.resolve import DTYPES, check_memory, resolve
from quillgpt.train.setup import Parts, opened_run, set_up
from quillgpt.train.signals import StopRequest, stop_requests
from quillgpt.train.task_scores import TaskScores, ready_tasks
from quillgpt.train.update import apply_update, gradients
from quillgpt.train.wanted import Watcher
from quillgpt.train.write_samples import write_samples

Clock = Callable[[str], contextlib.AbstractContextManager[object]]


Judge = Callable[[Data], HeldOutWindows]


def untimed(name: str) -> contextlib.AbstractContextManager[object]:
    """The clock of a run: it measures no part of a step."""
    return contextlib.nullcontext()


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step came to. loss: nats per token; norm: of the gradients, before clipping."""

    inputs: torch.Tensor
    loss: float
    lr: float
    norm: float
    applied: bool
    stop: bool
    interrupt: bool


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: its directory, the steps done, and the held-out loss of its weights."""

    run: Path
    step: int
    held_out: HeldOutLoss
    signal: int = 0
    """the signal that asked for a stop when there was nothing left to do; 0: none"""


def train(config: RunConfig, screen: Screen | None = None, *, judge: Judge | None = None) -> Outcome:
    """Train by the settings, or continue the run that is in `train.out`; return how it ended.

    Prepares missing data. A signal or Ctrl-C ends the run at a step boundary, saved, and raises `Stopped` or
    `Interrupted`; the same call continues it, on a CPU bit for bit. `judge` gives other held-out windows.

    For example:
        config = quillgpt.load_recipe("debug", steps=50, device="cpu", out="runs/first")
        outcome = quillgpt.train(config)
        print(outcome.step)  # 50
        print(outcome.held_out.loss, "nats per token,", outcome.held_out.bits_per_byte, "bits per byte")
        model, tokenizer = quillgpt.load_model(outcome.run)
        print(quillgpt.generate(model, tokenizer, "def", max_new_tokens=100)[0])
    """
    ranks = ranks_from_environment()
    screen = screen if screen is not None and ranks.is_first else Quiet()
    settings = config.train
    if settings.eval_only:
        return _evaluated(config, ranks, screen)
    with contextlib.ExitStack() as stack:
        machine = detect()
        choices, reasons = resolve(config, machine, ranks)
        check_memory(config, choices, machine, ranks)
        stack.enter_context(
            joined(
                ranks,
                backend=choices.dist_backend,
                timeout_seconds=settings.dist_timeout_seconds,
                device=choices.device,
            )
        )
        tasks = ready_tasks(config, ranks, screen.say)
        run = stack.enter_context(opened_run(settings.out, ranks))
        parts = set_up(run, config, choices, ranks, screen)
        parts = parts if judge is None else judged_by(judge, parts)
        model, position, choices = parts.model, parts.position, parts.choices
        if position.step >= position.steps or position.has_reached_loss:
            return _already_done(run, parts, ranks, screen)
        metrics = stack.enter_context(
            Metrics(run, config, model.config, choices, position, is_first=ranks.is_first, say=screen.say)
        )
        reasons |= parts.reasons
        stack.enter_context(screen.training(run.path, model.config, choices, reasons, position, config.lora.lora_rank))
        request = stack.enter_context(stop_requests())
        guard = Guard(position.non_finite_in_a_row)
        monitor = KernelMonitor(model=model, choices=choices, is_first=ranks.is_first, say=screen.say)
        watch = BandWatch(run, config, parts.data.train.fingerprint, is_first=ranks.is_first, say=screen.say)
        scores = TaskScores(tasks, Path(settings.task_data), run, parts, ranks, screen.say)
        held_out: HeldOutLoss | None = None

        while position.step < position.steps and not position.has_reached_loss:
            step = one_step(parts, config, guard, ranks=ranks, request=request, say=screen.say)
            is_last = position.step == position.steps
            held_out, is_best = None, False
            if every(position.step, settings.eval_every) or is_last:
                started = time.perf_counter()
                held_out = _evaluate(parts, ranks)
                position.evaluation_seconds += time.perf_counter() - started
                stop_unless_finite(held_out.loss, step=position.step)
                is_best = position.best_loss is None or held_out.loss < position.best_loss
                if is_best:
                    position.best_loss = held_out.loss
                position.has_reached_loss = 0 < settings.stop_at_loss >= held_out.loss
                is_last = is_last or position.has_reached_loss
            line = metrics.line(
                position, loss=step.loss, lr=step.lr, norm=step.norm, applied=step.applied, held_out=held_out
            )
            if held_out is not None:
                line |= scores.at(position)
            if held_out is not None or every(position.step, settings.log_every):
                metrics.write(line | monitor.look(step.inputs, position.step) | watch.judged(line))
            screen.step(line | watch.told())
            if ranks.is_first and every(position.step, settings.sample_every):
                write_samples(run, model, parts.data.tokenizer, position.step, settings.seed)
            if step.stop or is_last or every(position.step, settings.save_every) or is_best:
                position.non_finite_in_a_row = guard.in_a_row
                with first_goes_first(ranks):  # a rank that left earlier would make torchrun end the one that saves
                    if ranks.is_first:
                        _save(run, config, parts, held_out)
            if step.stop and not is_last:
                _leave(run, position.step, interrupted=step.interrupt)
        assert held_out is not None
        return Outcome(run=run.path, step=position.step, held_out=held_out, signal=request.signal)


def judged_by(judge: Judge, parts: Parts) -> Parts:
    """The same with other held-out windows."""
    return dataclasses.replace(parts, data=dataclasses.replace(parts.data, held_out=judge(parts.data)))


def one_step(
    parts: Parts,
    config: RunConfig,
    guard: Guard,
    *,
    ranks: Ranks,
    request: StopRequest,
    say: Callable[[str], None],
    clock: Clock = untimed,
) -> Step:
    """Batch, gradients, update: what every step of a run does, and `quill bench train` measures with a `clock`.

    Moves the position on; a third update in a row that cannot be applied is a `NonFiniteError`.
    """
    choices, position, number, started = parts.choices, parts.position, parts.position.step, time.perf_counter()
    with clock("data"):
        inputs, targets = parts.loader.batch(number, ranks.rank, ranks.world_size)
        target_count = _count(targets, ranks, choices.device)
    with clock("gradients"):
        loss_sum = gradients(
            parts.wrapped,
            inputs,
            targets,
            choices=choices,
            target_count=target_count,
            seed=config.train.seed,
            step=number,
            rank=ranks.rank,
        )
        loss, stop, interrupt = _agree(loss_sum, request.signal, ranks, choices.device)
    loss /= target_count
    lr = learning_rate(number, position.steps, config.optim)
    lr *= rate_share(parts.schedule.rows_at(number), choices.rows)
    with clock("optimizer"):
        norm, applied = apply_update(
            parts.wrapped,
            parts.optimizer,
            guard,
            loss=loss,
            lr=lr,
            momentum=momentum(number, config.optim),
            gradient_clip=config.optim.gradient_clip,
        )
    if not applied and guard.in_a_row:
        where = parts.schedule.position(number)
        refusal = guard.message(step=number, position=where, tokens=target_count, loss=loss, gradient_norm=norm)
        say(refusal)
        guard.stop_if_hopeless(refusal)
    position.step += 1
    position.tokens += target_count
    position.elapsed_seconds += time.perf_counter() - started
    position.take_in(loss)
    return Step(inputs=inputs, loss=loss, lr=lr, norm=norm, applied=applied, stop=stop, interrupt=interrupt)


def every(step: int, interval: int) -> bool:
    """Whether something that happens every `interval` steps happens now; 0 is never."""
    return interval > 0 and step % interval == 0


def _count(targets: torch.Tensor, ranks: Ranks, device: str) -> int:
    """Targets that count, over all ranks."""
    return int(total((targets != IGNORED_TARGET).sum().to(device), ranks).item())


def _agree(loss_sum: torch.Tensor, signal: int, ranks: Ranks, device: str) -> tuple[float, bool, bool]:
    """The loss summed over all ranks, whether any rank was asked to stop, and whether by Ctrl-C.

    Reading the loss waits for the device, so that the time around it is the whole step's.
    """
    if not ranks.is_parallel:
        return loss_sum.item(), signal != 0, signal == SIGINT
    flags = torch.tensor([0.0, signal != 0, signal == SIGINT], dtype=torch.float64)
    flags[0] = loss_sum.item()
    values = total(flags.to(device_for_sums(device)), ranks).tolist()
    return values[0], values[1] > 0, values[2] > 0


def _evaluate(parts: Parts, ranks: Ranks) -> HeldOutLoss:
    return evaluate_held_out(
        parts.model,
        parts.data.held_out,
        parts.data.bytes_per_token,
        batch_size=parts.choices.batch_size,
        device=parts.choices.device,
        dtype=DTYPES[parts.choices.dtype],
        ranks=ranks,
    )


def _already_done(run: RunDirectory, parts: Parts, ranks: Ranks, screen: Screen) -> Outcome:
    """Evaluate and return, for a run that has no steps left."""
    position = parts.position
    finished = f"{run.path} is finished: {position.step:,} of {position.steps:,} steps"
    reached = "the held-out loss is reached; lower --stop-at-loss to go on"
    screen.say(f"{finished}; {reached if position.has_reached_loss else 'raise --steps to go on'}")
    return Outcome(run=run.path, step=position.step, held_out=_evaluate(parts, ranks))


def _evaluated(config: RunConfig, ranks: Ranks, screen: Screen) -> Outcome:
    """Evaluate and return, for a run that is only to be evaluated."""
    evaluations = evaluate_only(config, ranks, Watcher(say=screen.say))
    step = evaluations[0].model.step or 0
    return Outcome(run=Path(config.train.out), step=step, held_out=held_out_of(evaluations))


def _save(run: RunDirectory, config: RunConfig, parts: Parts, held_out: HeldOutLoss | None) -> None:
    """Commit a checkpoint of where the run stands now, and delete those not to keep."""
    check_weights(parts.model, step=parts.position.step)
    scaler = parts.wrapped.scaler
    parts.position.scaler = scaler.state_dict() if scaler is not None else {}
    checkpoint.save(
        run,
        step=parts.position.step,
        model=parts.model,
        optimizer_state=state_tensors(parts.optimizer, parts.model),
        state=dataclasses.asdict(parts.position),
        resolved=dataclasses.asdict(parts.choices),
        config_toml=config_toml(config),
        tokenizer=parts.data.tokenizer,
        data_fingerprint=parts.data.train.fingerprint,
        held_out_loss=held_out.loss if held_out is not None else None,
        adapter=parts.adapter,
    )
    checkpoint.prune(run, keep_last=config.train.keep_last)


def _leave(run: RunDirectory, step: int, *, interrupted: bool) -> None:
    """End the run after its save, by the error whose exit code says why."""
    message = f"stopped after step {step:,}, saved in {run.path}; run the same command again to continue"
    raise Interrupted(message) if interrupted else Stopped(message)
