"""Training: `loop.py` is the one function that trains; the other files are the parts it names."""
