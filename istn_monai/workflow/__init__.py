"""What the bundle's configs call, and nothing else."""

from istn_monai._lazy import lazy

__getattr__, __all__ = lazy(__name__, {})
