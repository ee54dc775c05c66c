"""The record of a run: what happened, the files that keep it, and what it adds up to."""
