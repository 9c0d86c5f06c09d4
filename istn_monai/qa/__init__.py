"""Judging a registered pair: rules, measures, the page and the cohort.

Wall: qa judges pairs and never makes them; it imports neither workflow nor registration.
"""
