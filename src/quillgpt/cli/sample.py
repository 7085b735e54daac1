"""`quill sample`: generate text with a trained model, a published one, or random weights.

The text goes to standard output and messages to standard error, so that `quill sample > story.txt` has the text only.
On a terminal the prompt is dim, a single sample appears token by token, and control characters are escaped.
"""

import dataclasses
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import tyro

from quillgpt.cli.arguments import parse
from quillgpt.cli.console import notice
from quillgpt.errors import ConfigError, DataError
from quillgpt.recipes.aliases import VALUES
from quillgpt.sample.settings import LIMITS, MAX_PROMPT_BYTES, SamplingSettings, check_prompt

if TYPE_CHECKING:
    import torch

    from quillgpt.model.gpt import GPT
    from quillgpt.tokenizer import Tokenizer

FILE_PREFIX = "FILE:"
NAMES = {"start": "prompt"}
"""nanoGPT's names; `out_dir` and `init_from` are flags too"""
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Generate text with a trained model."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[RUN]")] = ""
    """run, checkpoint, gpt2 ... gpt2-xl, quill-python, Hugging Face directory or ckpt.pt; default: the newest run under
    runs/, or if there is none quill-python, the small model in the package"""
    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])] = ""
    """text to continue; FILE:PATH reads a file, - standard input; default: a new document"""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = SamplingSettings.max_new_tokens
    """maximum number of new tokens"""
    temperature: float = SamplingSettings.temperature
    """0: greedy; above 1: more surprising"""
    top_k: int = SamplingSettings.top_k
    """sample from the k most likely tokens; 0: from all"""
    top_p: float = SamplingSettings.top_p
    """sample from the most likely tokens that together have this probability"""
    num_samples: int = SamplingSettings.num_samples
    """number of samples, each with its own random numbers"""
    seed: int = SamplingSettings.seed
    """same seed, same text"""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = SamplingSettings.stop
    """end before this text"""
    untrained: str = ""
    """random weights of this recipe instead of a run"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: str = "auto"
    """auto, fp32, bf16 or fp16; auto is fp32 on the CPU, where bf16 is faster"""
    quantize: str = "none"
    """weights in fewer bits, on the CPU: none, int8 or int4, each faster and less exact than the previous one"""
    compile: bool = False
    """compile the decoding step first: worth it for long texts"""
    out_dir: str = ""
    """nanoGPT's name for the run"""
    init_from: str = "resume"
    """nanoGPT's name: resume (the run), or a model's name"""


def main(arguments: list[str]) -> int:
    """Run `quill sample`; all flags are checked before a model is loaded."""
    options, _ = parse(SampleOptions, arguments, prog="quill sample", translate=_translate)
    settings = SamplingSettings(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(SamplingSettings)}
    )
    source = _source(options)
    prompt = read_prompt(options.prompt, sys.stdin)
    check_prompt(prompt)
    from quillgpt.sample.optimize import optimize_for_inference  # imports torch, so not before the checks above

    device, dtype = _device_and_dtype(options)
    model, tokenizer = _untrained(options) if options.untrained else _trained(source)
    if options.compile:
        notice("compiling the decoding step; the first tokens take longer")
    # rebinding the name frees the original weights
    model = optimize_for_inference(model.to(device), dtype=dtype, quantize=options.quantize, compile=options.compile)
    _write_samples(model, tokenizer, prompt, settings)
    return 0


def _translate(name: str, value: Any) -> dict[str, Any]:
    return dict(VALUES.get((name, str(value)), {NAMES.get(name, name): value}))


def _source(options: SampleOptions) -> str:
    """The run, checkpoint or model that is named; empty for the newest run."""
    names = {
        "RUN": options.run,
        "--out-dir": options.out_dir,
        "--init-from": "" if options.init_from == "resume" else options.init_from,
        "--untrained": options.untrained,
    }
    given = [f"{name} {value}" for name, value in names.items() if value]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} name different models; use one of them")
    return options.run or options.out_dir or names["--init-from"]


def read_prompt(argument: str, standard_input: Any) -> str:
    """The prompt: the argument itself, the file named after `FILE:`, or standard input for `-`."""
    if argument == "-":
        if standard_input is None:
            raise ConfigError("--prompt -: there is no standard input")
        return _read_text(standard_input.buffer, "--prompt - (standard input)")
    if not argument.startswith(FILE_PREFIX):
        return argument
    what = f"--prompt {argument!r}"  # repr: a name may have a line break
    try:
        with Path(argument.removeprefix(FILE_PREFIX)).open("rb") as file:
            return _read_text(file, what)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(f"{what}: cannot be read: {getattr(error, 'strerror', error)}") from None


