"""Other projects' search methods as searchers, for comparison; ``bench.peers.registry`` names them."""
