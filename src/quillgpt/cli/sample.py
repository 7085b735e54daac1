"""`quill sample`: write text with a trained model, OpenAI's or one of another project among them, or random weights.

The text goes to standard output and everything about it to standard error, so that `quill sample > story.txt` is clean.
On a terminal the prompt is dim, one sample appears token by token, and control characters are shown, not obeyed.
"""

import dataclasses
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import tyro

from quillgpt.cli.arguments import parse
from quillgpt.errors import ConfigError, DataError
from quillgpt.recipes.aliases import VALUES
from quillgpt.sample.settings import LIMITS, MAX_PROMPT_BYTES, SamplingSettings, check_prompt

if TYPE_CHECKING:
    import torch

    from quillgpt.model.gpt import GPT
    from quillgpt.tokenizer import Tokenizer

FILE_PREFIX = "FILE:"
NAMES = {"start": "prompt"}
"""nanoGPT's names; `out_dir` and `init_from` are flags of our own."""


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Write text with a trained model."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[RUN]")] = ""
    """run, checkpoint, gpt2 ... gpt2-xl, quill-python, Hugging Face directory or ckpt.pt; nothing: the newest run under
    runs/, or where there is none quill-python, the small model in the box"""
    prompt: Annotated[str, tyro.conf.arg(aliases=["-p"])] = ""
    """text to continue; FILE:PATH reads a file, - standard input; nothing: a new document"""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["-m"])] = SamplingSettings.max_new_tokens
    """tokens to write at most"""
    temperature: float = SamplingSettings.temperature
    """0: always the likeliest token; above 1: more surprising"""
    top_k: int = SamplingSettings.top_k
    """draw from so many of the likeliest tokens; 0: from all"""
    top_p: float = SamplingSettings.top_p
    """draw from the likeliest tokens that together have this probability"""
    num_samples: int = SamplingSettings.num_samples
    """how many samples, each with its own random numbers"""
    seed: int = SamplingSettings.seed
    """same seed, same text"""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = SamplingSettings.stop
    """end before this text"""
    untrained: str = ""
    """random weights of this recipe instead of a run: where training begins"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps"""
    dtype: str = "auto"
    """auto, fp32, bf16 or fp16; auto is fp32 on the CPU, where bf16 is the faster of the two"""
    quantize: str = "none"
    """weights in fewer bits, on the CPU: none, int8 or int4, each faster and less exact than the one before"""
    compile: bool = False
    """compile the step of one token first: worth it for long texts"""
    out_dir: str = ""
    """nanoGPT's name for the run"""
    init_from: str = "resume"
    """nanoGPT's name: resume (the run), or a model's name"""


def main(arguments: list[str]) -> int:
    """Run `quill sample`; what is asked for is checked before a model is loaded."""
    options, _ = parse(SampleOptions, arguments, prog="quill sample", translate=_translate)
    settings = _sampling_settings(options)
    where = _where(options)
    prompt = read_prompt(options.prompt, sys.stdin)
    check_prompt(prompt)
    device, dtype = _placement(options)
    model, tokenizer = _untrained(options) if options.untrained else _trained(where)
    model = _prepared(model.to(device), dtype, options)  # weights in another form leave none of the first behind
    _write_samples(model, tokenizer, prompt, settings)
    return 0


def read_prompt(argument: str, standard_input: Any) -> str:
    """The text of `-p`: itself, a file's content after `FILE:`, or standard input for `-`."""
    if argument == "-":
        if standard_input is None:
            raise ConfigError("--prompt -: there is no standard input to read the prompt from")
        return _read_text(standard_input.buffer, "--prompt - (standard input)")
    if not argument.startswith(FILE_PREFIX):
        return argument
    what = f"--prompt {argument!r}"  # repr: a name may hold a line break
    try:
        with Path(argument.removeprefix(FILE_PREFIX)).open("rb") as file:
            return _read_text(file, what)
    except OSError as error:
        raise ConfigError(f"{what}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{what}: cannot be read: {error}") from None


def visible(text: str) -> str:
    """The text with control characters written out, so that a model cannot move the cursor or recolour the terminal."""
    return text.translate(_CONTROL)


_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def _translate(name: str, value: Any) -> dict[str, Any]:
    return dict(VALUES.get((name, str(value)), {NAMES.get(name, name): value}))


def _sampling_settings(options: SampleOptions) -> SamplingSettings:
    names = [setting.name for setting in dataclasses.fields(SamplingSettings)]
    return SamplingSettings(**{name: getattr(options, name) for name in names})


def _read_text(file: BinaryIO, what: str) -> str:
    content = file.read(MAX_PROMPT_BYTES + 1)
    if len(content) > MAX_PROMPT_BYTES:
        raise ConfigError(f"{what} is too long: expected {LIMITS['prompt']}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{what} is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start}") from None


