"""The attentions of the menu: their loss, the time and memory of their kernels, the cost of monitoring them.

python benchmarks/attention.py variants                       # all, three seeds; after a kill the same command
python benchmarks/attention.py variants --entries power gaussian --seeds 1
python benchmarks/attention.py variants --table-only          # the finished runs as a Markdown table
python benchmarks/attention.py kernels --turns 3              # fused Gaussian attention, contexts 256 to 2,048
python benchmarks/attention.py monitor                        # time of the statistics against that of a step
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import measuring
import torch
from measuring import RESULTS, Row, resident_bytes, rows_in
from torch import Tensor
from train_speed import Ours

from quillgpt import load_recipe
from quillgpt.config import RunConfig
from quillgpt.distributed import Ranks
from quillgpt.errors import NonFiniteError
from quillgpt.model.attention import ATTENTION, find_attention, gaussian
from quillgpt.model.attention.unfused import attention_block, unfused_attention
from quillgpt.runtime import available_cores, detect, resolve
from quillgpt.training.attention_stats import AttentionMonitor
from quillgpt.training.loop import train

STEPS = 600  # about 30 seconds for the slowest entry on one quiet core
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 128, "context_length": 128}  # heads of 64 channels, as in GPT-2
BATCH = {"batch_size": 8, "batch_tokens": 1024}  # 8 sequences * 128 tokens
FIXED = {"minutes": 0.0, "device": "cpu", "compile": "off", "eval_every": 0, "save_every": 0}

HEADS, HEAD_SIZE = 12, 64  # of GPT-2 124M
INITIAL_STD = 0.55  # of a query's channel in a new GPT-2
WEIGHTS = {"gaussian": gaussian.gaussian_weights, "gaussian-normalized": gaussian.normalized_gaussian_weights}
FORMS: Mapping[str, Callable[[str], Callable[..., Tensor]]] = {
    "fused": lambda name: partial(find_attention(name).function, dropout=0.0),
    "blocks": lambda name: partial(unfused_attention, WEIGHTS[name], dropout=0.0),
    "square": lambda name: partial(attention_block, WEIGHTS[name], dropout=0.0),
}
MONITORED = ("gaussian", "gaussian-normalized", "gaussian-poly-8", "pointwise-relu")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The settings shared by all entries of a table; rows of other comparisons are ignored."""

    steps: int = STEPS
    qk_norm: bool = False
    threads: int = 1
    dtype: str = "bf16"

    def config(self, entry: str, seed: int, out: Path) -> RunConfig:
        own = {"attention": entry, "seed": seed, "out": str(out), "log_every": max(1, self.steps // 10)}
        return load_recipe("python", **(own | vars(self) | FIXED | SHAPE | BATCH))

    def has(self, row: Row) -> bool:
        return row.get("comparison") == vars(self) | SHAPE | BATCH


def variants(
    comparison: Comparison = Comparison(),
    entries: tuple[str, ...] = tuple(ATTENTION),
    seeds: tuple[int, ...] = (1, 2, 3),
    results: Path = RESULTS / "attention_variants.jsonl",
    table_only: bool = False,
) -> None:
    """Validation bits per byte of every attention: same text, steps and settings, one thread.

    The demo's data, optimizer and schedule, in a smaller shape and without QK-norm, under which all queries and keys
    have the same norm and gaussian-normalized equals softmax. No entry is tuned: all have the demo's rate. A run that
    diverges is a row too.
    """
    if not table_only:
        measuring.print_machine()
        measuring.data_of(comparison.config("softmax", 1, Path("runs")))  # prepared before the first run is timed
        run_missing(comparison, entries, seeds, results)
    rows = rows_in(results)
    print(table(row for row in rows if comparison.has(row)))
    if others := sum(not comparison.has(row) for row in rows):
        print(f"\n{others} rows of other comparisons in {results} are not shown")


def run_missing(comparison: Comparison, entries: Iterable[str], seeds: Iterable[int], results: Path) -> None:
    """Train what has no row yet, seed by seed, so that the table of a seed is complete before the next begins."""
    runs = [(entry, seed) for seed in seeds for entry in entries]
    for entry, _ in runs:
        find_attention(entry)
    for number, (entry, seed) in enumerate(runs, start=1):
        if (entry, seed) in finished(comparison, results):  # read each time: another process may add rows
            continue
        row = run(comparison, entry, seed)
        measuring.append(results, row)
        outcome = row["failure"] or f"{row['bits_per_byte']:.4f} bits per byte"
        print(f"{number}/{len(runs)}  {entry}, seed {seed}: {outcome}, {row['seconds']:.1f} s", flush=True)


def finished(comparison: Comparison, results: Path) -> set[tuple[str, int]]:
    return {(row["entry"], row["seed"]) for row in rows_in(results) if comparison.has(row)}


def run(comparison: Comparison, entry: str, seed: int) -> Row:
    """Train in a temporary directory; return the row, with the failure of a run that diverged."""
    figures = ("bits_per_byte", "loss", "standard_error")
    row: Row = {"entry": entry, "seed": seed, "failure": "", **dict.fromkeys(figures)}
    with tempfile.TemporaryDirectory() as folder:
        started, started_computing = time.perf_counter(), time.process_time()
        try:
            found = train(comparison.config(entry, seed, Path(folder) / "run")).validation
            row |= {name: getattr(found, name) for name in figures}
        except NonFiniteError as error:
            row["failure"] = str(error)
        row["seconds"] = round(time.perf_counter() - started, 2)
        row["cpu_seconds"] = round(time.process_time() - started_computing, 2)
        last = measuring.last_line(f"{folder}/run")
    row["last_look"] = {name: value for name, value in last.items() if isinstance(value, list)}
    provenance = {name: value for name, value in measuring.provenance().items() if name != "commit"}
    return row | {"comparison": vars(comparison) | SHAPE | BATCH} | provenance


def table(rows: Iterable[Row]) -> str:
    """Markdown, best mean first; entries whose runs all diverged come last."""
    by_entry: dict[str, list[Row]] = {}
    for row in rows:
        by_entry.setdefault(row["entry"], []).append(row)
    found = []
    for entry, runs in by_entry.items():
        bits = [row["bits_per_byte"] for row in runs if row["bits_per_byte"] is not None]
        mean = statistics.fmean(bits) if bits else float("inf")
        spread = f"{statistics.stdev(bits):.4f}" if len(bits) > 1 else ""
        figures = [f"{mean:.4f}", spread, f"{min(bits):.4f}", f"{max(bits):.4f}"] if bits else [""] * 4
        seconds = f"{statistics.median(row['seconds'] for row in runs):.1f}"
        found.append((mean, [entry, *figures, seconds, str(len(runs)), str(len(runs) - len(bits))]))
    heading = ["entry", "bits per byte", "± over seeds", "min", "max", "seconds", "n", "diverged"]
    return measuring.markdown(heading, [cells for _, cells in sorted(found)])


def kernels(
    contexts: tuple[int, ...] = (256, 1024, 2048),
    dtype: str = "fp32",
    turns: int = 10,
    threads: int = available_cores(),
) -> None:
    """Time and memory of Gaussian attention with the fused kernel and without, forward and backward.

    One layer of GPT-2 124M, one sequence. "fused": the model's form without dropout; "blocks": its form with dropout
    (256 queries at a time, recomputed in the backward pass); "square": all weights in one matrix. The time is that of
    the fastest turn; the memory is the increase of the resident size, each form in its own process (Linux). Goals: the
    memory of the fused form grows linearly with the context, and it is not slower than the others.
    """
    measuring.print_machine(threads, dtype)
    torch.manual_seed(1)
    print(f"{HEADS} heads of {HEAD_SIZE} channels, one sequence, forward and backward; ratios to the fused form")
    for name in WEIGHTS:
        before: dict[str, float] = {}
        for context in contexts:
            heads = heads_of(context)
            works = {form: partial(forward_and_backward, build(name), heads, dtype) for form, build in FORMS.items()}
            times = {form: min(each[1:]) for form, each in measuring.in_turns(works, turns + 1).items()}
            sizes = context, dtype, threads
            memory = {form: measuring.in_new_process(peak_megabytes, name, form, *sizes) for form in FORMS}
            for form in FORMS:
                speed = f"{times[form] * 1e3:9.1f} ms  x {times[form] / times['fused']:5.2f}"
                room = f"{memory[form]:9.1f} MB  x {memory[form] / memory['fused']:5.2f}"
                growth = f"  x {memory[form] / before[form]:.2f} the context before" if form in before else ""
                print(f"{name:<20} {context:>6,} {form:<7} {speed} {room}{growth}", flush=True)
            before = memory


def forward_and_backward(attend: Callable[..., Tensor], heads: list[Tensor], dtype: str) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        out = attend(*heads)
    out.backward(torch.ones_like(out))
    for part in heads:
        part.grad = None


def heads_of(context: int) -> list[Tensor]:
    return [(INITIAL_STD * torch.randn(1, HEADS, context, HEAD_SIZE)).requires_grad_() for _ in range(3)]


def peak_megabytes(name: str, form: str, context: int, dtype: str, threads: int) -> float:
    """Increase of a new process's memory above that of queries, keys and values."""
    torch.set_num_threads(threads)
    forward_and_backward(FORMS[form](name), heads_of(64), dtype)
    heads = heads_of(context)
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    forward_and_backward(FORMS[form](name), heads, dtype)
    return (resident_bytes("VmHWM") - before) / 1e6


def monitor(threads: int = 0, repeats: int = 15) -> None:
    """The time of an attention's statistics against that of a training step, in turns.

    The statistics are of one sequence, whatever the batch, so their share of a step falls with the batch size, and
    their share of a run with `log_every`. Times are medians of the processor time of this process.
    """
    measuring.print_machine(more="the recipe python with another attention")
    for entry in MONITORED:
        for rows in (4, 32):
            config = load_recipe("python", attention=entry, batch_tokens=256 * rows, batch_size=4, threads=threads)
            runtime, _ = resolve(config, detect(), Ranks())
            torch.set_num_threads(runtime.threads)
            step = Ours(config.model, config.optim, runtime)
            monitored = AttentionMonitor(model=step.model, runtime=runtime, is_main_process=True)
            works = {"step": step, "statistics": partial(monitored.measure, step.inputs, 1)}
            found = measuring.in_turns(works, repeats, time.process_time)
            of_step, own = (statistics.median(found[name]) for name in works)
            share, log_every = own / of_step, config.train.log_every
            line = f"{entry:<20} {rows:>3} sequences: step {1e3 * of_step:>7.1f} ms, statistics {1e3 * own:>5.1f} ms"
            print(f"{line}; of a step {share:>5.1%} with log_every = 1, {share / log_every:.2%} with {log_every}")


if __name__ == "__main__":
    measuring.run_script(__doc__, {"variants": variants, "kernels": kernels, "monitor": monitor})
