"""Maps and sampling: displacement fields, transformations, grids, world points; imports nothing of the other rooms."""