def _where(options: SampleOptions) -> str:
    """The run, checkpoint or model that is meant; empty for the newest run."""
    asked = {
        "RUN": options.run,
        "--out-dir": options.out_dir,
        "--init-from": "" if options.init_from == "resume" else options.init_from,
        "--untrained": options.untrained,
    }
    given = [f"{name} {value}" for name, value in asked.items() if value]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} name different models; give one of them")
    return options.run or options.out_dir or asked["--init-from"]


def _placement(options: SampleOptions) -> "tuple[torch.device, torch.dtype]":
    """Device and number format; on the CPU fp32 unless asked, so that the text is the same on every CPU."""
    import torch

    from quillgpt.distributed import Ranks
    from quillgpt.errors import pick
    from quillgpt.hardware import detect
    from quillgpt.sample.prepare import check_request
    from quillgpt.train.resolve import DTYPES, choose_device, choose_dtype

    pick({"auto": None} | DTYPES, options.dtype, "dtype")
    machine = detect()
    device = torch.device(choose_device(options.device, machine, Ranks())[0])
    asked = "fp32" if options.dtype == "auto" and device.type == "cpu" else options.dtype
    dtype, reason = choose_dtype(asked, device.type, machine)
    if dtype != asked != "auto":
        _say(f"dtype {dtype}: {reason}")
    check_request(options.quantize, options.compile, device.type)
    return device, DTYPES[dtype]


def _trained(where: str) -> "tuple[GPT, Tokenizer]":
    from quillgpt.checkpoint import IN_THE_BOX, load_model
    from quillgpt.run_dir import RUNS, newest_run, runs_in

    if where:
        return load_model(where)
    if not runs_in(RUNS):
        _say(f"no run in {RUNS}/ yet: this is {IN_THE_BOX}, the small model in the box; it writes Python, or tries to")
        return load_model(IN_THE_BOX)
    newest = newest_run(RUNS)
    _say(f"the newest run: {newest}")
    return load_model(newest)


def _prepared(model: "GPT", dtype: "torch.dtype", options: SampleOptions) -> "GPT":
    """The model in the form that was asked for; in none, the same as ever, so that a seed keeps its text."""
    from quillgpt.sample.prepare import prepared

    if options.compile:
        _say("compiling the step of one token; the first tokens wait for it")
    return prepared(model, dtype=dtype, quantize=options.quantize, compile=options.compile)


def _untrained(options: SampleOptions) -> "tuple[GPT, Tokenizer]":
    """Random weights in a recipe's shape; a tokenizer that has to be trained first is replaced by bytes."""
    import torch

    from quillgpt.model.gpt import GPT
    from quillgpt.recipes import load_recipe
    from quillgpt.tokenizer import TOKENIZERS, load_tokenizer

    config = load_recipe(options.untrained)
    asked = config.data.tokenizer
    learns = asked in TOKENIZERS and TOKENIZERS[asked].learns
    tokenizer = load_tokenizer("byte" if learns else asked)
    instead = f" (the recipe's {asked} is learnt from its data)" if learns else ""
    _say(f"random weights in the shape of {options.untrained}; tokenizer {tokenizer.name}{instead}")
    torch.manual_seed(options.seed)
    return GPT(dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)), tokenizer


def _write_samples(model: "GPT", tokenizer: "Tokenizer", prompt: str, settings: SamplingSettings) -> None:
    from quillgpt.sample.generate import prompt_tokens, samples, stream

    tokens = prompt_tokens(tokenizer, prompt)
    context_length = model.config.context_length
    if len(tokens) > context_length:
        _say(f"the prompt has {len(tokens):,} tokens; the model sees only its last {context_length:,}")
    if settings.num_samples == 1:
        _write_sample(prompt, stream(model, tokenizer, tokens, settings))
        return
    for number, text in enumerate(samples(model, tokenizer, tokens, settings), start=1):
        _write_dim(f"--- sample {number} of {settings.num_samples} ---\n")
        _write_sample(prompt, [text])


def _write_sample(prompt: str, pieces: Iterable[str]) -> None:
    _write_dim(prompt)
    try:
        for piece in pieces:
            _write(piece)
    finally:
        _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _write_dim(text: str) -> None:
    """Write to standard output, dim where that is a terminal."""
    if not sys.stdout.isatty():
        _write(text)
        return
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(visible(text)), style="dim", end="", soft_wrap=True)


def _say(notice: str) -> None:
    """Tell something about the text on standard error, dim where that is a terminal."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(notice), style="dim", soft_wrap=True)
