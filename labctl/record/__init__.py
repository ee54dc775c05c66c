"""The record of a run: what happened, where that is kept, and what it adds up to."""
