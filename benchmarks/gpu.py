"""Everything that a CUDA card has to be measured for, in one go and within 30 minutes; writes JSON, text and a PNG.

    python benchmarks/gpu.py --out gpu-results                # speed, profile, 8 minutes of training a recipe
    python benchmarks/gpu.py --out gpu-results --minutes 2
    python benchmarks/gpu.py --out gpu-smoke --smoke           # seconds on a CPU: that it works, no measurement

Speed: GPT-2 124M, context 1,024, vocabulary padded to 50,304. Ours is what `quill train` chooses (bf16, the stream
too, compiled, flash attention through SDPA, loss in chunks, micro-batch by memory), beside what nanoGPT does,
written with our model: autocast with the stream in fp32, compiled, all logits at once, micro-batches of 12. The
sides take turns. MFU is tokens/s x (6 N + 12 L C T) / the data sheet's dense bf16 peak, attention counted in full and
embeddings that are only looked up not counted (`flops_per_token`) [Chowdhery 2022, appendix B].

Training: the Python files of this interpreter's site-packages, a vocabulary trained on them, the GPT-2 recipe and the
modern one for the same minutes; held-out loss against minutes of training.
"""

import argparse
import dataclasses
import json
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from quillgpt.config import ModelConfig, OptimConfig, RunConfig, TrainConfig, updated
from quillgpt.distributed import Ranks
from quillgpt.hardware import detect, peak_flops
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import flops_per_token
from quillgpt.optim import build_optimizer
from quillgpt.run_dir import RunDirectory, read_metrics
from quillgpt.train.loop import train
from quillgpt.train.resolve import Choices, resolve
from quillgpt.train.setup import set_up_torch
from quillgpt.train.step import TrainingStep
from quillgpt.train.update import Wrapped, gradients, wrap

GPT2 = ModelConfig(bias=False)
TINY = ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=32, vocab_size=257, bias=False)
NANOGPT_ROWS = 12
ADAMW = OptimConfig(lr=6e-4, beta2=0.95)
GOALS = {"mfu": 0.42, "over_nanogpt": 1.3}

MODERN = {"mlp": "relu2", "norm": "rmsnorm", "position": "rotary", "qk_norm": True, "tied_head": False}
MODERN |= {"embedding_norm": True, "residual": "mixed", "logit_softcap": 15.0, "initialization": "zero-output"}
MUON = {"optimizer": "muon", "lr": 0.02, "embedding_lr": 0.3, "head_lr": 0.004, "scalar_lr": 0.02, "beta1": 0.8}
MUON |= {"beta2": 0.95, "eps": 1e-10, "weight_decay": 0.0, "schedule": "wsd", "decay_fraction": 0.7}
MUON |= {"warmup_steps": 0, "momentum_warmup_steps": 100, "gradient_clip": 0.0}
RECIPES: dict[str, dict[str, Any]] = {
    "GPT-2": {"lr": 6e-4, "min_lr": 6e-5, "warmup_steps": 100, "beta2": 0.95},
    "modern": MODERN | MUON,
}


@dataclasses.dataclass(kw_only=True)
class Side:
    """A way to train, made ready: a step of one micro-batch, and its facts."""

    rows: int
    step: Callable[[], None]
    first_step_seconds: float = 0.0
    rates: list[float] = dataclasses.field(default_factory=list)


def ours(model: ModelConfig, train_settings: TrainConfig) -> Side:
    """As `quill train` would."""
    choices, _ = resolve(RunConfig(model=model, optim=ADAMW, train=train_settings), detect(), Ranks())
    net = new_model(model, choices)
    return side(net, wrap(net, choices), choices)


def like_nanogpt(model: ModelConfig, choices: Choices) -> Side:
    """Its step with our model: one graph, autocast alone, no chunks, its micro-batch."""
    choices = dataclasses.replace(choices, rows=NANOGPT_ROWS, batch_size=NANOGPT_ROWS)
    net = new_model(model, choices)
    forward: Any = TrainingStep(net, chunk_elements=1 << 62)
    if choices.compile:
        forward = torch.compile(forward, backend=choices.compile_backend, dynamic=False)
    wrapped = dataclasses.replace(wrap(net, dataclasses.replace(choices, compile=False)), forward=forward)
    return side(net, wrapped, choices)


def new_model(model: ModelConfig, choices: Choices) -> GPT:
    torch.manual_seed(0)
    return GPT(model).to(choices.device)


