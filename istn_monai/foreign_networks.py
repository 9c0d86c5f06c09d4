"""Networks of somebody else, whose output is registered: TorchScript, ``torch.export``, MONAI bundles.

Files of these kinds hold code: they are run because a user names them. A checkpoint that was trained on such a network
names it, too, with the hash of the file: trust both, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.utils import convert_to_tensor
from torch import Tensor

from istn_monai.io.hashes import file_hash, file_state
from istn_monai.io.paths import absolute
from istn_monai.representations import Representation

Network = Callable[[Tensor], Any]
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda maps: maps,
    "softmax": lambda maps: maps.softmax(1),
    "sigmoid": torch.sigmoid,
}


def check_there(representation: Representation) -> None:
    """Raises an error, before any work, where a network of somebody else is not to be had.

    Raises:
        FileNotFoundError: naming the file or the folder.
        ValueError: a bundle without a config.
    """
    if not representation.is_network:
        return
    path = absolute(representation.path)
    if not path.exists():
        raise FileNotFoundError(f"representation {representation.source}: no such file or folder: {path}")
    if representation.kind == "bundle":
        config_of(path)
    elif path.is_dir():
        raise ValueError(f"representation {representation.source}: {path} is a folder, a file is expected")


def described_representation(value: Any) -> Any:
    """A representation as a report has it: of a network with the hash of what is in its file or folder."""
    representation = Representation.of(value)
    if not representation.is_network or not absolute(representation.path).exists():
        return value
    return {"representation": value, "network_sha256": str(file_hash(representation.path))[:16]}


def network_of(representation: Representation, device: torch.device | str) -> Network:
    """A network that maps ``(B, C, *S)`` to maps, once for each state of its file."""
    path = absolute(representation.path)
    return loaded(representation.kind, path, tuple(file_state(path)), torch.device(device))


@lru_cache(maxsize=4)
def loaded(kind: str, path: Path, state: Any, device: torch.device) -> Network:
    """A TorchScript or an exported program.

    Raises:
        ValueError: naming the file, if it is none, or none for this device.
    """
    where = f"representation {kind}:{path}"
    try:
        if kind == "torchscript":
            return torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-any-return]
        return torch.export.load(str(path)).module().to(device)
    except Exception as error:
        made = "torch.jit.save" if kind == "torchscript" else "torch.export.save"
        why = first_line(error)
        raise ValueError(f"{where} cannot be loaded on {device} ({why}): is it what {made} wrote?") from error


def first_line(error: Exception) -> str:
    """What was wrong at first, in a line: of TorchScript the last one, which says what went wrong."""
    while error.__cause__ is not None:  # MONAI's transforms say which of them it was alone
        error = error.__cause__  # type: ignore[assignment]
    lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if "Traceback of TorchScript" in str(error) else 0][:200]


def maps_of(representation: Representation, image: Tensor, device: torch.device | str) -> Tensor:
    """What a network makes of an image, as it is normalized, on its grid.

    Args:
        representation: of a TorchScript or an exported program.
        image: ``(C, *S)``.
        device: where the network runs.

    Returns:
        ``(K, *S)`` float32, on the CPU.

    Raises:
        ValueError: naming the network, if it does not take the image, or gives anything but maps of its size.
    """
    network = network_of(representation, device)
    where = f"representation {representation.source}"

    def checked(images: Tensor) -> Tensor:
        """The network's output for ``(B, C, *S)``."""
        return checked_maps(network(images), images, where)

    size = representation.roi_size
    if size is not None and len(size) != image.ndim - 1:
        raise ValueError(f"representation: roi_size must have {image.ndim - 1} numbers, got {list(size)}")
    inferer: Inferer = SimpleInferer() if size is None else SlidingWindowInferer(size, mode="gaussian")
    try:
        with torch.no_grad():
            maps = inferer(image[None].to(device), checked)
    except RuntimeError as error:
        hint = "it was made for a GPU: " if "cuda" in str(error).lower() and torch.device(device).type == "cpu" else ""
        raise ValueError(
            f"{where} does not take an image {tuple(image.shape)}, float32, on {device} ({hint}{first_line(error)}): "
            "is it made for as many channels, this size or roi_size, this number format and device?"
        ) from error
    return ACTIVATIONS[representation.activation](convert_to_tensor(maps, track_meta=False))[0].float().cpu()


