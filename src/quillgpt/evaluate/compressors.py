"""What file compressors make of the same held-out text, in bits per byte, so that a model's figure means something.

A compressor starts on the held-out text knowing nothing, while the model has read the training text; so xz is also
given the training text as its dictionary, and pays only for what the held-out text adds.
"""

import lzma
import zlib

from quillgpt.data.token_dataset import TokenDataset
from quillgpt.tokenizer import Tokenizer

DICTIONARY_BYTES = 1 << 26


def compressor_bits_per_byte(held_out: bytes, training: bytes) -> dict[str, float]:
    """gzip -9 and xz -9e of the held-out text as one stream, and xz's extra bytes for it after the training text."""
    bits = 8 / max(1, len(held_out))
    extra = xz_bytes(training + held_out) - xz_bytes(training)
    return {
        "gzip -9": gzip_bytes(held_out) * bits,
        "xz -9e": xz_bytes(held_out) * bits,
        "xz -9e, knowing the training text": extra * bits,
    }


def split_text(dataset: TokenDataset, tokenizer: Tokenizer) -> bytes:
    """The text of a split as one stream of bytes, its documents one after the other."""
    return b"".join(tokenizer.decode_bytes(shard.tokens.tolist()) for shard in dataset.shards)


def gzip_bytes(content: bytes) -> int:
    """Size after `gzip -9`, its header and trailer of 18 bytes included."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    return len(compressor.compress(content)) + len(compressor.flush())


def xz_bytes(content: bytes) -> int:
    """Size after `xz -9e`, with a dictionary that reaches back over the whole content up to 64 MiB."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": DICTIONARY_BYTES}]
    return len(lzma.compress(content, format=lzma.FORMAT_XZ, filters=filters))
