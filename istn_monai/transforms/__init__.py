"""MONAI dictionary transforms of a pair, for any ``Compose``."""
