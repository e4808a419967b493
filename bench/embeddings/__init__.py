"""Study of embeddings: what 8 and 6 bits for embedding and head cost in loss and save in memory.

``python -m bench.embeddings --out FILE.jsonl`` trains what ``plan`` asks for; with ``--summary`` it writes the results
of the trials that are there, and what fits common cards with each width.
"""
