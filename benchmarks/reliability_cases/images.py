"""Images that cannot be registered, and odd ones that can."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from reliability_cases.files import (
    AFFINES,
    FLAT,
    SIZE,
    F,
    M,
    both,
    changed,
    content,
    flipped_bit,
    header,
    orthogonal,
    put,
    register,
    registered,
    save,
    voxels,
    with_voxel,
)
from reliability_cases.judge import Expected
from reliability_cases.runner import Case

KIND = "images"
SIDE = {M: "moving", F: "fixed"}


def bad(name: str, make: Callable[[], None], file: str = M, *more: str) -> Case:
    """An image that must end with a line that names the file or its role, in its own place of the pair."""
    role = SIDE.get(file, "moving")
    command = register(moving=file) if role == "moving" else register(fixed=file)
    words = (Path(file).name, f"{role}_image", f"{role} image", *more)
    return Case(KIND, name, command, Expected("fails", words), make)


def good(
    name: str, make: Callable[[], None], file: str = M, reference: str | None = None, ending: str = "works"
) -> Case:
    """An odd image that must be registered as ITK sees it (or as ITK sees ``reference``, which holds the same)."""
    moving, fixed = (file, F) if file != F else (M, F)
    check = registered(moving=(reference or file) if file != F else M, fixed=(reference or file) if file == F else F)
    return Case(
        KIND,
        name,
        register(moving=moving, fixed=fixed),
        Expected(ending, (Path(file).name, SIDE.get(file, "moving"), F)),
        make,
        check,
    )


def cases() -> Iterator[Case]:
    """All of them."""
    yield from values()
    yield from damaged()
    yield from no_files()
    yield from shapes()
    yield from types()
    yield from affines()
    yield from bombs()
    yield from formats()


def values() -> Iterator[Case]:
    """Voxels that no registration can use."""
    for value in ("nan", "inf", "-inf", "1e300", "-1e300", "1e39"):
        yield bad(f"one voxel of {value}", changed(with_voxel(float(value))))
        yield bad(f"one voxel of {value}, fixed", changed(with_voxel(float(value)), F), F)
    yield bad("one voxel of nan, float32", changed(with_voxel(np.nan, np.float32)))
    yield bad("all nan", changed(lambda array: np.full_like(array, np.nan)))
    yield bad("all voxels times 1e300", changed(lambda array: array.astype(np.float64) * 1e300))
    yield bad("all zero", changed(np.zeros_like))
    yield bad("all 7, fixed", changed(lambda array: np.full_like(array, 7), F), F)
    small = changed(lambda array: 1e9 + 1e-3 * array.astype(np.float64) / array.max())
    yield good("constant once in float32", small, ending="either")
    yield good("tiny values, 1e-30", changed(lambda array: (array * 1e-33).astype(np.float64)), ending="either")
    yield good("large values, 1e30", changed(lambda array: array.astype(np.float64) * 1e27), ending="either")
    yield good(
        "int32 near 2^30 in steps of 1", changed(lambda array: (2**30 + array).astype(np.int32)), ending="either"
    )
    yield good("negative values", changed(lambda array: array - 5000))
    scaled = header(lambda old: [put(112, [0.5], "<f4")(old), put(116, [-100], "<f4")(old)])
    yield good("slope and intercept", scaled, "m.nii")
    infinite = header(put(112, [np.inf], "<f4"))
    yield Case(
        KIND,
        "infinite slope",
        register(moving="m.nii"),
        Expected("either", ("m.nii",)),
        infinite,
        registered(moving="m.nii"),
    )


def damaged() -> Iterator[Case]:
    """Files that are not whole."""
    yield bad("empty .nii.gz", content(M, b""))
    yield bad("one byte", content(M, b"\x1f"))
    yield bad("empty .nii", content("m.nii", b""), "m.nii")
    for fraction in (0.02, 0.25, 0.5, 0.9):
        yield bad(f".nii.gz truncated at {fraction:.0%}", content(M, lambda old, f=fraction: old[: int(f * len(old))]))
    for size in (1, 4, 8):
        yield bad(f".nii.gz without its last {size} bytes", content(M, lambda old, n=size: old[:-n]))
    yield bad("fixed .nii.gz without its last 4 bytes", content(F, lambda old: old[:-4]), F)
    for size in (100, 348, 352, 5000):
        yield bad(
            f".nii truncated at {size} bytes", header(lambda old, n=size: old.__delitem__(slice(n, None))), "m.nii"
        )
    yield bad(".nii without its last byte", header(lambda old: old.__delitem__(slice(-1, None))), "m.nii")
    for place in (0.3, 0.6, 0.95):
        yield bad(f"bit flip in .nii.gz at {place:.0%}", content(M, flipped_bit(place)))
    yield bad("bit flip in the checksum", content(M, flipped_bit(-6)))
    yield bad("bit flip in the length", content(M, flipped_bit(-2)))
    yield bad("garbage instead of deflate", content(M, lambda old: old[:12] + os.urandom(500)))
    yield bad("wrong magic", header(put(344, [ord("x")], "u1")), "m.nii")
    yield bad("a text file", content(M, "not an image\n"))
    yield bad("a web page", content(M, "<html><body>404</body></html>\n"))
    yield bad("text under .nii", content("m.nii", "not an image\n" * 200), "m.nii")
    yield bad("zeros", content("m.nii", bytes(20000)), "m.nii")
    lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    yield bad("a pointer of Git LFS", content(M, lfs))


def no_files() -> Iterator[Case]:
    """What is no file at all."""
    yield bad("missing", lambda: os.remove(M))
    yield bad("missing, fixed", lambda: os.remove(F), F)
    yield bad("an empty folder", lambda: os.mkdir("folder"), "folder")
    yield bad("a folder .nii.gz", lambda: os.mkdir("m2.nii.gz"), "m2.nii.gz")
    yield bad("a folder with a text file", content("folder/notes.txt", "text"), "folder")
    yield bad("a broken link", lambda: os.symlink("nowhere.nii.gz", "link.nii.gz"), "link.nii.gz")
    yield bad("a link to itself", lambda: os.symlink("loop.nii.gz", "loop.nii.gz"), "loop.nii.gz")
    yield bad("a pipe", lambda: os.mkfifo("pipe.nii.gz"), "pipe.nii.gz")
    yield bad("/dev/null", lambda: os.symlink("/dev/null", "null.nii.gz"), "null.nii.gz")
    yield bad("/dev/zero", lambda: os.symlink("/dev/zero", "zero.nii"), "zero.nii")
    yield bad("an empty name", lambda: None, "")
    yield good("a link to the file", lambda: os.symlink(M, "link.nii.gz"), "link.nii.gz")


def shapes() -> Iterator[Case]:
    """Sizes and axes."""
    yield bad("2-D for 3-D weights", lambda: save(voxels()[:, :, 9], M))
    yield bad("one slice", lambda: save(voxels()[:, :, 9:10], M))
    yield bad("one slice, fixed", lambda: save(voxels(F)[:, :, 9:10], F), F)
    yield bad("one row", lambda: save(voxels()[:, 9:10, 9:10], M))
    yield bad("one voxel", lambda: save(voxels()[9:10, 9:10, 9:10], M))
    yield bad("two volumes", lambda: save(np.stack([voxels(), voxels()], -1), M))
    yield bad("three volumes, fixed", lambda: save(np.stack([voxels(F)] * 3, -1), F), F)
    yield bad("5-D vectors", lambda: save(np.stack([voxels()] * 3, -1)[:, :, :, None], M))
    yield bad("6-D", lambda: save(np.stack([voxels()] * 2, -1)[:, :, :, None, None], M))
    yield Case(
        KIND,
        "one volume in 4-D",
        register(),
        Expected("either", (M, "moving_image")),
        lambda: save(voxels()[..., None], M),
    )
    for name, dims in {
        "an axis of 0": [3, 0, 24, 18],
        "an axis of -5": [3, -5, 24, 18],
        "no axis": [0, 20, 24, 18],
        "9 axes": [9, 20, 24, 18],
        "-1 axes": [-1, 20, 24, 18],
    }.items():
        yield bad(f"header with {name}", header(put(40, dims, "<i2")), "m.nii")
    yield bad("data offset beyond the file", header(put(108, [1e9], "<f4")), "m.nii")
    yield bad("data offset negative", header(put(108, [-400], "<f4")), "m.nii")
    yield bad("data offset nan", header(put(108, [np.nan], "<f4")), "m.nii")
    yield bad("unknown data type", header(put(70, [9999], "<i2")), "m.nii")

    def two():
        return save(voxels()[9:11, 9:11, 9:11], M)

    yield Case(KIND, "2 x 2 x 2 voxels", register(), Expected("either", (M, "moving_image")), two)


def types() -> Iterator[Case]:
    """Numbers of all kinds."""
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "uint64", "float64"):
        top = min(1000, np.iinfo(name).max) if np.dtype(name).kind in "iu" else 1000
        low = -top if np.dtype(name).kind == "i" else 0

        def stretched(array, n=name, a=low, b=top):
            return np.interp(array, [array.min(), array.max()], [a, b]).astype(n)

        yield good(f"{name}", changed(stretched))
    for name in ("int16", "float32"):
        yield good(f"big-endian {name}", lambda n=name: big_endian(n), "big.nii")
    yield good("0 and 1 as uint8", changed(lambda array: (array > np.median(array)).astype(np.uint8)))
    yield bad("complex64", changed(lambda array: array.astype(np.complex64)))
    yield bad("complex128, fixed", changed(lambda array: array.astype(np.complex128), F), F)
    colors = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])

    def rgb(array):
        return np.ascontiguousarray(np.stack([array] * 3, -1).astype("u1")).view(colors)[..., 0]

    yield bad("RGB24", changed(rgb))
    colors4 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")])

    def rgba(array):
        return np.ascontiguousarray(np.stack([array] * 4, -1).astype("u1")).view(colors4)[..., 0]

    yield bad("RGBA32", changed(rgba))
    yield bad("header of float128", header(put(70, [1536, 128], "<i2")), "m.nii")
    yield bad("1 bit", header(put(70, [1, 1], "<i2")), "m.nii")


def big_endian(name: str) -> None:
    """Writes big.nii with its bytes the other way round."""
    old = nib.load(M)
    head = old.header.copy().as_byteswapped(">")
    head.set_data_dtype(np.dtype(name).newbyteorder(">"))
    nib.save(nib.Nifti1Image(np.asarray(old.dataobj).astype(np.dtype(name).newbyteorder(">")), None, head), "big.nii")


def with_sform(matrix: np.ndarray, codes: tuple[int, int] = (0, 2)) -> Callable[[], None]:
    """Writes m.nii with rows of an affine as they are, and codes of qform and sform."""
    return header(lambda old: [put(280, matrix[:3].ravel().tolist(), "<f4")(old), put(252, codes, "<i2")(old)])


def affines() -> Iterator[Case]:
    """Where an image lies."""
    plain = orthogonal(AFFINES[M])
    broken = {}
    for name, value in {"nan": np.nan, "infinite": np.inf}.items():
        broken[f"{name} sform"] = np.where(np.eye(4) > 0, value, plain)
        broken[f"{name} origin"] = np.where(np.indices((4, 4))[1] == 3, value, plain)
    broken["zero sform"] = np.zeros((4, 4))
    broken["singular sform"] = plain * [1, 1, 0, 1]
    broken["two equal columns"] = plain[:, [0, 0, 2, 3]]
    for name, matrix in broken.items():
        yield bad(name, with_sform(matrix), "m.nii")
        yield good(f"{name}, qform sound", with_sform(matrix, (1, 1)), "m.nii", ending="either")
    sheared = plain.copy()
    sheared[0, 1] += 0.3
    yield good("sheared sform", with_sform(sheared), "m.nii", ending="either")
    yield good("sform of other voxel sizes", with_sform(plain * [3, 1, 1, 1]), "m.nii", ending="either")
    zero = header(lambda old: [put(80, [0, 0, 0], "<f4")(old), put(252, [1, 0], "<i2")(old)])
    yield good("spacing of 0", zero, "m.nii", ending="either")  # which ITK and nibabel take for 1
    yield bad(
        "spacing of nan", header(lambda old: [put(80, [np.nan] * 3, "<f4")(old), put(252, [1, 0], "<i2")(old)]), "m.nii"
    )
    yield good("left-handed axes", with_sform(plain @ np.diag([-1, 1, 1, 1.0])), "m.nii")
    turned = orthogonal(AFFINES[M])
    angle = np.deg2rad(25)
    turned[:2, :3] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ turned[:2, :3]
    yield good("oblique axes", lambda: save(voxels(), M, turned))
    for scale in (1e-3, 1e3):
        make = both(*(lambda f=file, s=scale: save(voxels(f), f, orthogonal(AFFINES[f]) * s) for file in (M, F)))
        yield good(f"voxels of {scale:g} mm", make, ending="either")
    far = plain + np.where(np.indices((4, 4))[1] == 3, 1e6, 0) * [[1], [1], [1], [0]]
    yield good("1 km away", lambda: save(voxels(), M, far), ending="either")


def bombs() -> Iterator[Case]:
    """Small files with large headers, or large contents."""

    def huge(old):
        return put(40, [3, 1500, 1500, 1500], "<i2")(old)

    yield bad("header of 1500^3, .nii", header(huge), "m.nii")
    yield bad("header of 1500^3, .nii.gz", compressed_header([1500] * 3), "h.nii.gz")
    yield bad("header of 32767^3, .nii.gz", compressed_header([32767] * 3), "h.nii.gz")
    yield bad("header of 32767^3, fixed", both(compressed_header([32767] * 3), lambda: os.replace("h.nii.gz", F)), F)
    yield bad("zeros of 800^3 in gzip", compressed_zeros(800, members=False), "z.nii.gz")
    yield bad("zeros of 800^3 in many gzip members", compressed_zeros(800, members=True), "z.nii.gz")
    for name, text in {
        "h.mha": "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 1500 1500 1500\nElementSpacing = 1 1 1\n"
        "ElementType = MET_FLOAT\nElementDataFile = LOCAL\n",
        "h.nrrd": "NRRD0004\ntype: float\ndimension: 3\nsizes: 1500 1500 1500\nencoding: raw\nendian: little\n"
        "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n\n",
    }.items():
        yield bad(f"header of 1500^3, .{name[2:]}", content(name, text.encode() + bytes(1000)), name)


def bomb_header(size: list[int], dtype: str) -> bytes:
    """352 bytes of NIfTI."""
    head = nib.Nifti1Header()
    head.set_data_dtype(dtype)
    raw = bytearray(head.binaryblock + bytes(4))
    put(40, [3, *size], "<i2")(raw)
    put(252, [0, 1], "<i2")(raw)
    put(280, np.eye(4)[:3].ravel().tolist(), "<f4")(raw)
    put(108, [352], "<f4")(raw)
    raw[344:348] = b"n+1\0"
    return bytes(raw)


def compressed_header(size: list[int]) -> Callable[[], None]:
    """Writes h.nii.gz: a header, and few voxels."""
    return content("h.nii.gz", gzip.compress(bomb_header(size, "<f4") + bytes(75000)))


def compressed_zeros(side: int, members: bool) -> Callable[[], None]:
    """Writes z.nii.gz: whole, all zero, and small; in one stream, or as many short ones."""

    def make() -> None:
        chunk, head = bytes(2**20), bomb_header([side] * 3, "<u1")
        number = -(-(side**3) // len(chunk))
        with open("z.nii.gz", "wb") as file:
            if members:
                file.write(gzip.compress(head) + gzip.compress(chunk, 1) * number)
                return
            packer = zlib.compressobj(1, zlib.DEFLATED, 31)
            file.write(packer.compress(head))
            for _ in range(number):
                file.write(packer.compress(chunk))
            file.write(packer.flush())

    return make


def as_format(name: str, change: Callable[[Any], Any] = lambda image: image) -> Callable[[], None]:
    """Writes the moving image with ITK."""

    def make() -> None:
        import SimpleITK as sitk

        sitk.WriteImage(change(sitk.ReadImage(M)), name)

    return make


def formats() -> Iterator[Case]:
    """Other files than .nii.gz."""
    for name in ("n.nii", "n.mha", "n.mhd", "n.nrrd", "n.NII.GZ"):
        make = (lambda: nib.save(nib.load(M), "n.nii")) if name == "n.nii" else as_format(name)
        make = (lambda: Path("n.NII.GZ").write_bytes(Path(M).read_bytes())) if name == "n.NII.GZ" else make
        yield good(f"valid {name[1:]}", make, name, M, "either" if name == "n.NII.GZ" else "works")
    yield bad(".mhd without its .raw", both(as_format("n.mhd"), lambda: os.remove("n.raw")), "n.mhd", "n.raw")
    yield bad(".mha truncated", both(as_format("n.mha"), content("n.mha", lambda old: old[: len(old) // 2])), "n.mha")
    yield bad(".nrrd truncated", both(as_format("n.nrrd"), content("n.nrrd", lambda old: old[:-100])), "n.nrrd")
    yield bad(
        ".raw of .mhd truncated", both(as_format("n.mhd"), content("n.raw", lambda old: old[:100])), "n.mhd", "n.raw"
    )
    yield bad(".mha of three channels", as_format("n.mha", vector), "n.mha")
    for name, make in {
        ".nii.gz that is not compressed": both(
            lambda: nib.save(nib.load(M), "n.nii"), lambda: os.replace("n.nii", "n.nii.gz")
        ),
        ".nii that is compressed": lambda: Path("n.nii").write_bytes(Path(M).read_bytes()),
        ".mha with a NIfTI file in it": lambda: Path("n.mha").write_bytes(Path(M).read_bytes()),
        ".png with a NIfTI file in it": lambda: Path("n.png").write_bytes(Path(M).read_bytes()),
        "no suffix": lambda: Path("nifti").write_bytes(Path(M).read_bytes()),
        ".txt with a NIfTI file in it": lambda: Path("n.txt").write_bytes(Path(M).read_bytes()),
    }.items():
        file = {"no": "nifti", ".txt": "n.txt", ".png": "n.png", ".mha": "n.mha"}.get(
            name.split()[0], "n" + name.split()[0]
        )
        yield good(name, make, file, M, "either")
    yield bad("PNG for 3-D weights", lambda: png("n.png"), "n.png")
    yield bad(".nii.gz with a PNG in it", both(lambda: png("n.png"), lambda: os.replace("n.png", M)))
    yield from flat()


def vector(image: Any) -> Any:
    """Three channels of an ITK image."""
    import SimpleITK as sitk

    return sitk.Compose(image, image, image)


def png(name: str, channels: int = 1, mode: str = "L") -> None:
    """Writes a 2-D picture."""
    from PIL import Image

    slice_ = np.interp(voxels()[:, :, SIZE[2] // 2].T, [200, 1000], [0, 255]).astype(np.uint8)
    array = slice_ if channels == 1 else np.stack([slice_] * channels, -1)
    Image.fromarray(array).convert(mode).save(name)


def flat() -> Iterator[Case]:
    """Pictures, with 2-D weights."""

    def command(*files):
        return register("--model", FLAT, moving=files[0], fixed=files[1])

    ones = both(lambda: png("a.png"), lambda: png("b.png"))
    yield Case(KIND, "two PNG, 2-D weights", command("a.png", "b.png"), Expected("works", ("a.png",)), ones)
    for name, channels, mode in (("color", 3, "RGB"), ("RGBA", 4, "RGBA"), ("palette", 1, "P"), ("1 bit", 1, "1")):
        make = both(lambda c=channels, m=mode: png("a.png", c, m), lambda: png("b.png"))
        ending = "fails" if channels == 4 else "either"  # RGB of gray values is gray
        yield Case(
            KIND,
            f"{name} PNG, 2-D weights",
            command("a.png", "b.png"),
            Expected(ending, ("a.png", "moving_image")),
            make,
        )
    half = both(ones, content("a.png", lambda old: old[: len(old) // 2]))
    yield Case(KIND, "PNG truncated", command("a.png", "b.png"), Expected("fails", ("a.png",)), half)
    yield Case(KIND, "3-D for 2-D weights", command(M, F), Expected("fails", (M, F, "moving_image")))
