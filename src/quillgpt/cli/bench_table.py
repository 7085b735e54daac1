"""The tables of `quill bench`: a row for each number, a column for each side, and below them what they are."""

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quillgpt.bench.as_json import machine, prefill_flops_per_second, step_seconds
from quillgpt.bench.loading import BATCHES, BYTES, TOKENS, Loading
from quillgpt.bench.profiling import HOW_TO_OPEN, Profile
from quillgpt.bench.sampling import DECODE, NEW, PREFILL, PROMPT, Sampling
from quillgpt.bench.time_to_loss import Reached, spread_of
from quillgpt.bench.training import FORMULA, Training
from quillgpt.bench.windows import Spread, rates, ratios

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 120  # a pipe has no width of its own

Cell = tuple[str, str]
"""a number as it is printed, and beside it what it is of or how far it spreads"""
Row = tuple[str, list[Cell]]

MAIN = {"tokens/s", "prefill, tokens/s", "decode, tokens/s", "loader, batches/s", "encode, MB/s", "training + compile"}
SPREADS = "a number is the median of the windows, behind it their quartiles; a ratio is taken window by window"


def print_training(sides: Sequence[Training], console: "Console | None" = None) -> None:
    """Print `quill bench train`."""
    speeds = [rates(side.windows, "tokens") for side in sides]
    rows: list[Row] = [("tokens/s", [spread(speed, ",.0f") for speed in speeds])]
    rows += _ratio_rows(speeds)
    achieved = [speed.median * side.flops_per_token for side, speed in zip(sides, speeds, strict=True)]
    rows += _mfu_rows("  MFU", achieved, sides)
    rows.append(("step", [spread(step_seconds(side.windows), ",.1f", 1e3, " ms") for side in sides]))
    for part in sides[0].parts:
        rows.append((f"  {part}", [_part(side, part) for side in sides]))
    rows += [
        ("computed in", [(side.choices.dtype, _where(side.choices.device, side.choices.threads)) for side in sides]),
        ("compile", [_compile(side) for side in sides]),
        ("batch, tokens", [_batch(side) for side in sides]),
        (
            "parameters",
            [(f"{side.parameters:,}", f"{side.flops_per_token / 1e6:,.1f} MFLOP/token") for side in sides],
        ),
    ]
    notes = [SPREADS, FORMULA, _peak_note(sides), _memory_note([side.memory_bytes for side in sides])]
    _print("quill bench train", [side.name for side in sides], rows, notes, [side.profile for side in sides], console)


def print_sampling(sides: Sequence[Sampling], console: "Console | None" = None) -> None:
    """Print `quill bench sample`."""
    prefill = [rates(side.windows, PROMPT, PREFILL) for side in sides]
    decode = [rates(side.windows, NEW, DECODE) for side in sides]
    rows: list[Row] = [("prefill, tokens/s", [spread(speed, ",.0f") for speed in prefill]), *_ratio_rows(prefill)]
    rows += _mfu_rows("  MFU", [prefill_flops_per_second(side) for side in sides], sides)
    rows += [("decode, tokens/s", [spread(speed, ",.1f") for speed in decode]), *_ratio_rows(decode)]
    reads = [speed.median / side.samples * side.weight_bytes / 1e9 for side, speed in zip(sides, decode, strict=True)]
    sizes = [f"{side.weight_bytes / 1e6:,.1f} MB of weights a step" for side in sides]
    rows += [
        ("  reads", [(f"{rate:,.2f} GB/s", size) for rate, size in zip(reads, sizes, strict=True)]),
        ("computed in", [(_form(side), _where(side.device, side.threads)) for side in sides]),
        (
            "compile",
            [("off", "") if side.compile_seconds is None else (f"{side.compile_seconds:,.1f} s", "") for side in sides],
        ),
        ("texts at once", [(str(side.samples), _lengths(side)) for side in sides]),
        ("parameters", [(f"{side.parameters:,}", "") for side in sides]),
    ]
    formula = (
        "prefill: 2 (N - V C) P + 2 V C + 4 L C P P operations for P tokens, the head once; decode: choosing included"
    )
    notes = [SPREADS, formula, _peak_note(sides), _memory_note([side.memory_bytes for side in sides])]
    _print("quill bench sample", [side.name for side in sides], rows, notes, [side.profile for side in sides], console)


