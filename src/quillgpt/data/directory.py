"""Where prepared data lies: one directory for each combination of source and tokenizer, one name everywhere."""

import hashlib
import shlex
from pathlib import Path

from quillgpt.config import DataConfig
from quillgpt.tokenizer import TOKENIZERS, load_tokenizer

DATA = Path("data")


def data_directory(settings: DataConfig, vocab_size: int) -> Path:
    """Where prepared data is: as asked, or data/ with a name that tells apart what makes it different."""
    if settings.data != "auto":
        return Path(settings.data)
    tokenizer = settings.tokenizer
    details = [settings.path, settings.text_field, settings.errors, settings.documents]
    if settings.source == "fineweb-edu":
        details.append(settings.subset)
    if "/" in tokenizer or tokenizer.endswith(".json"):
        details.append(load_tokenizer(tokenizer).fingerprint)  # not its path: a run's checkpoints all have the same
        tokenizer = "custom"
    if tokenizer == "bpe":
        tokenizer = f"bpe{vocab_size}"
    name = f"{settings.source}-{tokenizer}"
    if details[:4] != ["", "text", "strict", 0] or len(details) > 4:
        name += "-" + hashlib.sha256(repr(details).encode()).hexdigest()[:8]
    return DATA / name


def prepare_command(settings: DataConfig, vocab_size: int) -> str:
    """The command line that makes the data of these settings where `data_directory` says."""
    words = ["quill", "prepare", settings.source, "--tokenizer", settings.tokenizer]
    if settings.tokenizer in TOKENIZERS and TOKENIZERS[settings.tokenizer].learns:
        words += ["--vocab-size", str(vocab_size)]
    usual = DataConfig()
    for name in ("path", "text_field", "subset", "documents", "errors", "data"):
        value = getattr(settings, name)
        if value != getattr(usual, name):
            words += [f"--{'out' if name == 'data' else name.replace('_', '-')}", str(value)]
    return shlex.join(words)
