"""GPT on one page, from the top down: the model, its blocks, self-attention, and what may be added to GPT-2.

With the default settings it is GPT-2 exactly [Radford 2019]; each variant is one setting and one line in a menu.
Shapes: B batch, T new tokens, S all tokens (with those in the cache), C channels, H heads, D head size, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quillgpt.config import ModelConfig
from quillgpt.errors import pick
from quillgpt.model.attention import attention_of
from quillgpt.model.initialization import INITIALIZATIONS, initialize
from quillgpt.model.kv_cache import KVCache
from quillgpt.model.mlp import MLPS
from quillgpt.model.norm import NORMS, rms_norm
from quillgpt.model.positions import POSITIONS, Rotation, rotate

VOCAB_MULTIPLE = 64  # matrix kernels are faster on round shapes: 50,257 tokens get 50,304 rows
GATE_CHANNELS = 12  # of the residual stream, read by the gate of a value embedding
GATE_SCALE = 2.0  # largest value of a gate, so that one with zero weights is 1


class GPT(nn.Module):
    """A GPT with random weights from torch's default generator; the same seed gives the same weights.

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
        new_norm = pick(NORMS, config.norm, "norm")
        device = torch.get_default_device()
        with torch.device("meta"):  # shapes only: torch's own initial weights would cost time and random numbers
            # nn.Embedding(...) would draw normal numbers, which even on "meta" imports the compiler, for seconds
            self.token_embedding = nn.Embedding.from_pretrained(torch.empty(rows, config.n_embd), freeze=False)
            self.position_embedding = pick(POSITIONS, config.position, "position").build(config)
            self.embedding_norm = new_norm(config) if config.embedding_norm else None
            self.dropout = nn.Dropout(config.dropout)
            self.residual = pick(RESIDUALS, config.residual, "residual")(config)
            self.value_embeddings = ValueEmbeddings(config, rows) if config.value_embeddings else None
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
            self.final_norm = new_norm(config)
            self.head = None if config.tied_head else nn.Linear(config.n_embd, rows, bias=False)
        if device.type != "meta":
            self.to_empty(device=device)
            self.initialize()

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of the token after each of `tokens` (B, T), which follow those in the cache. Returns (B, T, V)."""
        return self.logits(self.hidden(tokens, cache))

    def hidden(self, tokens: Tensor, cache: KVCache | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The residual stream after the last block, normalized. tokens: (B, T) int64. Returns (B, T, C).

        `dtype` is that of the residual stream; None: that of the embedded tokens. `ValueError` where the tokens, with
        those in the cache, are more than context_length.
        """
        start, new = 0 if cache is None else cache.length, tokens.shape[1]
        if new < 1:
            raise ValueError("got no tokens (must be at least 1 in each sequence)")
        if start + new > self.config.context_length:
            got = f"got {start + new} tokens ({start} in the cache, {new} new)"
            raise ValueError(f"{got}, more than context_length = {self.config.context_length}")
        x, rotation = self.position_embedding(self.token_embedding(tokens), start)  # (B, T, C)
        x = x.to(dtype or x.dtype)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = embedded = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = self.residual(x, embedded, layer)
            extra_value = None if self.value_embeddings is None else self.value_embeddings(tokens, x, layer)
            x = block(x, rotation, cache, extra_value)
        if cache is not None:
            cache.advance(new)
        return self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, V). The padding of the vocabulary is cut off here, and in the loss, and nowhere else."""
        scores = F.linear(hidden, self.token_embedding.weight) if self.head is None else self.head(hidden)
        logits = scores[..., : self.config.vocab_size]
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits.float() / cap) if cap else logits

    def last_logits(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, V) of the token after the last of `tokens` (B, T), which follow those in the cache.

        The output head is applied to the last position only: at GPT-2's vocabulary it is a third of the work.
        """
        return self.logits(self.hidden(tokens, cache)[:, -1:])[:, 0]

    def head_weight(self) -> Tensor:
        """The weight of the output head, (padded V, C)."""
        return self.token_embedding.weight if self.head is None else self.head.weight

    def to_empty(self, *, device: torch.device | str | int | None, recurse: bool = True) -> Self:
        """As torch's: uninitialized memory on `device`; without sympy, whose import costs it 1 s and 40 MB."""
        return self._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device), recurse=recurse)

    def initialize(self) -> None:
        """Draw all weights as the setting `initialization` says."""
        initialize(self, self.config, pick(INITIALIZATIONS, self.config.initialization, "initialization"))


