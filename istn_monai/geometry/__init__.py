"""Maps and sampling: displacement fields, transformations, grids, world points.

Wall: geometry knows no file, no pair and no network; it imports nothing of this package but itself.
"""
