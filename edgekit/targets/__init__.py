"""Targets: what a compressed model is exported to, one a file."""