def padded_vocab_size(vocab_size: int) -> int:
    """Rows of the token embedding: the vocabulary rounded up to a multiple of `VOCAB_MULTIPLE`. 50,257 -> 50,304."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class Block(nn.Module):
    """Self-attention and a feed-forward network, each on the normalized stream and added to it [Radford 2019, 2.3]."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        new_norm = pick(NORMS, config.norm, "norm")
        self.norm_1 = new_norm(config)
        self.attention = SelfAttention(config, layer)
        self.norm_2 = new_norm(config)
        self.mlp = pick(MLPS, config.mlp, "mlp").build(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotation: Rotation | None, cache: KVCache | None, extra_value: Tensor | None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.dropout(self.attention(self.norm_1(x), rotation, cache, extra_value))
        return x + self.dropout(self.mlp(self.norm_2(x)))


class SelfAttention(nn.Module):
    """Causal self-attention with H heads [Vaswani 2017, 3.2]; how a head attends is an entry of the attention menu."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.has_qk_norm = config.qk_norm
        self.dropout = config.dropout
        self.attention_function = attention_of(config)
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.projection = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def forward(
        self, x: Tensor, rotation: Rotation | None, cache: KVCache | None, extra_value: Tensor | None = None
    ) -> Tensor:
        """x: (B, T, C), the last T positions; those before them are in the cache. Returns (B, T, C).

        `extra_value` (B, H, T, D) is added to the values.
        """
        out = self.attend(*self.queries_keys_values(x, rotation, extra_value), cache)  # (B, H, T, D)
        return self.projection(out.transpose(1, 2).flatten(start_dim=2))

    def queries_keys_values(
        self, x: Tensor, rotation: Rotation | None, extra_value: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, T, D), normalized and rotated as set. x: (B, T, C)."""
        heads = self.qkv(x).view(*x.shape[:2], 3, self.n_head, -1).permute(0, 2, 3, 1, 4)  # (B, 3, H, T, D)
        if self.has_qk_norm or rotation is not None:
            # a split, whose backward pass is one concatenation; that of two slices would add two padded gradients
            queries_and_keys, value = heads.split((2, 1), dim=1)
            if self.has_qk_norm:
                queries_and_keys = rms_norm(queries_and_keys)
            if rotation is not None:
                queries_and_keys = rotate(queries_and_keys, rotation)
            query, key = queries_and_keys.unbind(1)
            value = value.squeeze(1)
        else:
            query, key, value = heads.unbind(1)
        return query, key, value if extra_value is None else value + extra_value.to(value.dtype)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, cache: KVCache | None) -> Tensor:
        """Append keys and values to the cache and attend to all of it, in the wider of the dtypes. All (B, H, T, D).

        An empty cache is not read back: a prompt is then computed as without a cache, by the faster kernel.
        """
        dtype = query.dtype
        if cache is not None:
            cached = cache.append(self.layer, key, value)  # each (B, H, S, D)
            if cache.length:
                key, value = cached
                wider = torch.promote_types(dtype, key.dtype)
                query, key, value = query.to(wider), key.to(wider), value.to(wider)  # copies a narrower cache
        return self.attention_function(query, key, value, dropout=self.dropout if self.training else 0.0).to(dtype)


class PlainResidual(nn.Module):
    """The residual stream as it is [He 2016]."""

    def forward(self, x: Tensor, embedded: Tensor, layer: int) -> Tensor:
        """x, embedded: (B, T, C). Returns x."""
        return x


class WeightedResidual(nn.Module):
    """A weighted sum of the residual stream and the embedded tokens, two learned numbers a block [Jordan 2024b].

    They are initialized as 1 and 0, which is the plain stream.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stream_share = nn.Parameter(torch.empty(config.n_layer))
        self.first_share = nn.Parameter(torch.empty(config.n_layer))

    def forward(self, x: Tensor, embedded: Tensor, layer: int) -> Tensor:
        """x, embedded: (B, T, C). Returns (B, T, C)."""
        return self.stream_share[layer] * x + self.first_share[layer] * embedded


RESIDUALS: Mapping[str, Callable[[ModelConfig], nn.Module]] = {
    "plain": lambda config: PlainResidual(),
    "mixed": WeightedResidual,
}
"""The input of a block: a module of the stream and the embedded tokens, both (B, T, C), and the number of the block."""


class ValueEmbeddings(nn.Module):
    """A second embedding of each token, gated head by head and added to the attention's values [Jordan 2024b].

    The last block has one, and every second block before it.
    """

    def __init__(self, config: ModelConfig, rows: int) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.layers = list(range((config.n_layer - 1) % 2, config.n_layer, 2))
        self.tables = nn.ParameterList(nn.Parameter(torch.empty(rows, config.n_embd)) for _ in self.layers)
        channels = min(GATE_CHANNELS, config.n_embd)
        self.gates = nn.ParameterList(nn.Parameter(torch.empty(config.n_head, channels)) for _ in self.layers)

    def forward(self, tokens: Tensor, x: Tensor, layer: int) -> Tensor | None:
        """What is added to a block's values, (B, H, T, D); None for a block without. tokens: (B, T), x: (B, T, C)."""
        logits = self.gate_logits(x, layer)
        if logits is None:
            return None
        value = F.embedding(tokens, self.tables[self.layers.index(layer)]).to(x.dtype)  # (B, T, C)
        value = GATE_SCALE * torch.sigmoid(logits)[..., None] * value.unflatten(-1, (self.n_head, -1))  # (B, T, H, D)
        return value.transpose(1, 2)

    def gate_logits(self, x: Tensor, layer: int) -> Tensor | None:
        """The argument of the gates' sigmoid, (B, T, H); None for a block without. x: (B, T, C)."""
        if layer not in self.layers:
            return None
        gate = self.gates[self.layers.index(layer)]
        return F.linear(x[..., : gate.shape[1]], gate)
