"""Text for one tokenizer, read from text or from the tokens of another: as `prepare` would cut and separate it.

The result is shards in a folder of the caller, so that text of any size takes the memory of one shard.
"""

import codecs
import hashlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from quillgpt.data.dataset import TokenDataset
from quillgpt.data.document import EncodedChunk, TextChunk, chunked
from quillgpt.data.encode import encode_chunk
from quillgpt.data.shards import SHARD_TOKENS, open_shard
from quillgpt.data.write_shards import ShardWriter, SplitState
from quillgpt.errors import DataError
from quillgpt.tokenizer import Tokenizer

BLOCK_TOKENS = 1 << 18


def decoded_chunks(dataset: TokenDataset, tokenizer: Tokenizer) -> Iterator[TextChunk]:
    """Yield the text of a split's documents in chunks, as its source gave it; `tokenizer` is the one of the data."""
    for _, blocks in groupby(_numbered_blocks(dataset, tokenizer), key=itemgetter(0)):
        yield from chunked(text for _, text in blocks)


def write_split(
    chunks: Iterable[TextChunk], tokenizer: Tokenizer, folder: Path, *, split: str, source: str, max_tokens: int = 0
) -> TokenDataset:
    """Encode the chunks into shards in the folder until there are `max_tokens` (0: all), and open them.

    The last chunk is complete, so there may be a few tokens more. The fingerprint is that of the text that was read.
    """
    state = SplitState()
    writer = ShardWriter(folder, split, tokenizer, shard_tokens=SHARD_TOKENS, state=state)
    tokens = text_bytes = 0
    for chunk in chunks:
        content = chunk.text.encode()
        array = encode_chunk(tokenizer, content, chunk.ends_document)
        digest = hashlib.sha256(content).digest()
        writer.add(EncodedChunk(split, array, chunk.ends_document, len(content), digest))
        tokens += len(array)
        text_bytes += len(content)
        if 0 < max_tokens <= tokens:
            break
    writer.flush()
    return TokenDataset(
        directory=folder,
        split=split,
        shards=[open_shard(folder / record.file)[1] for record in state.shards],
        vocab_size=tokenizer.vocab_size,
        tokenizer_fingerprint=tokenizer.fingerprint,
        fingerprint=state.digest,
        text_bytes=text_bytes,
        source=source,
    )


def _numbered_blocks(dataset: TokenDataset, tokenizer: Tokenizer) -> Iterator[tuple[int, str]]:
    """Yield the split's text in blocks, each with its document's number; a document may continue in the next shard."""
    number, decoder = 0, codecs.getincrementaldecoder("utf-8")()
    for shard in dataset.shards:
        start = 0
        for end in shard.document_ends.tolist():
            ends_document = bool(shard.tokens[end - 1] == tokenizer.end_of_text)
            for first in range(start, end, BLOCK_TOKENS):
                stop = min(first + BLOCK_TOKENS, end)
                content = tokenizer.decode_bytes(shard.tokens[first:stop].tolist())
                try:
                    yield number, decoder.decode(content, final=ends_document and stop == end)
                except UnicodeDecodeError:
                    place = f"{shard.path}: tokens {first:,} to {stop:,}"
                    raise DataError(
                        f"{place} are not UTF-8, so no other tokenizer can encode them; give the text"
                    ) from None
            number += ends_document
            start = end
