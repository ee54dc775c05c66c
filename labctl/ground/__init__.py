"""What everything else uses: it knows nothing of labs, and nothing of TCP."""
