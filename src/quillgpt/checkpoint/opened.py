"""Opening a model for use: the narrow waist that every command which needs a model goes through."""

from pathlib import Path

from quillgpt.checkpoint.in_the_box import place_of
from quillgpt.checkpoint.stored import ADAPTER, MODEL, TOKENIZER, Checkpoint, find
from quillgpt.config import ModelConfig
from quillgpt.model.gpt import GPT
from quillgpt.pretrained import open_foreign
from quillgpt.pretrained.adapted import Adapter, adapted, find_base
from quillgpt.pretrained.source import Source, Weights, load_model_from
from quillgpt.pretrained.tensor_files import SafetensorsFiles
from quillgpt.tokenizer import Tokenizer, load_tokenizer


def open_model(where: str | Path) -> Source:
    """The model that a user means: a run or checkpoint directory, or what `open_foreign` knows.

    gpt2, gpt2-medium, gpt2-large, gpt2-xl: OpenAI's; quill-python: the model in the box; a Hugging Face directory;
    nanoGPT's ckpt.pt or its directory. Nothing is fetched, and no tensor read, before the weights are wanted.
    """
    where = place_of(where)
    foreign = open_foreign(where)
    if foreign is not None:
        return foreign
    return as_source(find(where, model_only=True))


def as_source(checkpoint: Checkpoint) -> Source:
    """A checkpoint as what a model is loaded from; that of a LoRA run has its adapters merged into its base."""
    adapter = checkpoint.adapter
    source = Source(
        name=str(checkpoint.path),
        config=ModelConfig(**checkpoint.manifest["model"]),
        tokenizer_name=str(checkpoint.path / TOKENIZER),
        known_fingerprint=checkpoint.manifest["files"][checkpoint.weights_file]["sha256"],
        known_tokenizer_fingerprint=checkpoint.manifest["tokenizer"],
        open_weights=lambda: own_weights(checkpoint),
        open_tokenizer=lambda: load_tokenizer(checkpoint.path / TOKENIZER),
    )
    if adapter is None:
        return source
    return adapted(source, adapter, lambda: base_of(checkpoint, adapter), lambda: checkpoint.tensors(ADAPTER))


def base_of(checkpoint: Checkpoint, adapter: Adapter) -> Source:
    """The model that a checkpoint's adapters belong to, found where it lies now."""
    return find_base(adapter.base, checkpoint.path, open_model)


def load_model(where: str | Path, device: str = "cpu") -> tuple[GPT, Tokenizer]:
    """The model, in evaluation mode, and the tokenizer of a run, a published model or another project's file.

    `open_model` says what `where` may be, gpt2, ckpt.pt and quill-python among it; docs/pretrained.md tells more. The
    weights are fp32. A tokenizer that is missing is told when it is first used.

    For example:
        model, tokenizer = quillgpt.load_model("runs/python")
        tokens = torch.tensor([tokenizer.encode("def main")])
        with torch.no_grad():
            logits = model(tokens)[0, -1]  # of the token behind the text
        for token in logits.topk(3).indices.tolist():
            print(repr(tokenizer.decode([token])))
    """
    return load_model_from(open_model(where), device)


def own_weights(checkpoint: Checkpoint) -> Weights:
    """The weights of a checkpoint, under their own names."""
    return Weights(stored=SafetensorsFiles([checkpoint.path / MODEL]), place=lambda name: (name, False))
