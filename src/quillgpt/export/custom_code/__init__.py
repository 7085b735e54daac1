"""The model for transformers where it is not a GPT-2: `one_file.py` turns these modules into files that need only torch.

They are imported by nothing here; transformers loads what was made of them.
"""