def _read_text(file: BinaryIO, what: str) -> str:
    content = file.read(MAX_PROMPT_BYTES + 1)
    if len(content) > MAX_PROMPT_BYTES:
        raise ConfigError(f"{what} is too long (must be {LIMITS['prompt']})")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{what} is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}") from None


def _device_and_dtype(options: SampleOptions) -> "tuple[torch.device, torch.dtype]":
    """Device and dtype; on the CPU fp32 by default, so that the text is the same on every CPU."""
    import torch

    from quillgpt.distributed import Ranks
    from quillgpt.errors import pick
    from quillgpt.model.precision import DTYPES
    from quillgpt.runtime import choose_device, choose_dtype, detect
    from quillgpt.sample.optimize import check_request

    pick({"auto": None} | DTYPES, options.dtype, "dtype")
    machine = detect()
    device = torch.device(choose_device(options.device, machine, Ranks())[0])
    requested = "fp32" if options.dtype == "auto" and device.type == "cpu" else options.dtype
    dtype, reason = choose_dtype(requested, device.type, machine)
    if dtype != requested != "auto":
        notice(f"dtype {dtype}: {reason}")
    check_request(options.quantize, options.compile, device.type)
    return device, DTYPES[dtype]


def _trained(source: str) -> "tuple[GPT, Tokenizer]":
    from quillgpt.checkpoint import BUNDLED_MODEL, load_model
    from quillgpt.run_dir import RUNS, newest_run, runs_in

    if source:
        return load_model(source)
    if not runs_in(RUNS):
        notice(f"no run in {RUNS}/ yet: using {BUNDLED_MODEL}, the small model in the package, trained on Python")
        return load_model(BUNDLED_MODEL)
    newest = newest_run(RUNS)
    notice(f"the newest run: {newest}")
    return load_model(newest)


def _untrained(options: SampleOptions) -> "tuple[GPT, Tokenizer]":
    """Random weights in a recipe's shape; bytes replace a tokenizer that would have to be trained first."""
    import torch

    from quillgpt.model.gpt import GPT
    from quillgpt.recipes import recipe_config
    from quillgpt.tokenizer import TOKENIZERS, load_tokenizer

    config = recipe_config(options.untrained)
    name = config.data.tokenizer
    learns = name in TOKENIZERS and TOKENIZERS[name].learns
    tokenizer = load_tokenizer("byte" if learns else name)
    instead = f" (the recipe's {name} is trained on its data)" if learns else ""
    notice(f"random weights in the shape of {options.untrained}; tokenizer {tokenizer.name}{instead}")
    torch.manual_seed(options.seed)
    return GPT(dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)), tokenizer


def _write_samples(model: "GPT", tokenizer: "Tokenizer", prompt: str, settings: SamplingSettings) -> None:
    from quillgpt.sample.engine import prompt_tokens, samples, stream

    tokens = prompt_tokens(tokenizer, prompt)
    context_length = model.config.context_length
    if len(tokens) > context_length:
        notice(f"the prompt has {len(tokens):,} tokens; the model sees only its last {context_length:,}")
    if settings.num_samples == 1:
        _write_sample(prompt, stream(model, tokenizer, tokens, settings))
        return
    for number, text in enumerate(samples(model, tokenizer, tokens, settings), start=1):
        _write(f"--- sample {number} of {settings.num_samples} ---\n", is_dim=True)
        _write_sample(prompt, [text])


def _write_sample(prompt: str, pieces: Iterable[str]) -> None:
    _write(prompt, is_dim=True)
    try:
        for piece in pieces:
            _write(piece)
    finally:
        _write("\n")


def _write(text: str, *, is_dim: bool = False) -> None:
    """Write to standard output; on a terminal, with control characters escaped, and dim if requested."""
    if is_dim and sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text

        Console().print(Text(visible(text)), style="dim", end="", soft_wrap=True)
        return
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def visible(text: str) -> str:
    """The text with escapes for control characters, so that a model cannot move the cursor or recolour the terminal."""
    return text.translate(CONTROL)
