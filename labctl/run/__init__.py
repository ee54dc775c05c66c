"""Where cases run, and how: here, side by side, in guests."""
