"""`quill encrypt-check RUN`: one attention head on encrypted numbers, and what the rest of the model lacks."""

import dataclasses
import json
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from quillgpt.cli.arguments import parse
from quillgpt.cli.sample import read_prompt, visible
from quillgpt.errors import CheckError, require

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
    from torch import Tensor

    from quillgpt.encryption.check import Outcome
    from quillgpt.encryption.survey import Survey
    from quillgpt.encryption.verdicts import Approximation
    from quillgpt.model.gpt import GPT
    from quillgpt.tokenizer import Tokenizer

TOLERANCE = 1e-4
"""Of the largest output. bf16, in which models run, rounds by up to 2^-9 = 2e-3, so such a difference does not show;
and the noise of encryption was at most 5e-6 in what was tried, so that a mistake stands far above it."""

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps in the sun. "
SURVEY_TOKENS = 256
PIPE_COLUMNS = 120  # a pipe has no width of its own


@dataclass(frozen=True, kw_only=True)
class EncryptCheckOptions:
    """Compute one attention head of a trained model on encrypted numbers and compare it with the clear result.

    The attention has to be a polynomial: gaussian-poly-N or pointwise-identity. Then: which parts of the whole model
    are none, and how many levels what replaces them takes. docs/encryption.md explains both.
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[RUN]")] = ""
    """run or checkpoint to use; nothing: the newest run under runs/"""
    layer: int = 0
    """block whose attention is checked, from 0"""
    head: int = 0
    """head of it, from 0"""
    length: int = 8
    """positions: so many of the prompt's first tokens"""
    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])] = ""
    """text whose activations are encrypted; FILE:PATH reads a file, - standard input; nothing: a sentence of ours"""
    tolerance: float = TOLERANCE
    """the difference that passes, as a part of the largest output"""
    survey: bool = False
    """only list the parts, of a model with any attention"""
    json: bool = False
    """print JSON instead of tables"""


def main(arguments: list[str]) -> int:
    """Check a head, print what it took, list the parts; a difference above the tolerance is a `CheckError`."""
    options, _ = parse(EncryptCheckOptions, arguments, prog="quill encrypt-check")
    require("tolerance", options.tolerance, 0.0 < options.tolerance < 1.0, "above 0 and below 1")
    require("length", options.length, options.length >= 1, "at least 1")

    from rich.console import Console

    from quillgpt.checkpoint import load_model
    from quillgpt.encryption.check import check_head
    from quillgpt.encryption.ckks import sealapi
    from quillgpt.encryption.survey import survey
    from quillgpt.run_dir import newest_run

    sealapi()  # refuses here, before a model is loaded
    prompt = read_prompt(options.prompt, sys.stdin)
    run = options.run or str(newest_run())
    model, tokenizer = load_model(run)
    tokens = text_tokens(model, tokenizer, prompt, options)
    outcome = None
    if not options.survey:
        with Console(stderr=True).status("computing on encrypted numbers"):
            outcome = check_head(model, tokens[: options.length], layer=options.layer, head=options.head)
    found = survey(model, tokens)
    if options.json:
        print(json.dumps(as_json(outcome, found), indent=2, ensure_ascii=False))
    else:
        console = Console(width=shutil.get_terminal_size(fallback=(PIPE_COLUMNS, 50)).columns, highlight=False)
        if outcome:
            text = tokenizer.decode(tokens[: options.length].tolist())
            print_outcome(console, outcome, options, run=run, text=text)
        print_survey(console, found)
    if outcome and not outcome.relative_difference <= options.tolerance:  # NaN is none either
        raise CheckError(
            f"{run}: the encrypted head differs from the clear one by {outcome.relative_difference:.1e} of its largest "
            f"output; --tolerance is {options.tolerance:.1e}"
        )
    return 0


def text_tokens(model: "GPT", tokenizer: "Tokenizer", prompt: str, options: EncryptCheckOptions) -> "Tensor":
    """The prompt's tokens (T,), as many as are used; the settings that depend on the model are checked here."""
    import torch

    from quillgpt.sample.generate import check_vocabulary, prompt_tokens

    config = model.config
    require("layer", options.layer, 0 <= options.layer < config.n_layer, f"0 to {config.n_layer - 1}")
    require("head", options.head, 0 <= options.head < config.n_head, f"0 to {config.n_head - 1}")
    most = config.context_length
    require("length", options.length, options.length <= most, f"at most context_length = {most}")
    check_vocabulary(model, tokenizer)
    tokens = prompt_tokens(tokenizer, prompt or TEXT * (1 + options.length))
    enough = f"at most the prompt's {len(tokens):,} tokens"
    require("length", options.length, options.survey or options.length <= len(tokens), enough)
    return torch.tensor(tokens[: min(most, max(options.length, SURVEY_TOKENS))])


