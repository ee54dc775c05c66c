"""Tests, and what they share."""

import os

CI = os.environ.get("CI") == "true"
"""Whether this is CI: there nothing is skipped, and more is tried."""
