"""Tables of the documentation, made from the files in ``bench/results``.

A page names a table in a comment and holds its text up to the next one; ``python -m bench.pages`` writes all of them
anew. A test fails while a page holds another text than its results file gives.
"""
