"""Fetching: what img2dataset is run with, and what each of its processes does."""
