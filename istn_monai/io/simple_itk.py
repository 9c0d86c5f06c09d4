"""SimpleITK, the one place that imports it, and what it says while it works.

SimpleITK's images and transforms are ITK's, and it loads twenty times faster than itk's own wrappers. A machine that
trains has perhaps none: all of the package is imported without it, and the first use of it says what is missing.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import SimpleITK as sitk
else:
    from monai.utils import optional_import

    sitk, _ = optional_import("SimpleITK")

__all__ = ["NotWhole", "last_line", "one_at_a_time", "sitk", "warnings_are_errors", "warnings_shown"]
#: Held by whoever uses what all threads of a process share: HDF5, which is not safe in threads (two that write .h5 at
#: once break each other's files) although SimpleITK lets Python go on meanwhile, and ITK's switch for warnings.
one_at_a_time = threading.RLock()
if hasattr(os, "register_at_fork"):  # a process forked meanwhile (workers of a DataLoader) must find it free
    os.register_at_fork(
        before=one_at_a_time.acquire, after_in_parent=one_at_a_time.release, after_in_child=one_at_a_time.release
    )
ADDRESS = re.compile(r" ?\(0x[0-9a-f]+\)")


def last_line(said: BaseException | str) -> str:
    """The last line of what an error, or ITK, says, without the addresses that ITK names: readers write pages."""
    lines = [line.strip() for line in ADDRESS.sub("", str(said)).splitlines() if line.strip()]
    return lines[-1] if lines else type(said).__name__


@contextmanager
def warnings_shown(shown: bool) -> Iterator[None]:
    """Whether ITK's warnings are shown, whatever the user has set, who finds it so again."""
    with one_at_a_time:
        before = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
        try:
            yield
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(before)


class NotWhole(RuntimeError):
    """SimpleITK warned while it read a file."""


@contextmanager
def warnings_are_errors() -> Iterator[None]:
    """Raises :class:`NotWhole` for what SimpleITK only warns of, whatever its user has set about warnings.

    Of several transforms in one file SimpleITK takes the first and says so in a warning: the others would be lost.
    """

    class Listener(sitk.LoggerBase):
        """Keeps what ITK says."""

        def __init__(self) -> None:
            super().__init__()
            self.heard: list[str] = []

        def DisplayText(self, text: str) -> None:
            """Any message."""
            self.heard.append(text)

        DisplayErrorText = DisplayWarningText = DisplayGenericOutputText = DisplayDebugText = DisplayText

    listener = Listener()
    with warnings_shown(True):
        before = listener.SetAsGlobalITKLogger()
        try:
            yield
        finally:
            before.SetAsGlobalITKLogger()
    if listener.heard:
        raise NotWhole(last_line(listener.heard[0]))
