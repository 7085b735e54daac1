"""Commands. To add one: a file here with `main(arguments) -> exit code`, and a line in `COMMANDS`.

The line holds the module's name and not the module, so that `quill --help` imports nothing heavy.
"""

COMMANDS = {
    "demo": (
        "quillgpt.cli.demo",
        "train a small GPT on Python's standard library for two minutes and read what it writes",
    ),
    "prepare": ("quillgpt.cli.prepare", "turn text into a directory of tokens"),
    "tokenizer": ("quillgpt.cli.tokenizer", "train a tokenizer, or show how text is split into tokens"),
    "train": ("quillgpt.cli.train", "train a model by a recipe; run it again to continue"),
    "eval": ("quillgpt.cli.eval", "how good a model is: validation loss and tasks, with standard errors"),
    "compare": ("quillgpt.cli.compare", "hold runs against each other: is the difference more than noise?"),
    "doctor": ("quillgpt.cli.doctor", "compare a run with its recipe's reference band, and find what is wrong with it"),
    "report": ("quillgpt.cli.report", "what runs did: one HTML file, PNG figures, or text in the terminal"),
    "sample": ("quillgpt.cli.sample", "write text with a trained model"),
    "bench": ("quillgpt.cli.bench", "what training, sampling and loading cost on this machine"),
    "explain": ("quillgpt.cli.explain", "read GPT-2 in one file, next to the values of a tiny run"),
    "export": ("quillgpt.cli.export", "a trained model for transformers, llama.cpp or onnxruntime"),
}