def checked_maps(maps: Any, images: Tensor, where: str) -> Tensor:
    """ValueError unless a network's output ``(B, K, *S)`` is one tensor of its input's size."""
    if not isinstance(maps, Tensor) or maps.is_complex():
        kind = "complex numbers" if isinstance(maps, Tensor) else f"a {type(maps).__name__}"
        raise ValueError(f"{where} gives {kind}, one tensor (B, K, *S) of real numbers is expected: wrap it")
    if maps.ndim != images.ndim or maps.shape[2:] != images.shape[2:] or len(maps) != len(images):
        raise ValueError(
            f"{where} must keep an image's size, (B, K, {', '.join(map(str, images.shape[2:]))}): it gave "
            f"{tuple(maps.shape)} for {tuple(images.shape)}"
        )
    if not maps.shape[1]:
        raise ValueError(f"{where} gives no channel: it gave {tuple(maps.shape)} for {tuple(images.shape)}")
    return maps.float()


def config_of(folder: Path) -> Path:
    """The config with which a MONAI bundle is used.

    Raises:
        ValueError: if there is none.
    """
    names = [f"configs/{name}.{suffix}" for name in ("inference", "evaluate") for suffix in ("json", "yaml", "yml")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"representation bundle:{folder} has none of {', '.join(names)}: is it a MONAI bundle's folder?")


class BundleNetwork:
    """A MONAI bundle by its own preprocessing, network and inferer: an image's file to maps on a grid of the bundle's.

    Of its config ``preprocessing``, ``network_def`` (or ``network``) and ``inferer`` are used, and ``models/model.pt``.

    Args:
        folder: of the bundle.
        device: where it runs.

    Raises:
        ValueError: naming the bundle and what it lacks.
    """

    def __init__(self, folder: Path, device: torch.device | str) -> None:
        self.where, self.device = f"representation bundle:{folder}", torch.device(device)
        parser = ConfigParser()
        parser.read_config(str(config_of(folder)))
        known = [name for name in ("preprocessing", "inferer") if name in parser]
        name = next((name for name in ("network_def", "network") if name in parser), None)
        if name is None or len(known) < 2:
            raise ValueError(f"{self.where}: {config_of(folder).name} needs preprocessing, inferer and network_def")
        parser.update({"bundle_root": str(folder), "device": str(device)})
        try:
            self.preprocessing, self.inferer = (parser.get_parsed_content(part) for part in known)
            self.network = parser.get_parsed_content(name).to(self.device).eval()
        except Exception as error:
            raise ValueError(f"{self.where} cannot be set up: {first_line(error)}") from error
        weights = folder / "models" / "model.pt"
        if not weights.is_file():
            raise FileNotFoundError(f"{self.where} has no weights at {weights}")
        self.load(weights)

    def load(self, file: Path) -> None:
        """The weights, without running code in them."""
        try:
            content = torch.load(file, map_location=self.device, weights_only=True)
            state = next((content[key] for key in ("model", "state_dict") if key in content), content)
            self.network.load_state_dict(state)
        except Exception as error:
            raise ValueError(f"{self.where}: {file} does not fit its network: {first_line(error)}") from error

    def __call__(self, file: str) -> MetaTensor:
        """Maps ``(K, *T)`` with an affine, RAS mm, in the world of the file."""
        try:
            image = self.preprocessing({"image": file})["image"]
            with torch.no_grad():
                maps = self.inferer(convert_to_tensor(image, track_meta=False)[None].to(self.device), self.network)
        except Exception as error:
            raise ValueError(f"{self.where} cannot represent {file}: {first_line(error)}") from error
        found = checked_maps(maps, image.as_tensor()[None], self.where)[0].float().cpu()
        result = MetaTensor(found, meta={"filename_or_obj": file})
        result.affine = image.affine
        return result


@lru_cache(maxsize=2)
def bundle_network(folder: Path, state: Any, device: torch.device) -> BundleNetwork:
    """A bundle, set up once for each state of its folder."""
    return BundleNetwork(folder, device)


def bundle_maps(representation: Representation, file: str, device: torch.device | str) -> MetaTensor:
    """What a MONAI bundle makes of an image's file, see :class:`BundleNetwork`, after the activation."""
    folder = absolute(representation.path)
    maps = bundle_network(folder, tuple(file_state(folder)), torch.device(device))(file)
    active = ACTIVATIONS[representation.activation](maps.as_tensor()[None])[0]
    result = MetaTensor(active, meta=dict(maps.meta))
    result.affine = maps.affine
    return result
