"""Entry `gpt2`: the 50,257 tokens of GPT-2 [Radford 2019, 2.2]; tiktoken downloads them once and caches them.

A data set or checkpoint made with them has the entire vocabulary in its tokenizer.json, and needs no download.
"""

from collections.abc import Iterable

from quillgpt.errors import DataError
from quillgpt.tokenizer.base import TokenizerKind
from quillgpt.tokenizer.byte_level import ByteLevelBPE


def create(texts: Iterable[str], vocab_size: int) -> ByteLevelBPE:
    """GPT-2's tokenizer; both arguments are ignored."""
    import tiktoken

    try:
        encoding = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # no network, no space for the cache, or another file at its address
        problem = f"GPT-2's vocabulary is not on this machine and cannot be fetched ({type(error).__name__})"
        remedy = "set TIKTOKEN_CACHE_DIR to a directory that has tiktoken's copy, or use --tokenizer bpe or byte"
        raise DataError(f"{problem}; {remedy}") from None
    end_of_text = encoding.eot_token
    return ByteLevelBPE([*map(encoding.decode_single_token_bytes, range(end_of_text)), b""], end_of_text)


GPT2 = TokenizerKind(learns=False, create=create)
