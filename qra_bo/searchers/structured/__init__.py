"""The default search: a structured surrogate over sensitivities, proposals by knapsacks."""
