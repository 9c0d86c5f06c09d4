"""MONAI dictionary transforms of a pair, for any ``Compose``.

Wall: transforms know neither the bundle nor who judges its results; they import no workflow, qa or registration.
"""
