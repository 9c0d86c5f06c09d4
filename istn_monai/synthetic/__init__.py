"""The paper's toy: pairs of vessel trees in a misleading box, with known transformations.

Wall: synthetic data are files like any others; synthetic imports io, geometry and itself alone.
"""
