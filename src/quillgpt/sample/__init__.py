"""Writing text with a model.

- settings.py: what can be asked for, and its limits (without torch)
- sampling.py: logits (B, V) to tokens (B,), pure functions
- generator.py: a model with its cache: prefill, then decode (knows no text)
- text.py: tokens to text that can be shown at once; stop strings
- weights/: the menu of forms that weights can be kept in: as they are, int8, int4
- prepare.py: a model made ready to generate fast: weights in another form, compiled (compiled.py)
- generate.py: from a prompt to samples, the parts above put together
"""
