"""Where prepared data lies: one directory for each combination of source and tokenizer, one name everywhere."""

import hashlib
from pathlib import Path

from quillgpt.config import DataConfig
from quillgpt.tokenizer import load_tokenizer

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
