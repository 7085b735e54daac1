"""GPT-2 to read: one file of bare tensors (gpt2.py), and the same as plain PyTorch (pytorch.py).

Imports nothing else of quillgpt, and only the command `quill explain` imports it. Tests check that both files compute
the numbers of the real model.
"""
