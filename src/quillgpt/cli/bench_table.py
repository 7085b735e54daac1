"""The tables and the JSON of `quill bench`: a row for each figure, a column for each side, ratios to the first side."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from quillgpt.lab.bench.loading import Loading
    from quillgpt.lab.bench.measure import Peak, Profile, Spread
    from quillgpt.lab.bench.sampling import Sampling
    from quillgpt.lab.bench.time_to_loss import TimeToLoss
    from quillgpt.lab.bench.training import Training

    Sides = Sequence[Training] | Sequence[Sampling] | Sequence[Loading] | Sequence[TimeToLoss]

PIPE_COLUMNS = 120  # a pipe has no width of its own
BOLD = {"tokens/s", "prefill, tokens/s", "decode, tokens/s", "loader, batches/s", "encode, MB/s", "training + compile"}
RATIO = "  × the first"  # a row that is left out where there is only one side
QUARTILES = "a figure is the median of the windows, followed by their quartiles; a ratio is taken window by window"
PREFILL_FORMULA = (
    "prefill: 2 (N - V C) P + 2 V C + 4 L C P P operations for P tokens, the head once; decode: includes sampling"
)
HOW_TO_OPEN = "open it in https://ui.perfetto.dev or in Chrome at chrome://tracing"

Cell = tuple[str, str]
"""a figure, and the dim text next to it: what it is of, or its quartiles"""
Column = list[tuple[str, Cell]]
"""the cells of one side, each with the label of its row; the labels of all sides are the same"""


def print_json(benchmark: str, sides: "Sides", speeds: Sequence[str], more: Mapping[str, Any]) -> None:
    """Print all measurements as strict JSON, with the ratios of these speeds to those of the first side."""
    from quillgpt.lab.bench.measure import machine, ratios

    against: dict[str, list[Spread | None]] = {}
    for name in speeds:
        first, *others = [getattr(side, name) for side in sides]
        against[name] = [ratios(other, first) if other and first else None for other in others]
    result = {"benchmark": benchmark, "machine": machine(), "sides": sides, "ratios": against, **more}
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False, default=_as_json)
    sys.stdout.write(text + "\n")


def _as_json(value: object) -> object:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)  # pyrefly: ignore


def print_training(sides: "Sequence[Training]") -> None:
    """Print the table of `quill bench train`."""
    from quillgpt.lab.bench.training import FORMULA

    _print("quill bench train", sides, _training_column, [QUARTILES, FORMULA, *_device_notes(sides)])


def _training_column(side: "Training", first: "Training") -> Column:
    runtime, step = side.runtime, sum(side.part_seconds.values())
    micro_batches = f"{-(-runtime.global_batch_size // runtime.micro_batch_size)} × {runtime.micro_batch_size}"
    return [
        ("tokens/s", cell(side.tokens_per_second, ",.0f")),
        *_ratio(side.tokens_per_second, first.tokens_per_second),
        *_mfu(side.peak, side.mfu_measured, side.mfu_datasheet),
        ("step", cell(side.step_seconds, ",.1f", 1e3, " ms")),
        *[(f"  {part}", (f"{1e3 * own:,.2f} ms", f"{own / step:.1%}")) for part, own in side.part_seconds.items()],
        ("computed in", (runtime.dtype, _device(runtime.device, runtime.threads))),
        ("compile", _compile(side.compile_seconds, "with one step")),
        ("batch, tokens", (f"{side.tokens_per_step:,}", micro_batches)),
        ("parameters", (f"{side.parameters:,}", f"{side.flops_per_token / 1e6:,.1f} MFLOP/token")),
    ]


def print_sampling(sides: "Sequence[Sampling]") -> None:
    """Print the table of `quill bench sample`."""
    _print("quill bench sample", sides, _sampling_column, [QUARTILES, PREFILL_FORMULA, *_device_notes(sides)])


def _sampling_column(side: "Sampling", first: "Sampling") -> Column:
    dtype = side.dtype if side.quantize == "none" else f"{side.quantize}, {side.dtype}"
    reads = f"{side.weight_bytes_per_second / 1e9:,.2f} GB/s", f"{side.weight_bytes / 1e6:,.1f} MB of weights a step"
    lengths = f"{side.prompt_tokens:,} tokens read, {side.new_tokens:,} generated"
    return [
        ("prefill, tokens/s", cell(side.prefill_tokens_per_second, ",.0f")),
        *_ratio(side.prefill_tokens_per_second, first.prefill_tokens_per_second),
        *_mfu(side.peak, side.prefill_mfu_measured, side.prefill_mfu_datasheet),
        ("decode, tokens/s", cell(side.decode_tokens_per_second, ",.1f")),
        *_ratio(side.decode_tokens_per_second, first.decode_tokens_per_second),
        ("  reads", reads),
        ("computed in", (dtype, _device(side.device, side.threads))),
        ("compile", _compile(side.compile_seconds, "")),
        ("texts at once", (str(side.samples), lengths)),
        ("parameters", (f"{side.parameters:,}", "")),
    ]


def print_loading(sides: "Sequence[Loading]") -> None:
    """Print the table of `quill bench data`."""
    notes = [QUARTILES, "the loader's MB are of stored tokens, the encoder's of UTF-8 text, in one process"]
    notes += [f"{side.name}: not encoded: {side.not_encoded_because}" for side in sides if side.not_encoded_because]
    _print("quill bench data", sides, _loading_column, notes)


def _loading_column(side: "Loading", first: "Loading") -> Column:
    encode_bytes, encode_tokens = side.encode_bytes_per_second, side.encode_tokens_per_second
    stored = f"{side.rows:,} × {side.context_length:,}, {side.token_bytes} bytes a token"
    return [
        ("loader, batches/s", cell(side.batches_per_second, ",.0f")),
        ("  tokens/s", cell(side.tokens_per_second, ",.0f")),
        *_ratio(side.tokens_per_second, first.tokens_per_second),
        ("  MB/s", cell(side.bytes_per_second, ",.1f", 1e-6)),
        ("  batch, tokens", (f"{side.rows * side.context_length:,}", stored)),
        ("encode, MB/s", cell(encode_bytes, ",.2f", 1e-6) if encode_bytes else ("n/a", "")),
        ("  tokens/s", cell(encode_tokens, ",.0f") if encode_tokens else ("n/a", "")),
        ("  tokenizer", (side.tokenizer, "")),
    ]


def print_time_to_loss(sides: "Sequence[TimeToLoss]", loss: float, text: str) -> None:
    """Print the table of `quill bench time-to-loss`: a row for each run, then each side's median and the ratio."""
    table = _table("", "seed", "loss", "bits/byte", "steps", "tokens", "training", "compile", "evaluation")
    for run in [run for side in sides for run in side.runs]:
        losses = ["nan" if value is None else f"{value:.4f}" for value in (run.loss, run.bits_per_byte)]
        seconds = [f"{x:,.1f} s" for x in (run.training_seconds, run.compile_seconds, run.evaluation_seconds)]
        style = "" if run.reached else "yellow"
        table.add_row(run.name, str(run.seed), *losses, f"{run.steps:,}", f"{run.tokens:,}", *seconds, style=style)
    are_compared = all(side.seconds for side in sides)

    def column(side: "TimeToLoss", first: "TimeToLoss") -> Column:
        median = cell(side.seconds, ",.1f", 1, " s") if side.seconds else ("not reached", "")
        ratio = _ratio(side.seconds, first.seconds, ".2f") if are_compared and side.seconds and first.seconds else []
        return [("training + compile", median), *ratio]

    counts = dict.fromkeys(f"{run.val_tokens:,}" for side in sides for run in side.runs if run.val_tokens)
    source = text or "the recipe's own validation split"
    notes = [f"validated on {' and '.join(counts) or 'no'} tokens: {source}; over seeds: median, quartiles"]
    _print(f"quill bench time-to-loss  {loss:g} nats per token", sides, column, notes, first=table)


