"""`quill train RECIPE --dry-run`: each setting with its value, origin and meaning, and what follows from them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from quillgpt.checkpoint.init_from import data_settings, init_source, latest_checkpoint
from quillgpt.config import (
    GROUPS,
    DataConfig,
    RunConfig,
    batch_plan,
    flatten,
    group_of,
    meanings,
    ramp_sequences,
    stage_batch_sizes,
)
from quillgpt.data.dataset import TokenDataset
from quillgpt.data.prepare import data_directory, prepare_command
from quillgpt.distributed import ranks_from_environment
from quillgpt.errors import DataError
from quillgpt.model.lora import adapter_parameter_count
from quillgpt.model.sizes import estimated_memory_bytes, flops_per_token, parameter_count
from quillgpt.runtime import detect, resolve
from quillgpt.tokenizer import TOKENIZERS, load_tokenizer

VALUE_WIDTH, ORIGIN_WIDTH = 40, 36
GPT2_VOCAB_SIZE = 50_257

Row = tuple[str, str, str]
"""name, value, meaning or reason"""


def plan_table(config: RunConfig, origins: Mapping[str, str]) -> Table:
    """Return a table of all settings and what follows from them; impossible settings are a `ConfigError`."""
    derived = _derived_rows(config)
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=VALUE_WIDTH, style="bold")
    table.add_column(overflow="fold", max_width=ORIGIN_WIDTH)
    table.add_column(style="dim")
    values = flatten(config)
    for group in GROUPS:
        table.add_row(Text(group, style="bold underline"))
        for name in [name for name in values if group_of()[name] == group]:
            origin = origins.get(name, "default")
            style = "dim" if origin == "default" else "cyan"
            table.add_row(name, Text(_toml(values[name])), Text(origin, style=style), Text(meanings()[name]))
        table.add_row()
    table.add_row(Text("derived", style="bold underline"))
    for name, value, reason in derived:
        table.add_row(name, Text(value), "", Text(reason))
    return table


def _toml(value: object) -> str:
    """A setting's value as in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _derived_rows(config: RunConfig) -> list[Row]:
    """What follows from the settings on this machine."""
    data = data_settings(config, init_source(config, latest_checkpoint(config)))
    directory = data_directory(data, config.model.vocab_size)
    prepared, data_row = _prepared_data(config, directory)
    vocab_size, vocab_reason = _vocab_size(config, data, prepared)
    config = replace(config, model=replace(config.model, vocab_size=vocab_size))
    ranks, machine = ranks_from_environment(), detect()
    runtime, reasons = resolve(config, machine, ranks)
    model, train, rank = config.model, config.train, config.lora.lora_rank
    batch_size, micro_batch_size = runtime.global_batch_size, runtime.micro_batch_size
    kind = runtime.device.partition(":")[0]
    memory = estimated_memory_bytes(model, micro_batch_size, runtime.dtype, kind, rank)
    free = machine.device_memory_bytes if kind == "cuda" else machine.cpu_memory_bytes
    accumulation = -(-batch_size // (micro_batch_size * ranks.world_size))
    rows = [
        ("vocabulary", f"{vocab_size:,} tokens", vocab_reason),
        ("parameters", f"{parameter_count(model):,}", f"{flops_per_token(model, rank):,} FLOPs to train on a token"),
    ]
    if rank:
        trained = f"{adapter_parameter_count(model, rank):,}"
        rows.append(("trained", trained, f"parameters of the LoRA adapters of rank {rank}; all others are frozen"))
    rows += _length_rows(config, batch_size, prepared, data_row)
    batch = f"{batch_size:,} sequences of {model.context_length:,}"
    rows.append(("global batch", f"{batch_size * model.context_length:,} tokens", batch))
    if train.batch_ramp:
        rows.append(_ramp_row(config, batch_size))
    return [
        *rows,
        ("micro-batch", f"{micro_batch_size:,} sequences", reasons["batch_size"]),
        ("accumulation", f"{accumulation:,} per step", f"micro-batches on each rank; ranks: {ranks.world_size}"),
        ("memory", f"{memory / 1e9:,.2f} GB per rank", f"estimate; {free / 1e9:,.1f} GB are free here"),
        ("device", runtime.device, reasons["device"]),
        ("dtype", runtime.dtype, reasons["dtype"]),
        ("threads", str(runtime.threads), reasons["threads"]),
        ("compile", "on" if runtime.compile else "off", reasons["compile"]),
    ]


def _length_rows(config: RunConfig, batch_size: int, prepared: TokenDataset | None, data_row: Row) -> list[Row]:
    """Tokens, training data and epochs."""
    train = config.train
    if train.minutes:
        reason = f"the steps that fit into {train.minutes:g} minutes"
        return [("tokens", "measured first", reason), data_row, ("epochs", "measured first", reason)]
    sequences = ramp_sequences(train.batch_ramp, batch_size=batch_size, steps=train.steps)
    tokens = sequences * config.model.context_length
    epochs = f"{tokens / prepared.token_count:,.2f}" if prepared else "unknown"
    return [("tokens", f"{tokens:,}", f"{train.steps:,} steps"), data_row, ("epochs", epochs, "passes over the data")]


def _ramp_row(config: RunConfig, batch_size: int) -> Row:
    """Sizes of the growing batch and their first steps, or fractions if the steps have to be measured first."""
    train = config.train
    if train.minutes:
        sizes, begins = stage_batch_sizes(train.batch_ramp, batch_size), "the fractions in batch_ramp"
    else:
        stages = batch_plan(train.batch_ramp, batch_size=batch_size, steps=train.steps)
        sizes, begins = [size for _, size in stages], f"steps {', '.join(f'{step:,}' for step, _ in stages)}"
    reason = f"from {begins}; the learning rate is scaled by the square root of the fraction"
    return "batch ramp", " to ".join(f"{size:,}" for size in sizes) + " sequences", reason


def _prepared_data(config: RunConfig, directory: Path) -> tuple[TokenDataset | None, Row]:
    """The training tokens, if they are prepared, and the row that says where and how many."""
    if (directory / "manifest.json").is_file():
        try:
            prepared = TokenDataset.open(directory, "train")
        except DataError as error:
            return None, ("training data", "damaged", str(error))
        return prepared, ("training data", f"{prepared.token_count:,} tokens", f"in {directory}")
    if config.data.data != "auto":
        return None, ("training data", "missing", f"`quill prepare ... --out {directory}` creates it")
    if config.train.eval_only:
        return None, ("data", "missing", f"`{prepare_command(config.data, config.model.vocab_size)}` creates it")
    return None, ("training data", "not prepared yet", f"the run prepares it first, in {directory}")


def _vocab_size(config: RunConfig, data: DataConfig, prepared: TokenDataset | None) -> tuple[int, str]:
    """The size of the tokenizer's vocabulary, which becomes the model's, and the reason."""
    if prepared:
        return prepared.vocab_size, "of the prepared data"
    if data.tokenizer == "gpt2":
        return GPT2_VOCAB_SIZE, "GPT-2's"
    if data.tokenizer == "bpe":
        return config.model.vocab_size, "bpe is trained to this size"
    if data.tokenizer in TOKENIZERS and TOKENIZERS[data.tokenizer].learns:
        return config.model.vocab_size, "decided when the data is prepared"
    return load_tokenizer(data.tokenizer).vocab_size, f"of the tokenizer {data.tokenizer}"
