"""A lab in use: its hosts, messages to them and from them."""
