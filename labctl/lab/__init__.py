"""A lab in use: its hosts, what they are told and what they say."""
