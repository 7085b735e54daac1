"""The model: `gpt.py` is the page to read first, the files beside it are its parts."""
