"""What everything stands on: it knows nothing of labs, and nothing of TCP."""