def print_loading(sides: Sequence[Loading], console: "Console | None" = None) -> None:
    """Print `quill bench data`."""
    tokens = [rates(side.loading, TOKENS) for side in sides]
    rows: list[Row] = [
        ("loader, batches/s", [spread(rates(side.loading, BATCHES), ",.0f") for side in sides]),
        ("  tokens/s", [spread(speed, ",.0f") for speed in tokens]),
        *_ratio_rows(tokens),
        ("  MB/s", [spread(rates(side.loading, BYTES), ",.1f", 1e-6) for side in sides]),
        ("  batch, tokens", [(f"{side.rows * side.context_length:,}", _stored(side)) for side in sides]),
        ("encode, MB/s", [_encoded(side, BYTES) for side in sides]),
        ("  tokens/s", [_encoded(side, TOKENS) for side in sides]),
        ("  tokenizer", [(side.tokenizer, "") for side in sides]),
    ]
    notes = [SPREADS, "the loader's MB are of stored tokens, the encoder's of UTF-8 text, in one process"]
    notes += [f"{side.name}: not encoded: {side.why}" for side in sides if side.why]
    _print("quill bench data", [side.name for side in sides], rows, notes, [], console)


def print_reached(sides: Sequence[Sequence[Reached]], loss: float, text: str, console: "Console | None" = None) -> None:
    """Print `quill bench time-to-loss`: a row for each run, then the medians of each side and their ratio."""
    console = console or _console()
    table = _table("", "seed", "loss", "bits/byte", "steps", "tokens", "training", "compile", "evaluation")
    for runs in sides:
        for run in runs:
            table.add_row(
                run.name,
                str(run.seed),
                f"{run.loss:.4f}",
                f"{run.bits_per_byte:.4f}",
                f"{run.steps:,}",
                f"{run.tokens:,}",
                *(f"{x:,.1f} s" for x in (run.training_seconds, run.compile_seconds, run.evaluation_seconds)),
                style="" if run.reached else "yellow",
            )
    judge = text or "the recipe's own held-out split"
    console.print(f"quill bench time-to-loss  {loss:g} nats per token", style="bold")
    console.print(f"{_machine()}\n", style="dim")
    console.print(table)
    console.print()
    medians = [spread_of(runs, lambda run: run.seconds) for runs in sides]
    rows: list[Row] = [
        ("training + compile", [spread(x, ",.1f", 1, " s") if x else ("not reached", "") for x in medians])
    ]
    if len(sides) > 1 and all(medians):
        reached = [one for one in medians if one is not None]
        rows.append(("  × the first", [("1", ""), *(spread(ratios(one, reached[0]), ".2f") for one in reached[1:])]))
    _print_rows([runs[0].name for runs in sides], rows, console)
    counts = dict.fromkeys(f"{run.held_out_tokens:,}" for runs in sides for run in runs if run.held_out_tokens)
    _print_notes(
        [f"judged by {' and '.join(counts) or 'no'} held-out tokens: {judge}; over seeds: median, quartiles"], console
    )


def spread(found: Spread, form: str, scale: float = 1.0, unit: str = "") -> Cell:
    """The median with its unit, and the quartiles."""
    low, high = (format(value * scale, form) for value in (found.low, found.high))
    return format(found.median * scale, form) + unit, f"{low} to {high}" if len(found.values) > 1 else ""


def _form(side: Sampling) -> str:
    return side.dtype if side.quantize == "none" else f"{side.quantize}, {side.dtype}"


def _ratio_rows(speeds: Sequence[Spread]) -> list[Row]:
    """How many times as fast as the first; no row where there is only one."""
    if len(speeds) < 2:
        return []
    return [("  × the first", [("1", ""), *(spread(ratios(other, speeds[0]), ".3f") for other in speeds[1:])])]


def _part(side: Training, part: str) -> Cell:
    whole = sum(side.parts.values())
    return f"{1e3 * side.parts[part]:,.2f} ms", f"{side.parts[part] / whole:.1%}"


