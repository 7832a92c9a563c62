"""Experiments: each a command that trains something, prints what it found, and writes JSON and a plot."""
