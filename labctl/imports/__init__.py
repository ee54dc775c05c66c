"""Captures from elsewhere: they become a run directory, as if a lab had recorded them."""
