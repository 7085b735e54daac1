"""What one run or several did, for a reader: a page of one file, figures for a paper, or text for a terminal.

`subject.py` reads a run and `contents.py` says what is told of it; `page.py`, `figure_files.py` and `terminal.py` are
the three ways to show that. Nothing here judges: whether one run is better than another is `quill compare`.
"""