def cell(spread: "Spread", form: str, scale: float = 1.0, unit: str = "") -> Cell:
    """The median with its unit, and the quartiles."""
    low, high = (format(value * scale, form) for value in (spread.first_quartile, spread.third_quartile))
    return format(spread.median * scale, form) + unit, f"{low} to {high}" if len(spread.values) > 1 else ""


def _ratio(own: "Spread", first: "Spread", form: str = ".3f") -> Column:
    from quillgpt.lab.bench.measure import ratios

    return [(RATIO, ("1", "") if own is first else cell(ratios(own, first), form))]


def _mfu(peak: "Peak", measured: float, datasheet: float | None) -> Column:
    datasheet_cell = ("n/a", "")
    if datasheet is not None:
        datasheet_cell = f"{datasheet:.1%}", f"of {(peak.datasheet_flops or 0) / 1e12:,.0f} TFLOP/s"
    measured_cell = f"{measured:.1%}", f"of {peak.measured_flops / 1e9:,.0f} GFLOP/s"
    return [("  MFU, measured peak", measured_cell), ("  MFU, datasheet", datasheet_cell)]


def _device(device: str, threads: int) -> str:
    return f"{device}, {threads} thread" + ("s" if threads > 1 else "") if device == "cpu" else device


def _compile(seconds: float | None, note: str) -> Cell:
    return ("off", "") if seconds is None else (f"{seconds:,.1f} s", note)


