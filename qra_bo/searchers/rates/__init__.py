"""Exchange rates between bits and ranks: the model, what studies teach of it, and their files. No torch."""
