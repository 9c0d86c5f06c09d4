"""The inputs of reliability.py, by kind, and how they are run and judged."""