def _mfu_rows(name: str, achieved: Sequence[float], sides: Sequence[Training] | Sequence[Sampling]) -> list[Row]:
    measured: list[Cell] = []
    stated: list[Cell] = []
    for flops, side in zip(achieved, sides, strict=True):
        peak = side.peak
        told = f"of {peak.measured / 1e9:,.0f} GFLOP/s"
        measured.append((f"{flops / peak.measured:.1%}", told))
        known = peak.datasheet
        stated.append((f"{flops / known:.1%}", f"of {known / 1e12:,.0f} TFLOP/s") if known else ("n/a", ""))
    return [(f"{name}, measured peak", measured), (f"{name}, datasheet", stated)]


def _where(device: str, threads: int) -> str:
    return f"{device}, {threads} thread" + ("s" if threads > 1 else "") if device == "cpu" else device


def _compile(side: Training) -> Cell:
    return (f"{side.compile_seconds:,.1f} s", "with one step") if side.choices.compile else ("off", "")


def _batch(side: Training) -> Cell:
    choices = side.choices
    micro = -(-choices.rows // choices.batch_size)
    return f"{side.tokens_per_step:,}", f"{micro} × {choices.batch_size}"


def _lengths(side: Sampling) -> str:
    return f"{side.prompt_tokens:,} tokens read, {side.new_tokens:,} written"


def _stored(side: Loading) -> str:
    return f"{side.rows:,} × {side.context_length:,}, {side.token_bytes} bytes a token"


def _encoded(side: Loading, unit: str) -> Cell:
    if not side.encoding:
        return "n/a", ""
    found = rates(side.encoding, unit)
    return spread(found, ",.2f", 1e-6) if unit == BYTES else spread(found, ",.0f")


def _peak_note(sides: Sequence[Training] | Sequence[Sampling]) -> str:
    sizes = ", ".join(dict.fromkeys(f"{side.peak.square:,} ({side.peak.dtype})" for side in sides))
    return f"measured peak: the fastest of a few square matrix products, same dtype and threads, here of size {sizes}"


def _memory_note(peaks: Sequence[int]) -> str:
    together = ", all sides together" if len(peaks) > 1 else ""
    return f"memory: {max(peaks) / 1e9:,.2f} GB at most, of the whole process{together}"


def _print(
    title: str,
    names: Sequence[str],
    rows: Sequence[Row],
    notes: Sequence[str],
    profiles: Sequence[Profile | None],
    console: "Console | None",
) -> None:
    console = console or _console()
    console.print(title, style="bold")
    console.print(f"{_machine()}\n", style="dim")
    _print_rows(names, rows, console)
    for name, profile in zip(names, profiles, strict=bool(profiles)):
        if profile is not None:
            _print_profile(name, profile, console)
    _print_notes(notes, console)


def _print_rows(names: Sequence[str], rows: Sequence[Row], console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(Text(name), justify="right", no_wrap=True, overflow="ellipsis", max_width=24)
        table.add_column("", style="dim", overflow="fold")
    for label, cells in rows:
        style = "bold" if label in MAIN else ""
        table.add_row(Text(label), *(Text(x, s) for value, detail in cells for x, s in ((value, style), (detail, ""))))
    console.print(table)
    console.print()


def _print_profile(name: str, profile: Profile, console: "Console") -> None:
    table = _table(f"heaviest operators of {name}", "calls", "ms a step", "share")
    for operator in profile.operators:
        table.add_row(
            operator.name[:60], f"{operator.calls:,.0f}", f"{1e3 * operator.seconds:,.2f}", f"{operator.share:.1%}"
        )
    console.print(table)
    console.print(f"trace: {profile.trace}; {HOW_TO_OPEN}\n", style="dim", soft_wrap=True)


def _print_notes(notes: Sequence[str], console: "Console") -> None:
    from rich.text import Text

    for note in notes:
        console.print(Text(note, style="dim"))


def _table(first: str, *headings: str):
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(Text(first))
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _machine() -> str:
    found = machine()
    cards = ", ".join(found["cards"])
    return (
        f"{found['processor']}, {found['cores']} cores" + (f", {cards}" if cards else "") + f"; torch {found['torch']}"
    )


def _console() -> "Console":
    from rich.console import Console

    return Console(width=shutil.get_terminal_size(fallback=(PIPE_COLUMNS, 50)).columns, highlight=False)
