"""Model-based search: the default structured search and the published trust-region Bayesian optimisation."""
