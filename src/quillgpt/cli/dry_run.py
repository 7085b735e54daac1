"""`quill train RECIPE --dry-run`: every setting with its value, origin and meaning, and what follows from them."""

import shutil
from dataclasses import replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quillgpt.cli.settings import Settings
from quillgpt.config import GROUPS, RunConfig, flatten, group_of, meanings
from quillgpt.data.directory import data_directory, prepare_command
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.distributed import ranks_from_environment
from quillgpt.errors import DataError
from quillgpt.hardware import detect
from quillgpt.model.lora import adapter_parameter_count
from quillgpt.model.sizes import flops_per_token, parameter_count
from quillgpt.tokenizer import TOKENIZERS, load_tokenizer
from quillgpt.train.batch_ramp import pieces, rows_in_all, stage_rows
from quillgpt.train.resolve import estimated_memory_bytes, resolve
from quillgpt.train.starting_point import begun, data_settings, starting_point

PIPE_COLUMNS = 160  # a pipe has no width of its own
WIDEST_VALUE, WIDEST_ORIGIN = 40, 36

Row = tuple[str, str, str, str]
"""name, value, origin, meaning or reason"""


def show(settings: Settings) -> int:
    """Print the settings and their consequences; nothing is written, prepared or trained."""
    consequences = consequence_rows(settings.config)  # first, because they may be impossible
    console = Console(width=shutil.get_terminal_size(fallback=(PIPE_COLUMNS, 50)).columns, highlight=False)
    console.print(table([*setting_rows(settings), *consequences]))
    return 0


def table(rows: list[Row]) -> Table:
    """One table for everything, so that its columns stand below each other; a row of only a name is a heading."""
    columns = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    columns.add_column(no_wrap=True)
    columns.add_column(overflow="fold", max_width=WIDEST_VALUE, style="bold")
    columns.add_column(overflow="fold", max_width=WIDEST_ORIGIN)
    columns.add_column(style="dim")
    for i, (name, value, origin, meaning) in enumerate(rows):
        is_heading = not (value or meaning)
        if is_heading and i:
            columns.add_row()
        columns.add_row(
            Text(name, style="bold underline" if is_heading else ""),
            Text(value),
            Text(origin, style="dim" if origin == "default" else "cyan"),
            Text(meaning),
        )
    return columns


def setting_rows(settings: Settings) -> list[Row]:
    """Every setting below its group."""
    values = flatten(settings.config)
    rows = []
    for group in GROUPS:
        rows.append((group, "", "", ""))
        for name in [name for name in values if group_of()[name] == group]:
            rows.append((name, shown(values[name]), settings.origins.get(name, "default"), meanings()[name]))
    return rows


