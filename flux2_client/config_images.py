"""Find, on this host, the reference images that a training config names by paths of the trainer's host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from flux2_client.image_file import read_image
from shared.errors import ConfigImagesNotFound, UploadRefused
from shared.plurals import counted

_SHOWN = 5


@dataclass(frozen=True)
class ConfigImage:
    """An image that a config names.

    Attributes:
        name: as in the config.
        path: the file on this host.
    """

    name: str
    path: Path
    sha256: str


def find_images(names: Sequence[str], *, config: Path, folders: Sequence[Path] = ()) -> list[ConfigImage]:
    """Return the files of a config's reference images, all of them or none.

    A name is looked for in `folders` by as much of its end as a folder has, so that `/data/edit/in/a.png` finds
    `FOLDER/in/a.png` before `FOLDER/a.png`. Otherwise it is a path of this host. A relative one begins at the current
    folder, as for the trainer, or at the config's folder or one above it.

    Raises:
        ConfigImagesNotFound: a file is missing, cannot be read or is no image that a job can use, or several files fit.
    """
    found, missing, faults = {}, [], []
    for name in names:
        try:
            image = _find(name, config=config, folders=folders)
        except ConfigImagesNotFound as error:
            faults.append(str(error))
            continue
        if image is None:
            missing.append(name)
        else:
            found[name] = image
    faults += _confused({name: image for name, image in found.items() if _in_folders(name, folders)})
    if missing or faults:
        raise ConfigImagesNotFound("\n".join(_describe(missing, faults, count=len(names))))
    return list(found.values())


def _describe(missing: Sequence[str], faults: Sequence[str], *, count: int) -> Iterator[str]:
    images = counted(count, "reference image", "reference images")
    yield f"{len(missing) + len(faults)} of the config's {images} cannot be used"
    if missing:
        yield "not on this host; give their folder with --images FOLDER:"
        yield from _shorten([f"  {name}" for name in missing])
    yield from _shorten(faults)


def _shorten(lines: Sequence[str]) -> list[str]:
    return [*lines[:_SHOWN], *([f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])]


def _find(name: str, *, config: Path, folders: Sequence[Path]) -> ConfigImage | None:
    paths = _in_folders(name, folders) or _on_this_host(name, config)
    if not paths:
        return None
    images = [_read(name, path) for path in paths]
    if len({image.sha256 for image in images}) > 1:
        raise ConfigImagesNotFound(
            f"{name}: {images[0].path} and {images[1].path} differ; with --images, give the one folder that is meant"
        )
    return images[0]


def _in_folders(name: str, folders: Sequence[Path]) -> list[Path]:
    """Return the files with the longest common end."""
    parts = _parts(name)
    for start in range(len(parts)):
        paths = [path for folder in folders if _is_file(path := folder.joinpath(*parts[start:]))]
        if paths:
            return paths
    return []


def _on_this_host(name: str, config: Path) -> list[Path]:
    # An absolute name gives the same path in each folder.
    folders = (Path.cwd(), *config.resolve().parents)
    paths = dict.fromkeys(folder / name for folder in folders)
    return [path for path in paths if _is_file(path)]


def _parts(name: str) -> tuple[str, ...]:
    """Return the folders and the name of a path of any system, without its root and without steps upward."""
    path = PureWindowsPath(name) if "\\" in name or PureWindowsPath(name).drive else PurePosixPath(name)
    return tuple(part for part in path.parts if part not in (path.anchor, ".."))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    # A path of the trainer's host may be too long for this one, or hold characters that it does not allow.
    except (OSError, ValueError):
        return False


def _read(name: str, path: Path) -> ConfigImage:
    try:
        # The API says which files to upload: nothing but images may leave this host.
        return ConfigImage(name, path, read_image(path).image.sha256)
    except UploadRefused as error:
        raise ConfigImagesNotFound(f"{name}: {error}") from error


def _confused(found: Mapping[str, ConfigImage]) -> Iterator[str]:
    """Describe names of different files for which one file was found by the end of its path."""
    first: dict[Path, str] = {}
    for name, image in found.items():
        other = first.setdefault(image.path, name)
        common = min(len(_parts(name)), len(_parts(other)))
        if _parts(name)[-common:] != _parts(other)[-common:]:
            yield f"{name}: {image.path} was found for {other} too; put each into a folder that is named as its own"
