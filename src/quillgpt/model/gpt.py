"""GPT on one page: embed the tokens, pass the blocks, read off the logits of each next token.

With the default settings it is GPT-2 exactly [Radford 2019]; each variant is one setting and one line in a menu.
Shapes: B batch, T new tokens, S all tokens (with those in the cache), C channels, H heads, D head size, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.errors import pick
from quillgpt.model.initialization import INITIALIZATIONS, initialize
from quillgpt.model.kv_cache import KVCache
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS
from quillgpt.model.positions import POSITIONS
from quillgpt.model.residual import RESIDUALS
from quillgpt.model.rotary import Rotation
from quillgpt.model.self_attention import SelfAttention
from quillgpt.model.value_embeddings import ValueEmbeddings

VOCAB_MULTIPLE = 64  # matrix kernels are faster on round shapes: 50,257 tokens get 50,304 rows


class Block(nn.Module):
    """Positions exchange information, then each works by itself; both add to the stream [Radford 2019, 2.3]."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        new_norm = pick(NORMS, config.norm, "norm")
        self.norm_1 = new_norm(config)
        self.attention = SelfAttention(config, layer)
        self.norm_2 = new_norm(config)
        self.mlp = pick(MLPS, config.mlp, "mlp")(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotation: Rotation | None, cache: KVCache | None, extra_value: Tensor | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.dropout(self.attention(self.norm_1(x), rotation, cache, extra_value))
        return x + self.dropout(self.mlp(self.norm_2(x)))


class GPT(nn.Module):
    """A GPT with random weights drawn from torch's default generator; the same seed gives the same weights.

    For example:
        torch.manual_seed(1)
        config = quillgpt.ModelConfig(n_layer=2, n_head=2, n_embd=64, context_length=32, vocab_size=257)
        model = quillgpt.GPT(config)
        tokens = torch.randint(257, (4, 32))
        logits = model(tokens)
        print(tuple(logits.shape))  # (4, 32, 257)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        print(loss.item(), "nats, not far from ln 257 = 5.55")
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        rows = padded_vocab_size(config.vocab_size)
        device = torch.get_default_device()
        with torch.device("meta"):  # shapes only: torch's own initial weights would cost time and random numbers
            # torch's own normal draw for an Embedding, even on "meta", would import its compiler: 2 to 3 s and 77 MB
            self.token_embedding = nn.Embedding.from_pretrained(torch.empty(rows, config.n_embd), freeze=False)
            self.position_embedding = pick(POSITIONS, config.position, "position")(config)
            self.embedding_norm = pick(NORMS, config.norm, "norm")(config) if config.embedding_norm else None
            self.dropout = nn.Dropout(config.dropout)
            self.residual = pick(RESIDUALS, config.residual, "residual")(config)
            self.value_embeddings = ValueEmbeddings(config, rows) if config.value_embeddings else None
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
            self.final_norm = pick(NORMS, config.norm, "norm")(config)
            self.head = None if config.tied_head else nn.Linear(config.n_embd, rows, bias=False)
        if device.type != "meta":
            self.take_memory(device)
            self.initialize()

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of the token after each of `tokens` (B, T), which follow those in the cache. Returns (B, T, V)."""
        return self.logits(self.hidden(tokens, cache))

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The residual stream after the last block, normalised. tokens: (B, T) int64. Returns (B, T, C).

        `dtype` is the stream's; None: that of the embedded tokens.
        """
        start = 0 if cache is None else cache.length
        self._check_length(start, tokens.shape[1])
        x, rotation = self.position_embedding(self.token_embedding(tokens), start)  # (B, T, C)
        x = x.to(dtype or x.dtype)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = first = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = self.residual(x, first, layer)
            extra_value = None if self.value_embeddings is None else self.value_embeddings(tokens, x, layer)
            x = block(x, rotation, cache, extra_value)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, V): one score for each real token; here the padding is cut off, and in the loss."""
        scores = F.linear(hidden, self.token_embedding.weight) if self.head is None else self.head(hidden)
        logits = scores[..., : self.config.vocab_size]
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits.float() / cap) if cap else logits

    def last_logits(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, V) of the token after the last of `tokens` (B, T), which follow those in the cache.

        Only the last position goes through the output head: at GPT-2's vocabulary the head is a third of the work.
        """
        return self.logits(self.hidden(tokens, cache)[:, -1:])[:, 0]

    def head_weight(self) -> Tensor:
        """The matrix that gives the logits, (V and its padding, C)."""
        return self.token_embedding.weight if self.head is None else self.head.weight

    def take_memory(self, device: torch.device | str) -> None:
        """Give a model made on the "meta" device memory on another one; it holds no values yet.

        That is torch's `to_empty`, which on its first call imports sympy, for 1 s and 40 MB.
        """
        self._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))

    def initialize(self) -> None:
        """Draw every weight anew, as the setting `initialization` says."""
        initialize(self, self.config, pick(INITIALIZATIONS, self.config.initialization, "initialization"))

    def _check_length(self, held: int, new: int) -> None:
        if new < 1:
            raise ValueError("got no tokens; expected at least 1 in each sequence")
        if held + new > self.config.context_length:
            got = f"{held + new} tokens ({held} in the cache, {new} new)"
            raise ValueError(f"got {got}; this model sees at most context_length = {self.config.context_length}")


def padded_vocab_size(vocab_size: int) -> int:
    """The rows of the embedding: the vocabulary rounded up to a multiple of `VOCAB_MULTIPLE`. 50,257 -> 50,304."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