def _device_notes(sides: "Sequence[Training] | Sequence[Sampling]") -> list[str]:
    sizes = ", ".join(dict.fromkeys(f"{side.peak.square:,} ({side.peak.dtype})" for side in sides))
    together = ", all sides together" if len(sides) > 1 else ""
    memory = max(side.memory_bytes for side in sides) / 1e9
    return [
        f"measured peak: the fastest of a few square matrix products, same dtype and threads, here of size {sizes}",
        f"memory: {memory:,.2f} GB at most, of the process{together}",
    ]


def _print(
    title: str, sides: "Sides", column: Callable[[Any, Any], Column], notes: Sequence[str], first: Table | None = None
) -> None:
    """Print the title, the machine, another table first if there is one, a column per side, profiles and notes."""
    from quillgpt.lab.bench.measure import machine

    console = Console(width=shutil.get_terminal_size(fallback=(PIPE_COLUMNS, 50)).columns, highlight=False)
    found = machine()
    cards = "".join(f", {card}" for card in found["cards"])
    console.print(title, style="bold")
    console.print(f"{found['processor']}, {found['cores']} cores{cards}; torch {found['torch']}\n", style="dim")
    if first is not None:
        console.print(first)
        console.print()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for side in sides:
        table.add_column(Text(side.name), justify="right", no_wrap=True, overflow="ellipsis", max_width=24)
        table.add_column("", style="dim", overflow="fold")
    for (label, own), *others in zip(*(column(side, sides[0]) for side in sides), strict=True):
        cells, style = [own, *(other for _, other in others)], "bold" if label in BOLD else ""
        if others or label != RATIO:
            table.add_row(Text(label), *[text for x, detail in cells for text in (Text(x, style), Text(detail))])
    console.print(table)
    console.print()
    for side in sides:
        if profile := getattr(side, "profile", None):
            _print_profile(side.name, profile, console)
    for note in notes:
        console.print(Text(note, style="dim"))


def _print_profile(name: str, profile: "Profile", console: Console) -> None:
    table = _table(f"heaviest operators of {name}", "calls", "ms a step", "share")
    for one in profile.operators:
        table.add_row(one.name[:60], f"{one.calls:,.0f}", f"{1e3 * one.seconds:,.2f}", f"{one.share:.1%}")
    console.print(table)
    console.print(f"trace: {profile.trace}; {HOW_TO_OPEN}\n", style="dim", soft_wrap=True)


def _table(first: str, *headings: str) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(Text(first))
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
