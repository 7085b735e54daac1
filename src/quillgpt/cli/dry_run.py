"""`quill train RECIPE --dry-run`: every setting with its value, meaning and origin, and what follows from them."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quillgpt.cli.settings import Settings
from quillgpt.config import GROUPS, RunConfig, flatten, group_of, meanings
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.distributed import ranks_from_environment
from quillgpt.errors import DataError
from quillgpt.hardware import detect
from quillgpt.model.sizes import flops_per_token, parameter_count
from quillgpt.train.open_data import data_directory, data_settings
from quillgpt.train.resolve import estimated_memory_bytes, resolve


def show(settings: Settings) -> int:
    """Print the settings and their consequences; nothing is written, prepared or trained."""
    console = Console(highlight=False)
    width = None if console.is_terminal else 160  # a pipe has no width of its own
    for group in GROUPS:
        console.print(settings_table(group, settings), width=width)
    console.print(consequences_table(settings.config), width=width)
    return 0


def settings_table(group: str, settings: Settings) -> Table:
    """One group's settings: name, value, where the value came from, meaning."""
    table = Table(
        title=group, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), show_header=False
    )
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    for name, value in flatten(settings.config).items():
        if group_of()[name] == group:
            origin = settings.origins.get(name, "default")
            table.add_row(
                name, shown(value), Text(origin, style="dim" if origin == "default" else "cyan"), meanings()[name]
            )
    return table


def consequences_table(config: RunConfig) -> Table:
    """What the settings come to on this machine."""
    ranks = ranks_from_environment()
    choices, reasons = resolve(config, detect(), ranks)
    model, train = config.model, config.train
    tokens_per_step = choices.rows * model.context_length
    micro_batches = -(-choices.rows // (choices.batch_size * ranks.world_size))
    memory = estimated_memory_bytes(model, choices.batch_size, choices.dtype)
    rows = [
        ("parameters", f"{parameter_count(model):,}", f"{flops_per_token(model):,} operations to train on a token"),
        ("global batch", f"{tokens_per_step:,} tokens", f"{choices.rows} sequences of {model.context_length:,}"),
        ("micro-batch", f"{choices.batch_size} sequences", reasons["batch_size"]),
        ("accumulation", f"{micro_batches} micro-batches", f"on each of {ranks.world_size} rank(s)"),
        ("memory", f"about {memory / 1e9:.2f} GB a rank", "weights, gradients, AdamW's moments, activations, logits"),
        ("device", choices.device, reasons["device"]),
        ("dtype", choices.dtype, reasons["dtype"]),
        ("threads", str(choices.threads), reasons["threads"]),
        ("compile", "on" if choices.compile else "off", reasons["compile"]),
    ]
    if train.minutes:
        rows.insert(1, ("tokens", "measured at the start", f"as many steps as fit into {train.minutes:g} minutes"))
    else:
        rows.insert(1, ("tokens", f"{train.steps * tokens_per_step:,}", f"{train.steps:,} steps"))
    rows.append(data_row(config, train.steps * tokens_per_step))
    title = "what follows, on this machine"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), show_header=False
    )
    for name, value, reason in rows:
        table.add_row(name, Text(value, style="bold"), Text(reason, style="dim"))
    return table


def data_row(config: RunConfig, tokens: int) -> tuple[str, str, str]:
    """How often the run reads its data, where the data is prepared already."""
    directory = data_directory(data_settings(config), config.model.vocab_size)
    try:
        dataset = TokenDataset.open(directory, "train")
    except DataError:
        return "data", str(directory), "not prepared yet: the run does it first"
    epochs = "" if config.train.minutes else f"{tokens / dataset.token_count:,.2f} epochs of "
    return "data", str(directory), f"{epochs}{dataset.token_count:,} training tokens"


def shown(value: object) -> str:
    """A setting's value as a recipe would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
