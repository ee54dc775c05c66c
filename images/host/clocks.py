"""The clocks of what a host reports: events are told by one, packets by the other.

Standard library only, Python 3.6 or later.
"""

import time

READINGS = 5


def both():
    """CLOCK_MONOTONIC and CLOCK_REALTIME at one moment. The closest of a few readings: other
    programs may run between two of them, for milliseconds, which would shift all packets."""
    readings = []
    for _ in range(READINGS):
        before, wall, after = time.monotonic(), time.time(), time.monotonic()
        readings.append((after - before, (before + after) / 2, wall))
    _, t, wall = min(readings)
    return t, wall
