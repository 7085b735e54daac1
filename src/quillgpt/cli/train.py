"""`quill train RECIPE [--flags]`: train a run, or resume it."""

from quillgpt.cli.arguments import Settings, load_settings, without_number
from quillgpt.cli.console import messages, output_console, progress_display, run_console
from quillgpt.config import RunConfig
from quillgpt.errors import NonFiniteError
from quillgpt.lab.seeds import FLAG, MAX_SEEDS, plan_lines, repeats, run_repeats, summary

PIPE_COLUMNS = 160


def main(arguments: list[str]) -> int:
    """Train by a recipe and flags, with --seeds several times; --dry-run only shows, --eval-only only evaluates."""
    words, seeds = without_number(arguments, FLAG, most=MAX_SEEDS)
    settings = load_settings(words)
    configs = repeats(settings.config, settings.origins, settings.recipe, seeds) if seeds else []
    if settings.is_dry_run:
        show_plan(settings)
        if configs:
            print("", *plan_lines(configs), sep="\n")
    elif settings.config.train.eval_only:
        from quillgpt.cli.eval import evaluate_run
        from quillgpt.training.setup import check_menus

        check_menus(settings.config)
        return evaluate_run(settings.config)
    elif configs:
        train_repeats(configs)
    else:
        train_once(settings)
    return 0


def show_plan(settings: Settings) -> None:
    """Print the settings and what is derived from them; nothing is written, prepared or trained."""
    from quillgpt.lab.plan import plan_table

    output_console(pipe_columns=PIPE_COLUMNS).print(plan_table(settings.config, settings.origins))


def train_once(settings: Settings) -> None:
    """Train, and print the validation loss."""
    from quillgpt.distributed import ranks_from_environment
    from quillgpt.lab.bands import BandWatch
    from quillgpt.training.loop import train
    from quillgpt.training.screen import Terminal

    console = run_console()
    is_main_process = ranks_from_environment().is_main_process
    with messages(console, is_shown=is_main_process):
        outcome = train(settings.config, Terminal(console, progress_display, BandWatch()))
    if is_main_process:
        result = outcome.validation
        console.print(
            f"val loss: {result.loss:.4f} ± {result.standard_error:.4f} nats per token, "
            f"{result.bits_per_byte:.4f} bits per byte ({result.tokens:,} tokens)",
            soft_wrap=True,
        )
        console.print(f"next: quill sample {outcome.run}", soft_wrap=True)


def train_repeats(configs: list[RunConfig]) -> None:
    """Train the runs of --seeds, and print the mean of their validation losses."""
    from quillgpt.lab.bands import BandWatch
    from quillgpt.training.screen import Terminal

    console = run_console()
    with messages(console):
        diverged = run_repeats(configs, lambda: Terminal(console, progress_display, BandWatch()))
    for line in summary(configs):
        console.print(line, soft_wrap=True)
    if diverged:
        raise NonFiniteError(f"{len(diverged)} of {len(configs)} runs diverged: {', '.join(diverged)}")
