"""Search methods of others as searchers, for comparison: ``bench.peers.registry`` knows them by name."""
