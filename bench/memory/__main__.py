"""``python -m bench.memory``: see ``traces``, which a process that traces imports by its name."""

from bench.memory.traces import main

if __name__ == "__main__":
    main()
