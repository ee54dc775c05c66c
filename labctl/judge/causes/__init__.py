"""Causes of what happened in a run, by rules over its history; see rules.py."""