def print_outcome(console: "Console", outcome: "Outcome", options: EncryptCheckOptions, *, run: str, text: str) -> None:
    """Print what was computed where, by which parameters, how long it took, and how exact it is."""
    layout, parameters, counts = outcome.layout, outcome.parameters, outcome.counts
    passes = outcome.relative_difference <= options.tolerance
    evaluated = "queries, keys and values, " if outcome.starts_after == "norm" else ""
    sent = {
        "norm": f"the normalised residual stream, {layout.positions} x {outcome.width}",
        "qk_norm": f"queries, keys and values, each {layout.positions} x {layout.head_size}, behind qk_norm",
    }[outcome.starts_after]
    ciphertexts = f"{outcome.inputs} ciphertext{'s' if outcome.inputs > 1 else ''}"
    primes = f"{parameters.prime_bits[0]} + {parameters.depth} x {parameters.scale_bits} + {parameters.prime_bits[-1]}"
    rows = [
        ("model", f"{run}: head {options.head} of layer {options.layer}, {outcome.attention}"),
        ("text", f"{layout.positions} tokens: {visible(text)!r}"),
        ("client encrypts", f"{sent}: {size(outcome.input_bytes)} in {ciphertexts}"),
        ("server computes", f"{evaluated}their weights, causal mask, mixed values"),
        (
            "client decrypts",
            f"the head's output, {layout.positions} x {layout.head_size}: {size(outcome.output_bytes)}",
        ),
        ("", ""),
        ("parameters", f"CKKS, ring of {parameters.ring:,}, modulus of {parameters.modulus_bits} bits ({primes})"),
        ("security", f"{parameters.security_bits} bits, as SEAL checks it"),
        ("depth", f"{outcome.depth} levels, counted on the ciphertexts"),
        ("products", f"{counts.products} of ciphertexts, {counts.plain_products} with plaintexts"),
        ("rotations", f"{counts.rotations}, and {counts.rescalings} rescalings"),
        ("", ""),
        ("keys", f"{outcome.keys_seconds:.3f} s, {size(outcome.key_bytes)} for the server"),
        ("encryption", f"{outcome.encryption_seconds:.3f} s"),
        ("evaluation", f"{outcome.evaluation_seconds:.3f} s"),
        ("decryption", f"{outcome.decryption_seconds:.3f} s"),
        ("", ""),
        ("difference", f"{outcome.difference:.1e} at most, where the output reaches {outcome.largest_output:.3g}"),
    ]
    table = _table("one head, encrypted", "")
    for name, value in rows:
        table.add_row(name, _text(value))
    verdict = f"{outcome.relative_difference:.1e} of it, {'within' if passes else 'above'} {options.tolerance:.0e}"
    table.add_row("", _text(verdict, style="bold green" if passes else "bold red"))
    console.print(table)
    console.print()


def print_survey(console: "Console", found: "Survey") -> None:
    """Print what is no polynomial and what replaces it, what is, what the client does, and how deep all of it is."""
    from quillgpt.encryption.ckks import LARGEST_RING, SCALE_BITS, SECURITY_BITS

    limit = f"ring of {LARGEST_RING:,}, {SECURITY_BITS}-bit security, {SCALE_BITS[0]} bits a level"
    table = _table("not polynomials", "times", "levels", "replaced by a polynomial")
    for name in found.not_polynomial:
        parts = [part for part in found.parts if part.name == name]
        lines = [
            line
            for alternatives in zip(*[part.approximations for part in parts], strict=True)
            for line in replacement(alternatives)
        ]
        table.add_row(_text(name, style="yellow"), str(len(parts)), _span([part.depth for part in parts]), lines[0])
        for line in lines[1:]:
            table.add_row("", "", "", line)
    _add_heading(table, "polynomials")
    for name, count in Counter(part.name for part in found.parts if not part.approximations).items():
        levels = next(part.depth for part in found.parts if part.name == name)
        table.add_row(name, str(count), str(levels), "" if levels else _text("in the matrices before it", style="dim"))
    _add_heading(table, "in all")
    table.add_row("a layer", str(len(found.layers)), _span(found.layer_depths))
    table.add_row("the model", "1", str(found.depth))
    table.add_row("CKKS without bootstrapping", "", str(found.levels), _text(limit, style="dim"))
    console.print(table)
    console.print()
    for line in (f"left to the client: {', '.join(found.client)}", reach(found)):
        console.print(_text(line), soft_wrap=True)


def replacement(alternatives: Sequence["Approximation"]) -> list[str]:
    """How a function is replaced in all its places: the degrees, the interval of the highest, and the depth."""
    from quillgpt.encryption.approximate import LARGEST_DEGREE

    worst = max(alternatives, key=lambda one: one.degree)
    degrees = _span([min(one.degree, LARGEST_DEGREE) for one in alternatives])
    more = " and more" if worst.degree > LARGEST_DEGREE else ""
    levels = f"{_span([one.depth for one in alternatives])} levels"
    if worst.iteration_depth:
        levels += f"; by iteration {_span([one.iteration_depth for one in alternatives])}"
    return [f"{worst.function}: degree {degrees}{more}, at most on {worst.low:.3g} to {worst.high:.3g}", levels]


def reach(found: "Survey") -> str:
    """How far the levels last without bootstrapping."""
    within = found.within_levels
    if len(within) == len(found.parts):
        return "the whole model fits without bootstrapping"
    layer = (len(within) - 1) // len(found.layers[0])
    place = f"layer {layer}" if layer < len(found.layers) else "what follows the layers"
    where = f"{within[-1].name!r} in {place}" if within else "the input"
    return f"{found.levels} levels last up to {where}; what follows needs bootstrapping"


def as_json(outcome: "Outcome | None", found: "Survey") -> dict[str, object]:
    """What the tables show."""
    survey = dataclasses.asdict(found) | {
        "layer_depths": found.layer_depths,
        "depth": found.depth,
        "not_polynomial": found.not_polynomial,
    }
    if outcome is None:
        return {"survey": survey}
    return {
        "head": dataclasses.asdict(outcome) | {"relative_difference": outcome.relative_difference},
        "survey": survey,
    }


def _span(numbers: Sequence[int]) -> str:
    """Numbers by their least and greatest."""
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def size(count: int) -> str:
    """A number of bytes."""
    return f"{count / 1e6:,.1f} MB"


def _table(heading: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(heading, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right" if column in ("times", "levels") else "left", overflow="fold")
    return table


def _add_heading(table: "Table", heading: str) -> None:
    table.add_row()
    table.add_row(_text(heading, style="bold"))


def _text(content: str, style: str = "") -> "Text":
    from rich.text import Text

    return Text(content, style=style)
