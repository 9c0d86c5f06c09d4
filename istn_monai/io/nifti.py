"""NIfTI files written a slab at a time, compressed by several threads.

Convention:
    A compressed file is one gzip member, as any reader takes it. Its blocks are compressed apart from each other, as
    ``pigz --independent`` does it, at the lowest level: a displacement field hardly becomes smaller at a higher one,
    which takes many times as long.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

WRITTEN_SUFFIXES = (".nii.gz", ".nii")
LEVEL = 1
BLOCK = 2**24  # bytes: fewer planes at once would read each line of memory several times
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"  # deflate, no name, no time, fastest, unknown system
LAST_BLOCK = b"\x03\x00"  # an empty one


def deflated(block: bytes | memoryview) -> bytes:
    """A block of a gzip member, which neither refers to an earlier one nor ends the member."""
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(block) + compressor.flush(zlib.Z_FULL_FLUSH)


def gzipped(blocks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """A gzip file of blocks, in pieces, compressed by as many threads as torch uses.

    Examples:
        >>> import gzip
        >>> gzip.decompress(b"".join(gzipped([b"one ", b"and two"])))
        b'one and two'
    """
    threads = torch.get_num_threads()
    checksum, length = 0, 0
    pending: deque[Future[bytes]] = deque()
    yield GZIP_HEADER
    with ThreadPoolExecutor(threads) as pool:
        for block in blocks:
            checksum, length = zlib.crc32(block, checksum), length + memoryview(block).nbytes
            pending.append(pool.submit(deflated, block))
            if len(pending) > threads:  # bounds what waits in memory
                yield pending.popleft().result()
        for piece in pending:
            yield piece.result()
    yield LAST_BLOCK + struct.pack("<II", checksum, length % 2**32)


def slabs_of(volume: np.ndarray) -> Iterator[np.ndarray]:
    """A volume in views of whole planes of its last axis, ``BLOCK`` bytes or one plane each."""
    planes = max(1, BLOCK // max(1, volume[..., :1].nbytes))
    for first in range(0, volume.shape[-1], planes):
        yield volume[..., first : first + planes]


def write_nifti(header: nib.Nifti1Header, slabs: Iterable[np.ndarray], file: Path) -> None:
    """Writes a NIfTI file, ``.nii`` or ``.nii.gz``.

    Args:
        header: with shape and dtype.
        slabs: that make up its voxels one after another along the last axis, see :func:`slabs_of`.
        file: to write.
    """
    header = header.copy()
    header["vox_offset"] = 352
    dtype = header.get_data_dtype()
    # first axis fastest; the four bytes say that there are no extensions
    voxels = (np.ascontiguousarray(slab.T, dtype=dtype).data.cast("B") for slab in slabs)
    blocks = chain([memoryview(header.binaryblock + bytes(4))], voxels)
    with open(file, "wb") as output:
        for piece in gzipped(blocks) if file.suffix == ".gz" else blocks:
            output.write(piece)


def check_written_suffix(file: Path, what: str = "an image") -> None:
    """ValueError unless images are written under such a name; anything else would become the name of another file."""
    if not file.name.endswith(WRITTEN_SUFFIXES):
        raise ValueError(f"{what} is written as one of {WRITTEN_SUFFIXES}, got {file.name}")
