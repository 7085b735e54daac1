"""Writing text with a model.

- settings.py: what can be asked for, and its limits (without torch)
- sampling.py: logits (B, V) to tokens (B,), pure functions
- generator.py: a model with its cache: prefill, then decode (knows no text)
- text.py: tokens to text that can be shown at once; stop strings
- generate.py: from a prompt to samples, the parts above put together
"""
