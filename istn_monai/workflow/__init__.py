"""What the bundle's configs call, and nothing else.

Wall: only workflow itself, registration and the commands (``__main__``) import workflow.
"""

from istn_monai._lazy import lazy

__getattr__, __all__ = lazy(__name__, {})
