"""Hosts as network namespaces, with root or in a user namespace."""
