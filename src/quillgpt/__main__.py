"""`python -m quillgpt` is `quill`."""

from quillgpt.cli.main import main

main()
