"""The model for transformers where it is not a GPT-2; `one_file.py` makes files of these that need no quillgpt.

They are imported by nothing here; transformers loads what was made of them.
"""
