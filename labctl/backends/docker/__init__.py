"""Hosts and processes as containers of a Docker engine."""
