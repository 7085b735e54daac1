"""Text for one tokenizer out of text, or out of tokens of another: the same documents, cut and separated as always.

What is written are shards of a split in a folder of the caller's, so that text of any size takes the memory of one.
"""

import codecs
import hashlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from quillgpt.data.document import EncodedPiece, Piece, cut
from quillgpt.data.encode import encode_piece
from quillgpt.data.shard import SHARD_TOKENS, open_shard
from quillgpt.data.shard_writer import ShardWriter
from quillgpt.data.token_dataset import TokenDataset
from quillgpt.data.work import SplitProgress
from quillgpt.errors import DataError
from quillgpt.tokenizer import Tokenizer

BLOCK_TOKENS = 1 << 18


def decoded_pieces(dataset: TokenDataset, tokenizer: Tokenizer) -> Iterator[Piece]:
    """The text of a split's documents in pieces, as its source gave it; `tokenizer` is the one it was cut with."""
    for _, blocks in groupby(_numbered_blocks(dataset, tokenizer), key=itemgetter(0)):
        yield from cut(text for _, text in blocks)


def write_split(
    pieces: Iterable[Piece],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    split: str,
    source: str,
    max_tokens: int = 0,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenDataset:
    """Encode the pieces into shards in the folder, no further than `max_tokens` (0: all), and open them.

    The last piece is whole, so there may be a few tokens more. The fingerprint is that of the text that was read.
    """
    progress = SplitProgress()
    writer = ShardWriter(folder, split, tokenizer, shard_tokens=shard_tokens, done=progress)
    tokens = text_bytes = 0
    for piece in pieces:
        content = piece.text.encode()
        array = encode_piece(tokenizer, content, piece.ends_document)
        digest = hashlib.sha256(content).digest()
        writer.add(EncodedPiece(split, array, piece.ends_document, len(content), digest))
        tokens += len(array)
        text_bytes += len(content)
        if 0 < max_tokens <= tokens:
            break
    writer.flush()
    return TokenDataset(
        directory=folder,
        split=split,
        shards=[open_shard(folder / record.file)[1] for record in progress.shards],
        vocab_size=tokenizer.vocab_size,
        tokenizer_fingerprint=tokenizer.fingerprint,
        fingerprint=progress.digest,
        text_bytes=text_bytes,
        source=source,
        licence="",
    )


def _numbered_blocks(dataset: TokenDataset, tokenizer: Tokenizer) -> Iterator[tuple[int, str]]:
    """The split's text in blocks, each with its document's number; a document may go on in the next shard."""
    number, decoder = 0, codecs.getincrementaldecoder("utf-8")()
    for shard in dataset.shards:
        start = 0
        for end in shard.document_ends.tolist():
            ends_document = bool(shard.tokens[end - 1] == tokenizer.end_of_text)
            for first in range(start, end, BLOCK_TOKENS):
                content = tokenizer.decode_bytes(shard.tokens[first : min(first + BLOCK_TOKENS, end)].tolist())
                try:
                    yield number, decoder.decode(content, final=ends_document and first + BLOCK_TOKENS >= end)
                except UnicodeDecodeError:
                    where = f"{shard.path}: tokens {first:,} to {min(first + BLOCK_TOKENS, end):,}"
                    raise DataError(
                        f"{where} are not UTF-8, so no other tokenizer can cut them; give the text"
                    ) from None
            number += ends_document
            start = end
