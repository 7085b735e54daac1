"""Reports on one or several runs: an HTML page, PNG figures for a paper, or text in a terminal.

`runs.py` reads the runs, `page.Report` is what a report says of them, shown by `page.py`, `plot.py` and `terminal.py`.
Whether one run is better than another is the question of `quill compare`.
"""
