"""The model; start with `gpt.py`."""
