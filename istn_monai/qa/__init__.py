"""Judging a registered pair: rules, measures, the page, the viewer and the cohort.

Wall: qa judges pairs and never makes them; it imports neither workflow nor registration.
"""

from istn_monai._lazy import lazy

__getattr__, __all__ = lazy(__name__, {"viewer": ["View", "show"]})
