"""Text becomes tokens on disk (`prepare`), and tokens on disk become batches (`token_dataset`, `loader`)."""

from quillgpt.data.dataset import TokenDataset, load_data_tokenizer

__all__ = ["TokenDataset", "load_data_tokenizer"]
