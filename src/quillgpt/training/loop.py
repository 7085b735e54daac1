"""One training run, straight down: settings, runtime, data, model, steps, checkpoints."""

import contextlib
import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT

import torch

from quillgpt import checkpoint, files
from quillgpt.config import RunConfig
from quillgpt.distributed import (
    Ranks,
    all_reduce_sum,
    device_for_sums,
    main_process_first,
    process_group,
    ranks_from_environment,
)
from quillgpt.errors import ConfigError, Interrupted, Stopped
from quillgpt.evaluate.loss import ValidationLoss, evaluate_loss
from quillgpt.evaluate.run import TaskScorer, prepared_tasks
from quillgpt.model.gpt import GPT
from quillgpt.model.loss import IGNORED_TARGET
from quillgpt.model.precision import DTYPES, evaluation_mode
from quillgpt.optim import state_tensors
from quillgpt.optim.schedules import learning_rate, momentum
from quillgpt.run_dir import RunDirectory, config_toml
from quillgpt.runtime import check_memory, detect, resolve
from quillgpt.sample.engine import generate
from quillgpt.tokenizer import Tokenizer
from quillgpt.training.attention_stats import AttentionMonitor
from quillgpt.training.calibrate import calibrate
from quillgpt.training.metrics import Metrics
from quillgpt.training.screen import Screen
from quillgpt.training.setup import LoadedRun, TrainingComponents, build, check_menus, load, opened_run
from quillgpt.training.signals import StopRequest, stop_requests
from quillgpt.training.step import Guard, StepResult, apply_update, check_weights, gradients, stop_unless_finite

logger = logging.getLogger(__name__)

