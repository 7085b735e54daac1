"""Generating text with a model.

- settings.py: the settings and their limits, without torch
- sampling.py: logits (B, V) to tokens (B,), pure functions
- engine.py: prefill and decode with a cache; from a prompt to samples
- text.py: tokens to text that can be shown at once; stop strings
- optimize.py, weights/: a model made faster for generation
"""