def consequence_rows(config: RunConfig) -> list[Row]:
    """What the settings come to on this machine."""
    prepared, data_row = prepared_data(config)
    vocab_size, vocabulary_reason = true_vocab_size(config, prepared)
    config = replace(config, model=replace(config.model, vocab_size=vocab_size))
    ranks, machine = ranks_from_environment(), detect()
    choices, reasons = resolve(config, machine, ranks)
    model, minutes = config.model, config.train.minutes
    tokens_per_step = choices.rows * model.context_length
    tokens = rows_in_all(config.train.batch_ramp, rows=choices.rows, steps=config.train.steps) * model.context_length
    micro_batches = -(-choices.rows // (choices.batch_size * ranks.world_size))
    kind = choices.device.partition(":")[0]
    rank = config.lora.lora_rank
    memory = estimated_memory_bytes(model, choices.batch_size, choices.dtype, kind, rank)
    free = machine.device_memory_bytes if kind == "cuda" else machine.cpu_memory_bytes
    rows = [
        ("vocabulary", f"{vocab_size:,} tokens", vocabulary_reason),
        (
            "parameters",
            f"{parameter_count(model):,}",
            f"{flops_per_token(model, rank):,} operations to train on a token",
        ),
        ("tokens", f"{tokens:,}", f"{config.train.steps:,} steps"),
        data_row,
        ("epochs", f"{tokens / prepared.token_count:,.2f}" if prepared else "unknown", "how often the data is read"),
        ("global batch", f"{tokens_per_step:,} tokens", f"{choices.rows:,} sequences of {model.context_length:,}"),
        ("micro-batch", f"{choices.batch_size:,} sequences", reasons["batch_size"]),
        ("accumulation", f"{micro_batches:,} a step", f"micro-batches on each rank; {ranks.world_size} in all"),
        ("memory", f"{memory / 1e9:,.2f} GB a rank", f"by estimate; {free / 1e9:,.1f} GB are free here"),
        ("device", choices.device, reasons["device"]),
        ("dtype", choices.dtype, reasons["dtype"]),
        ("threads", str(choices.threads), reasons["threads"]),
        ("compile", "on" if choices.compile else "off", reasons["compile"]),
    ]
    if config.train.batch_ramp:
        rows.insert(6, ramp_row(config, choices.rows))
    if rank:
        trained = f"{adapter_parameter_count(model, rank):,}"
        rows.insert(2, ("trained", trained, f"parameters of the LoRA adapters of rank {rank}; the others are frozen"))
    if minutes:
        measured = ("measured first", f"as many steps as fit into {minutes:g} minutes")
        rows = [(name, *(measured if name in ("tokens", "epochs") else rest)) for name, *rest in rows]
    return [("what follows", "", "", ""), *((name, value, "", reason) for name, value, reason in rows)]


def ramp_row(config: RunConfig, whole: int) -> tuple[str, str, str]:
    """How the batch grows to the whole one, and when: by step, or by share where the steps are still to be measured."""
    train = config.train
    stages = pieces(train.batch_ramp, rows=whole, steps=train.steps)
    begins = ", ".join(f"{step:,}" for step, _ in stages)
    when = f"from steps {begins} on, the rate by the root of the share"
    if train.minutes:
        stages = [(0, rows) for rows in stage_rows(train.batch_ramp, whole)]
        when = "from the shares of the steps in batch_ramp on, the rate by the root of the share"
    return "batch ramp", " to ".join(f"{rows:,}" for _, rows in stages) + " sequences", when


def prepared_data(config: RunConfig) -> tuple[TokenDataset | None, tuple[str, str, str]]:
    """The training tokens where they are prepared already, and the row that says where and how many."""
    directory = data_directory(data_settings(config, starting_point(config, begun(config))), config.model.vocab_size)
    if (directory / "manifest.json").is_file():
        try:
            prepared = TokenDataset.open(directory, "train")
        except DataError as error:
            return None, ("training data", "damaged", str(error))
        return prepared, ("training data", f"{prepared.token_count:,} tokens", f"in {directory}")
    if config.data.data != "auto":
        return None, ("training data", "missing", f"`quill prepare ... --out {directory}` makes it")
    if config.train.eval_only:
        return None, ("data", "missing", f"`{prepare_command(config.data, config.model.vocab_size)}` makes it")
    return None, ("training data", "not prepared yet", f"the run does it first, in {directory}")


def true_vocab_size(config: RunConfig, prepared: TokenDataset | None) -> tuple[int, str]:
    """The size of the tokenizer's vocabulary, which is the model's, and how it is known."""
    if prepared:
        return prepared.vocab_size, "of the prepared data"
    name = data_settings(config, starting_point(config, begun(config))).tokenizer
    if name == "bpe":
        return config.model.vocab_size, "bpe is trained to this size"
    if name == "gpt2" or (name in TOKENIZERS and TOKENIZERS[name].learns):
        return (50_257, "GPT-2's") if name == "gpt2" else (config.model.vocab_size, "decided when the data is prepared")
    return load_tokenizer(name).vocab_size, f"of the tokenizer {name}"


def shown(value: object) -> str:
    """A setting's value as a recipe would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