SAMPLE_TOKENS, SAMPLE_COUNT = 200, 2


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: its directory, the steps done, and the validation loss of its weights.

    signal: the signal that requested a stop when no step was left; 0: none.
    """

    run: Path
    step: int
    validation: ValidationLoss
    signal: int = 0


def train(config: RunConfig, screen: Screen | None = None) -> Outcome:
    """Train with the settings, or continue the run in `train.out`; return how it ended.

    Prepares missing data. A signal or Ctrl-C ends the run at a step boundary, after saving, with `Stopped` or
    `Interrupted`; the same call continues it, on a CPU bit for bit.

    For example:
        config = quillgpt.load_recipe("debug", steps=50, device="cpu", out="runs/first")
        outcome = quillgpt.train(config)
        print(outcome.step)  # 50
        print(outcome.validation.loss, "nats per token,", outcome.validation.bits_per_byte, "bits per byte")
        model, tokenizer = quillgpt.load_model(outcome.run)
        print(quillgpt.generate(model, tokenizer, "def", max_new_tokens=100)[0])
    """
    settings = config.train
    if settings.eval_only:
        raise ConfigError("invalid eval_only: true (train() always trains); use `quill eval`")
    check_menus(config)
    ranks, machine = ranks_from_environment(), detect()
    screen = screen if screen is not None and ranks.is_main_process else Screen()
    runtime, reasons = resolve(config, machine, ranks)
    check_memory(config, runtime, machine, ranks)
    with contextlib.ExitStack() as stack:
        stack.enter_context(process_group(ranks, runtime.dist_backend, settings.dist_timeout_seconds, runtime.device))
        tasks = prepared_tasks(config, ranks)
        run = stack.enter_context(opened_run(settings.out, ranks))
        loaded = load(run, config, runtime, ranks, screen)
        is_calibrated = loaded.runtime.steps or not settings.minutes
        if loaded.state.has_reached_loss or (is_calibrated and loaded.state.step >= loaded.runtime.steps):
            return _already_finished(run, loaded, ranks)
        calibration = calibrate(config, loaded, ranks)
        components = build(run, config, loaded, calibration, ranks)
        runtime, model, state = components.runtime, components.model, components.state
        metrics = stack.enter_context(Metrics(run, config, components, ranks))
        reasons |= calibration.reasons
        request = stack.enter_context(stop_requests())
        stack.enter_context(screen.training(run.path, model.config, runtime, reasons, state, config.lora.lora_rank))
        guard = Guard(state.non_finite_in_a_row)
        attention = AttentionMonitor(model=model, runtime=runtime, is_main_process=ranks.is_main_process)
        scorer = TaskScorer(
            tasks=tasks,
            directory=Path(settings.task_data),
            run=run,
            model=model,
            tokenizer=components.data.tokenizer,
            adapter=components.adapter,
            runtime=runtime,
            ranks=ranks,
        )
        validation: ValidationLoss | None = None

        while state.step < runtime.steps and not state.has_reached_loss:
            step = one_step(components, config, guard, ranks, request)
            is_last = state.step == runtime.steps
            validation, is_best = None, False
            if every(state.step, settings.eval_every) or is_last:
                validation, is_best = _evaluate(components, ranks, settings.stop_at_loss)
                is_last = is_last or state.has_reached_loss
            line = metrics.line(step, validation)
            if validation is not None:
                line |= scorer.score(state.step, state.tokens)
            if validation is not None or every(state.step, settings.log_every):
                line |= screen.judge(line)
                metrics.write(line | attention.measure(step.inputs, state.step))
            screen.step(line)
            if ranks.is_main_process and every(state.step, settings.sample_every):
                write_samples(run, model, components.data.tokenizer, state.step, settings.seed)
            if step.is_stop or is_last or is_best or every(state.step, settings.save_every):
                state.non_finite_in_a_row = guard.in_a_row
                with main_process_first(ranks):  # if one exited during the save, torchrun would kill the one that saves
                    if ranks.is_main_process:
                        save(run, config, components, validation)
            if step.is_stop and not is_last:
                done = f"stopped after step {state.step:,}, saved in {run.path}"
                raise (Interrupted if step.is_interrupt else Stopped)(f"{done}; run the same command again to continue")
        assert validation is not None
        return Outcome(run=run.path, step=state.step, validation=validation, signal=request.signal)


def one_step(
    components: TrainingComponents, config: RunConfig, guard: Guard, ranks: Ranks, request: StopRequest | None = None
) -> StepResult:
    """Batch, gradients, update; advances the state.

    A `request` that arrives before the gradients are ready is part of the result. The third update in a row that
    cannot be applied is a `NonFiniteError`.
    """
    runtime, state, index, started = components.runtime, components.state, components.state.step, time.perf_counter()
    inputs, targets = components.loader.batch(index, ranks.rank, ranks.world_size)
    counted = (targets != IGNORED_TARGET).sum().to(runtime.device)
    target_count = int(all_reduce_sum(counted, ranks).item())
    loss_sum = gradients(
        components.wrapped_model,
        inputs,
        targets,
        runtime=runtime,
        target_count=target_count,
        seed=config.train.seed,
        step=index,
        rank=ranks.rank,
    )
    loss, is_stop, is_interrupt = _agree(loss_sum, request.signal if request else 0, ranks, runtime.device)
    loss /= target_count
    batch_fraction = components.schedule.global_batch_size_at(index) / runtime.global_batch_size
    lr = learning_rate(index, runtime.steps, config.optim, batch_fraction)
    norm, is_applied = apply_update(
        components.wrapped_model,
        components.optimizer,
        guard,
        loss=loss,
        lr=lr,
        momentum=momentum(index, config.optim),
        gradient_clip=config.optim.gradient_clip,
    )
    if not is_applied and guard.in_a_row:
        first = components.schedule.first_token(index)
        guard.report(step=index, first_token=first, tokens=target_count, loss=loss, grad_norm=norm)
    state.step += 1
    state.applied_updates += is_applied
    state.tokens += target_count
    state.elapsed_seconds += time.perf_counter() - started
    state.add_loss(loss)
    return StepResult(
        inputs=inputs,
        loss=loss,
        lr=lr,
        grad_norm=norm,
        is_applied=is_applied,
        is_stop=is_stop,
        is_interrupt=is_interrupt,
    )


def every(step: int, interval: int) -> bool:
    """Whether an event of this interval in steps happens now; 0 is never."""
    return interval > 0 and step % interval == 0


def _agree(loss_sum: torch.Tensor, signal: int, ranks: Ranks, device: str) -> tuple[float, bool, bool]:
    """The loss summed over all ranks, whether any rank received a signal to stop, and whether that was Ctrl-C.

    Reading the loss synchronizes with the device, so that the timing covers the entire step.
    """
    values = torch.tensor([loss_sum.item(), signal != 0, signal == SIGINT], dtype=torch.float64)
    if ranks.is_distributed:
        values = all_reduce_sum(values.to(device_for_sums(device)), ranks)
    loss, stops, interrupts = values.tolist()
    return loss, stops > 0, interrupts > 0


def _evaluate(components: TrainingComponents, ranks: Ranks, stop_at_loss: float) -> tuple[ValidationLoss, bool]:
    """Return the validation loss and whether it is the lowest so far; record it and its time in the state."""
    state, started = components.state, time.perf_counter()
    validation = validate(components, ranks)
    state.evaluation_seconds += time.perf_counter() - started
    stop_unless_finite(validation.loss, step=state.step)
    is_best = state.best_loss is None or validation.loss < state.best_loss
    if is_best:
        state.best_loss = validation.loss
    state.has_reached_loss = stop_at_loss > 0 and validation.loss <= stop_at_loss
    return validation, is_best


def validate(components: TrainingComponents | LoadedRun, ranks: Ranks) -> ValidationLoss:
    """Return the loss on the validation windows."""
    runtime, data = components.runtime, components.data
    return evaluate_loss(
        components.model,
        data.validation,
        data.bytes_per_token,
        batch_size=runtime.micro_batch_size,
        device=runtime.device,
        dtype=DTYPES[runtime.dtype],
        ranks=ranks,
    )


def _already_finished(run: RunDirectory, loaded: LoadedRun, ranks: Ranks) -> Outcome:
    """Evaluate a run that has no steps left."""
    state, steps = loaded.state, loaded.runtime.steps
    remedy = "raise --steps to continue"
    if state.has_reached_loss:
        remedy = "the validation loss is reached; lower --stop-at-loss to continue"
    logger.info("%s is finished: %s of %s steps; %s", run.path, f"{state.step:,}", f"{steps:,}", remedy)
    return Outcome(run=run.path, step=state.step, validation=validate(loaded, ranks))


def save(
    run: RunDirectory, config: RunConfig, components: TrainingComponents, validation: ValidationLoss | None
) -> None:
    """Commit a checkpoint of the present state, then delete the checkpoints that are not kept."""
    check_weights(components.model, step=components.state.step)
    scaler = components.wrapped_model.scaler
    components.state.scaler = scaler.state_dict() if scaler is not None else {}
    checkpoint.save(
        run,
        step=components.state.step,
        model=components.model,
        optimizer_state=state_tensors(components.optimizer, components.model),
        state=dataclasses.asdict(components.state),
        runtime=dataclasses.asdict(components.runtime),
        config_toml=config_toml(config),
        tokenizer=components.data.tokenizer,
        data_fingerprint=components.data.train.fingerprint,
        val_loss=validation.loss if validation is not None else None,
        adapter=components.adapter,
    )
    checkpoint.prune(run, keep_last=config.train.keep_last)


def write_samples(run: RunDirectory, model: GPT, tokenizer: Tokenizer, step: int, seed: int) -> None:
    """Write texts that begin new documents to samples/; their random generators are their own."""
    with evaluation_mode(model):
        texts = generate(model, tokenizer, max_new_tokens=SAMPLE_TOKENS, num_samples=SAMPLE_COUNT, seed=seed)
    files.write_text(run.samples / f"step-{step:06d}.txt", "\n\n----\n\n".join(texts) + "\n")
