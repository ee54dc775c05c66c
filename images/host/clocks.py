"""The two clocks of a host's reports: one for events, the other for packets.

Standard library only, Python 3.6 or later.
"""

import time

READINGS = 5


def both(monotonic=time.monotonic, wall=time.time):
    """CLOCK_MONOTONIC and CLOCK_REALTIME at one moment: the closest of a few readings. Another
    program may run for milliseconds between the two clocks, which would shift all packets."""
    readings = []
    for _ in range(READINGS):
        before, now, after = monotonic(), wall(), monotonic()
        readings.append((after - before, (before + after) / 2, now))
    _, t, now = min(readings)
    return t, now
