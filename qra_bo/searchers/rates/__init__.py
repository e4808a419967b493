"""Exchange rates between bits and ranks: the model and its files. No torch."""
