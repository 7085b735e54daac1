"""`quill train RECIPE [--flags]`: train, or continue, a run."""

from quillgpt.cli.output import run_console
from quillgpt.cli.prepare import progress_display
from quillgpt.cli.settings import Settings, load_settings
from quillgpt.cli.train_seeds import plan, repeats, run_repeats, without_seeds


def main(arguments: list[str]) -> int:
    """Train by a recipe and flags, with --seeds several times; --dry-run only shows, --eval-only only evaluates."""
    words, seeds = without_seeds(arguments)
    settings = load_settings(words)
    configs = repeats(settings, seeds) if seeds else []
    if settings.is_dry_run:
        from quillgpt.cli.dry_run import show

        code = show(settings)
        print("\n".join(["", *plan(configs)] if configs else []), end="\n" if configs else "")
        return code
    if settings.config.train.eval_only:
        from quillgpt.cli.eval import evaluate_run

        return evaluate_run(settings.config)
    return run_repeats(configs) if configs else run(settings)


def run(settings: Settings) -> int:
    """Train and print how it ended."""
    from quillgpt.distributed import ranks_from_environment
    from quillgpt.train.loop import train
    from quillgpt.train.progress import Terminal

    console = run_console()
    outcome = train(settings.config, Terminal(console, progress_display))
    if ranks_from_environment().is_first:
        result = outcome.held_out
        console.print(
            f"held out: {result.loss:.4f} ± {result.standard_error:.4f} nats per token, "
            f"{result.bits_per_byte:.4f} bits per byte ({result.tokens:,} tokens)",
            soft_wrap=True,
        )
        console.print(f"next: quill sample {outcome.run}", soft_wrap=True)
    return 0
