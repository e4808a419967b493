"""Length study: what mixed precision wins over the best uniform choice as training gets longer.

``python -m bench.length`` trains what ``plan`` asks for and appends every finished trial to ``trials.jsonl``;
``python -m bench.length --summary`` makes the table and the figure of the trials that are there.
"""
