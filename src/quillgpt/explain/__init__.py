"""GPT-2 to read: in one file of bare tensors (gpt2.py), and the same as plain PyTorch (model.py, train.py).

This folder stands alone: it imports nothing else of quillgpt, and only the command `quill explain` imports it. Tests
hold all of it to the numbers of the real model.
"""
