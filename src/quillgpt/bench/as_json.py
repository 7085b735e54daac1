"""Measurements in plain values, for `quill bench --json`; what is not known or no number is null."""

import dataclasses
import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from quillgpt.bench.loading import BATCHES, BYTES, TOKENS, Loading
from quillgpt.bench.machine import Peak
from quillgpt.bench.profiling import Profile
from quillgpt.bench.sampling import DECODE, NEW, PREFILL, PROMPT, Sampling
from quillgpt.bench.time_to_loss import Reached, spread_of
from quillgpt.bench.training import FORMULA, Training
from quillgpt.bench.windows import Spread, Window, rates, ratios
from quillgpt.evaluate.results import code_fingerprint
from quillgpt.hardware import available_cores, cpu_name


def machine() -> dict[str, Any]:
    """Where it was measured."""
    cards = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "processor": cpu_name(),
        "cores": available_cores(),
        "cards": cards,
        "torch": torch.__version__,
        "quillgpt": version("quillgpt"),
        "code": code_fingerprint(),
    }


def training_json(sides: Sequence[Training]) -> dict[str, Any]:
    """`quill bench train`."""
    speeds = [rates(side.windows, "tokens") for side in sides]
    return _result(
        "train",
        [
            {
                "name": side.name,
                "choices": dataclasses.asdict(side.choices),
                "parameters": side.parameters,
                "flops_per_token": side.flops_per_token,
                "tokens_per_step": side.tokens_per_step,
                "tokens_per_second": _spread(speed),
                "step_seconds": _spread(step_seconds(side.windows)),
                "part_seconds": side.parts,
                "mfu_measured": speed.median * side.flops_per_token / side.peak.measured,
                "mfu_datasheet": _share(speed.median * side.flops_per_token, side.peak.datasheet),
                "peak": _peak(side.peak),
                "memory_bytes": side.memory_bytes,
                "compile_seconds": side.compile_seconds if side.choices.compile else None,
                "profile": _profile(side.profile),
                "windows": _windows(side.windows),
            }
            for side, speed in zip(sides, speeds, strict=True)
        ],
        {"tokens_per_second": speeds},
    ) | {"formula": FORMULA}


def sampling_json(sides: Sequence[Sampling]) -> dict[str, Any]:
    """`quill bench sample`."""
    prefill = [rates(side.windows, PROMPT, PREFILL) for side in sides]
    decode = [rates(side.windows, NEW, DECODE) for side in sides]
    return _result(
        "sample",
        [
            {
                "name": side.name,
                "device": side.device,
                "dtype": side.dtype,
                "quantize": side.quantize,
                "compile_seconds": side.compile_seconds,
                "threads": side.threads,
                "parameters": side.parameters,
                "samples": side.samples,
                "prompt_tokens": side.prompt_tokens,
                "new_tokens": side.new_tokens,
                "prefill_tokens_per_second": _spread(reading),
                "prefill_mfu_measured": prefill_flops_per_second(side) / side.peak.measured,
                "prefill_mfu_datasheet": _share(prefill_flops_per_second(side), side.peak.datasheet),
                "decode_tokens_per_second": _spread(writing),
                "weight_bytes": side.weight_bytes,
                "weight_bytes_per_second": writing.median / side.samples * side.weight_bytes,
                "peak": _peak(side.peak),
                "memory_bytes": side.memory_bytes,
                "profile": _profile(side.profile),
                "windows": _windows(side.windows),
            }
            for side, reading, writing in zip(sides, prefill, decode, strict=True)
        ],
        {"prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode},
    )


def loading_json(sides: Sequence[Loading]) -> dict[str, Any]:
    """`quill bench data`."""
    return _result(
        "data",
        [
            {
                "name": side.name,
                "tokenizer": side.tokenizer,
                "rows": side.rows,
                "context_length": side.context_length,
                "token_bytes": side.token_bytes,
                "batches_per_second": _spread(rates(side.loading, BATCHES)),
                "tokens_per_second": _spread(rates(side.loading, TOKENS)),
                "bytes_per_second": _spread(rates(side.loading, BYTES)),
                "encode_bytes_per_second": _spread(rates(side.encoding, BYTES)) if side.encoding else None,
                "encode_tokens_per_second": _spread(rates(side.encoding, TOKENS)) if side.encoding else None,
                "not_encoded_because": side.why or None,
                "windows": _windows(side.loading),
            }
            for side in sides
        ],
        {"tokens_per_second": [rates(side.loading, TOKENS) for side in sides]},
    )


def reached_json(sides: Sequence[Sequence[Reached]], loss: float, text: str) -> dict[str, Any]:
    """`quill bench time-to-loss`."""
    seconds = [spread_of(runs, lambda run: run.seconds) for runs in sides]
    found: list[dict[str, Any]] = []
    for runs, spread in zip(sides, seconds, strict=True):
        entries = [{**dataclasses.asdict(run), "seconds": run.seconds} for run in runs]
        for entry in entries:
            entry |= {name: entry[name] if math.isfinite(entry[name]) else None for name in ("loss", "bits_per_byte")}
        found.append(
            {
                "name": runs[0].name,
                "reached": all(run.reached for run in runs),
                "seconds": _spread(spread) if spread else None,
                "runs": entries,
            }
        )
    ratio = [
        _spread(ratios(other, seconds[0])) if seconds[0] is not None and other is not None else None
        for other in seconds[1:]
    ]
    asked = {"benchmark": "time-to-loss", "machine": machine(), "loss": loss, "text": text or None}
    return asked | {"sides": found, "ratios": {"seconds": ratio}}


def step_seconds(windows: Sequence[Window]) -> Spread:
    """Seconds of a step in each window."""
    return Spread.of([window.seconds / window.repetitions for window in windows])


def prefill_flops_per_second(side: Sampling) -> float:
    """Arithmetic of the prefill at its median speed."""
    return rates(side.windows, PROMPT, PREFILL).median / side.prompt_tokens * side.prefill_flops


def _result(name: str, sides: list[dict[str, Any]], speeds: dict[str, list[Spread]]) -> dict[str, Any]:
    """What all have: the sides, and of each speed how many times that of the first the others have."""
    against = {unit: [_spread(ratios(other, first)) for other in others] for unit, (first, *others) in speeds.items()}
    return {"benchmark": name, "machine": machine(), "sides": sides, "ratios": against}


def _spread(spread: Spread) -> dict[str, Any]:
    return {
        "median": spread.median,
        "first_quartile": spread.low,
        "third_quartile": spread.high,
        "values": list(spread.values),
    }


def _peak(peak: Peak) -> dict[str, Any]:
    return {
        "measured_flops": peak.measured,
        "square": peak.square,
        "dtype": peak.dtype,
        "threads": peak.threads,
        "datasheet_flops": peak.datasheet,
    }


def _share(flops: float, peak: float | None) -> float | None:
    return flops / peak if peak else None


def _windows(windows: Sequence[Window]) -> list[dict[str, Any]]:
    return [
        {
            "repetitions": window.repetitions,
            "seconds": window.seconds,
            "amounts": dict(window.amounts),
            "parts": dict(window.parts),
        }
        for window in windows
    ]


def _profile(profile: Profile | None) -> dict[str, Any] | None:
    if profile is None:
        return None
    return {
        "trace": str(profile.trace),
        "operators": [dataclasses.asdict(operator) for operator in profile.operators],
    }
