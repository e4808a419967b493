"""Programs for people who work on the project; the product imports none of them."""
