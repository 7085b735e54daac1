"""All measurements on a CUDA GPU, within 30 minutes; writes JSON, text and a PNG.

    python benchmarks/gpu.py --out gpu-results                # speed, profile, 8 minutes of training a recipe
    python benchmarks/gpu.py --out gpu-results --minutes 2
    python benchmarks/gpu.py --out gpu-smoke --smoke           # a test on a CPU, seconds, not a measurement

Speed: GPT-2 124M, context 1,024, vocabulary padded to 50,304. Ours is the runtime of `quill train` (bf16, also the
residual stream; compiled, flash attention by SDPA, chunked loss, micro-batch by memory). Against it nanoGPT's step with
our model: autocast with the stream in fp32, compiled, all logits at once, micro-batches of 12. They take turns.
MFU = tokens/s x (6 N + 12 L C T) / the data sheet's dense bf16 peak (`flops_per_token`) [Chowdhery 2022, appendix B].

Training: the Python files in site-packages, with a vocabulary trained on them, by the GPT-2 recipe and the modern one
for the same minutes; validation loss against minutes of training.
"""

import dataclasses
import json
import sysconfig
from pathlib import Path
from typing import Any

import measuring
import torch
from measuring import Row
from train_speed import Ours, side_of

from quillgpt import files
from quillgpt.config import ModelConfig, OptimConfig, RunConfig, TrainConfig, updated
from quillgpt.distributed import Ranks
from quillgpt.errors import ConfigError
from quillgpt.lab.bench.measure import Plan, measure_in_turns, profile, rates, ratios
from quillgpt.model.gpt import GPT
from quillgpt.model.sizes import flops_per_token
from quillgpt.run_dir import RunDirectory
from quillgpt.runtime import Runtime, detect, peak_flops, resolve, set_up_torch
from quillgpt.training.loop import train
from quillgpt.training.step import ModelWithLoss, WrappedModel, wrap

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
RECIPES = {"GPT-2": {"lr": 6e-4, "min_lr": 6e-5, "warmup_steps": 100, "beta2": 0.95}, "modern": MODERN | MUON}


def wrap_like_nanogpt(model: GPT, runtime: Runtime) -> WrappedModel:
    """nanoGPT's step with our model: one graph, autocast only, all logits at once."""
    forward: Any = ModelWithLoss(model, chunk_elements=1 << 62)
    if runtime.compile:
        forward = torch.compile(forward, backend=runtime.compile_backend, dynamic=False)
    return dataclasses.replace(wrap(model, dataclasses.replace(runtime, compile=False)), forward=forward)