def side(net: GPT, wrapped: Wrapped, choices: Choices) -> Side:
    optimizer = build_optimizer(net, ADAMW)
    tokens = torch.randint(net.config.vocab_size, (choices.batch_size, net.config.context_length + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    numbers = {"target_count": targets.numel(), "seed": 0, "step": 0, "rank": 0}

    def step() -> None:
        gradients(wrapped, inputs, targets, choices=choices, **numbers)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Side(rows=choices.batch_size, step=step)


def wait(device: str) -> None:
    """Until the card has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds_of(step: Callable[[], None], count: int, device: str) -> float:
    wait(device)
    started = time.perf_counter()
    for _ in range(count):
        step()
    wait(device)
    return (time.perf_counter() - started) / count


def speed(model: ModelConfig, asked: TrainConfig, *, steps: int, rounds: int) -> tuple[dict[str, Any], Side, Choices]:
    """Tokens per second and MFU of both sides, taking turns; and our side for the profile."""
    choices, reasons = resolve(RunConfig(model=model, optim=ADAMW, train=asked), detect(), Ranks())
    set_up_torch(choices.device, threads=choices.threads, matmul_precision=choices.matmul_precision)
    sides = {"ours": ours(model, asked), "like nanoGPT": like_nanogpt(model, choices)}
    for one in sides.values():
        one.first_step_seconds = seconds_of(one.step, 1, choices.device)
        seconds_of(one.step, min(steps, 5), choices.device)
    for _ in range(rounds):
        for one in sides.values():
            one.rates.append(one.rows * model.context_length / seconds_of(one.step, steps, choices.device))
    peak = peak_flops(torch.device(choices.device), choices.dtype)
    found: dict[str, Any] = {"choices": dataclasses.asdict(choices), "reasons": reasons, "sides": {}}
    for name, one in sides.items():
        rate = statistics.median(one.rates)
        found["sides"][name] = {
            "rows": one.rows,
            "tokens_per_second": rate,
            "range": [min(one.rates), max(one.rates)],
            "mfu": rate * flops_per_token(model) / peak if peak else None,
            "first_step_seconds": one.first_step_seconds,
        }
    found["over_nanogpt"] = found["sides"]["ours"]["tokens_per_second"] / statistics.median(sides["like nanoGPT"].rates)
    found["goals"] = GOALS
    if choices.device.startswith("cuda"):
        found["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found, sides["ours"], choices


def profile(one: Side, device: str, steps: int) -> str:
    """The heaviest operations of our step, as a table."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.startswith("cuda"):
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        for _ in range(steps):
            one.step()
        wait(device)
    key = "self_cuda_time_total" if device.startswith("cuda") else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=70)


def training(out: Path, base: RunConfig) -> dict[str, list[dict[str, float]]]:
    """Held-out loss against minutes of training, of each recipe."""
    curves = {}
    for name, settings in RECIPES.items():
        run = out / f"run-{name.lower()}"
        train(updated(base, settings | {"out": str(run)}, where=name))
        lines = [line for line in read_metrics(RunDirectory(run).metrics) if "held_out_loss" in line]
        curves[name] = [
            {
                "minutes": line["elapsed_seconds"] / 60,
                "step": line["step"],
                "held_out_loss": line["held_out_loss"],
                "bits_per_byte": line["held_out_bits_per_byte"],
            }
            for line in lines
        ]
        print(f"{name}: {lines[-1]['held_out_bits_per_byte']:.4f} bits per byte after {lines[-1]['step']:,} steps")
    return curves


def training_settings(asked: argparse.Namespace) -> RunConfig:
    """What both recipes share."""
    data: dict[str, Any] = {"source": "text", "errors": "replace", "tokenizer": "bpe"}
    common = {"save_every": 0, "gradient_clip": 1.0, "seed": 1}
    if asked.smoke:
        path = str(Path(__file__).parents[1] / "src" / "quillgpt" / "model" / "*.py")
        small = {**data, "path": path, "tokenizer": "byte", "steps": 6, "eval_every": 3, "batch_size": 4}
        return updated(RunConfig(model=TINY), common | small | {"eval_tokens": 512, "device": "cpu"}, where="--smoke")
    path = f"{sysconfig.get_paths()['purelib']}/**/*.py"
    large = {"path": path, "minutes": asked.minutes, "eval_every": 100, "eval_tokens": 1 << 20, "vocab_size": 16384}
    large |= {"batch_size": 32, "batch_tokens": 32 * 1024 * 4}
    return updated(RunConfig(model=GPT2), common | data | large, where="here")


def draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Loss against minutes, as a PNG; says so where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no PNG: matplotlib is not installed (pip install quillgpt[report])")
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        axes.plot([point["minutes"] for point in points], [point["bits_per_byte"] for point in points], label=name)
    axes.set(xlabel="minutes of training", ylabel="bits per byte, held out")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results; must not hold an earlier run")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, for each of the two recipes")
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if not asked.smoke and not torch.cuda.is_available():
        parser.error("no CUDA card here; --smoke tries the script on a CPU")
    shared = {"dtype": "bf16"} if asked.smoke else {}
    settings = TrainConfig(**shared, device="cpu" if asked.smoke else "cuda", batch_size=2 if asked.smoke else 0)
    steps, rounds = (1, 2) if asked.smoke else (20, 5)
    results: dict[str, Any] = {
        "device": "cpu" if asked.smoke else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "is_a_measurement": not asked.smoke,
    }
    results["speed"], one, choices = speed(TINY if asked.smoke else GPT2, settings, steps=steps, rounds=rounds)
    (asked.out / "profile.txt").write_text(profile(one, choices.device, steps))
    write(asked.out, results)
    print(json.dumps(results["speed"]["sides"], indent=2), f"ours / nanoGPT's: {results['speed']['over_nanogpt']:.2f}")
    del one
    results["training"] = training(asked.out, training_settings(asked))
    write(asked.out, results)
    draw(results["training"], asked.out / "loss-against-minutes.png")


def write(out: Path, results: dict[str, Any]) -> None:
    """After each part, so that a machine that is taken away leaves what there is."""
    (out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
