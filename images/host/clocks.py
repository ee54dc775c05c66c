"""The clocks of what a host reports: events are told by one, packets by the other.

Standard library only, Python 3.6 or later.
"""

import time

READINGS = 5


def both(monotonic=time.monotonic, wall=time.time):
    """CLOCK_MONOTONIC and CLOCK_REALTIME at one moment. The closest of a few readings: other
    programs may run between two of them, for milliseconds, which would shift all packets."""
    readings = []
    for _ in range(READINGS):
        before, now, after = monotonic(), wall(), monotonic()
        readings.append((after - before, (before + after) / 2, now))
    _, t, now = min(readings)
    return t, now
