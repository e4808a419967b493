"""Search methods of others as searchers, for comparison: importing ``bench.peers.registry`` names them as methods."""