def speed(model: ModelConfig, settings: TrainConfig, *, seconds: float, rounds: int) -> tuple[Row, Ours]:
    """Tokens per second and MFU of both sides, in turns; and our side, for the profile."""
    runtime, reasons = resolve(RunConfig(model=model, optim=ADAMW, train=settings), detect(), Ranks())
    set_up_torch(runtime.device, threads=runtime.threads, matmul_precision=runtime.matmul_precision)
    nanogpt = dataclasses.replace(runtime, global_batch_size=NANOGPT_ROWS, micro_batch_size=NANOGPT_ROWS)
    ours = Ours(model, ADAMW, runtime)
    sides = {"ours": ours, "like nanoGPT": Ours(model, ADAMW, nanogpt, wrap_like_nanogpt)}
    first = {name: measuring.seconds_of(step) for name, step in sides.items()}  # a step ends by waiting for the device
    turns = [side_of(step, step.inputs.numel(), device=runtime.device) for step in sides.values()]
    windows = measure_in_turns(turns, Plan(windows=rounds, seconds=seconds, warmup=seconds))
    speeds = dict(zip(sides, [rates(one, "tokens") for one in windows], strict=True))
    peak = peak_flops(torch.device(runtime.device), runtime.dtype)
    found: Row = {"runtime": dataclasses.asdict(runtime), "reasons": reasons, "sides": {}, "goals": GOALS}
    for name, found_speed in speeds.items():
        found["sides"][name] = {
            "rows": sides[name].runtime.micro_batch_size,
            "tokens_per_second": found_speed.median,
            "range": [min(found_speed.values), max(found_speed.values)],
            "mfu": found_speed.median * flops_per_token(model) / peak if peak else None,
            "first_step_seconds": first[name],
        }
    found["over_nanogpt"] = ratios(speeds["ours"], speeds["like nanoGPT"]).median
    if runtime.device.startswith("cuda"):
        found["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found, ours


def profiled(one: Ours, steps: int, trace: Path) -> str:
    found = profile(lambda count: [one() for _ in range(count)], steps, device=one.runtime.device, trace=trace)
    return "".join(
        f"{1e3 * op.seconds:9.3f} ms {op.share:6.1%} {op.calls:6.0f} x {op.name}\n" for op in found.operators
    )


def training(out: Path, base: RunConfig) -> dict[str, list[dict[str, float]]]:
    """Validation loss against minutes of training, of each recipe."""
    curves = {}
    for name, settings in RECIPES.items():
        run = out / f"run-{name.lower()}"
        train(updated(base, settings | {"out": str(run)}, where=name))
        lines = [line for line in measuring.rows_in(RunDirectory(run).metrics) if "val_loss" in line]
        columns = [("step", "step"), ("val_loss", "val_loss"), ("bits_per_byte", "val_bpb")]
        curves[name] = [{column: line[key] for column, key in columns} for line in lines]
        for point, line in zip(curves[name], lines, strict=True):
            point["minutes"] = line["elapsed_seconds"] / 60
        print(f"{name}: {lines[-1]['val_bpb']:.4f} bits per byte after {lines[-1]['step']:,} steps")
    return curves


def training_settings(minutes: float, *, smoke: bool) -> RunConfig:
    data: dict[str, Any] = {"source": "text", "errors": "replace", "tokenizer": "bpe"}
    common = {"save_every": 0, "gradient_clip": 1.0, "seed": 1}
    if smoke:
        path = str(Path(__file__).parents[1] / "src" / "quillgpt" / "model" / "*.py")
        small = {**data, "path": path, "tokenizer": "byte", "steps": 6, "eval_every": 3, "batch_size": 4}
        return updated(RunConfig(model=TINY), common | small | {"eval_tokens": 512, "device": "cpu"}, where="--smoke")
    path = f"{sysconfig.get_paths()['purelib']}/**/*.py"
    large = {"path": path, "minutes": minutes, "eval_every": 100, "eval_tokens": 1 << 20, "vocab_size": 16384}
    large |= {"batch_size": 32, "batch_tokens": 32 * 1024 * 4}
    return updated(RunConfig(model=GPT2), common | data | large, where="here")


def draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Write a PNG of the loss against minutes; without matplotlib print a message."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no PNG: matplotlib is not installed (pip install quillgpt[report])")
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        axes.plot(*([point[key] for point in points] for key in ("minutes", "bits_per_byte")), label=name)
    axes.set(xlabel="minutes of training", ylabel="bits per byte, validation")
    axes.legend()
    figure.savefig(path, dpi=150)


def main(out: Path, minutes: float = 8.0, smoke: bool = False) -> None:
    """Speed, profile and training.

    Args:
        out: folder of the results, without an earlier run
        minutes: of training, for each of the two recipes
        smoke: test the script on a CPU, at tiny sizes
    """
    if not smoke and not torch.cuda.is_available():
        raise ConfigError("no CUDA card here; --smoke tries the script on a CPU")
    out.mkdir(parents=True, exist_ok=True)
    settings = TrainConfig(dtype="bf16", device="cpu", batch_size=2) if smoke else TrainConfig(device="cuda")
    seconds, rounds = (0.01, 2) if smoke else (5.0, 5)
    device = "cpu" if smoke else torch.cuda.get_device_name()
    results: Row = {"device": device, "torch": torch.__version__, "is_a_measurement": not smoke}
    results["speed"], ours = speed(TINY if smoke else GPT2, settings, seconds=seconds, rounds=rounds)
    (out / "profile.txt").write_text(profiled(ours, 1 if smoke else 20, out / "trace.json"))
    files.write_json(out / "gpu.json", results)  # after each part, so that it survives the loss of the machine
    print(json.dumps(results["speed"]["sides"], indent=2), f"ours / nanoGPT's: {results['speed']['over_nanogpt']:.2f}")
    del ours
    results["training"] = training(out, training_settings(minutes, smoke=smoke))
    files.write_json(out / "gpu.json", results)
    draw(results["training"], out / "loss-against-minutes.png")


if __name__ == "__main__":
    measuring.run_script(__doc__, main)
