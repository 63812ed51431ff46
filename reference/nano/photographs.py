"""Photographs and pictures that nano's VAE learns from besides the procedural world (docs/nano.md, "Data").

    python -m reference.nano.photographs fetch FOLDER
    python -m reference.nano.photographs measure FOLDER VAE

`fetch` downloads Debian's wallpaper packages with apt-get, without installing them, and unpacks them into
FOLDER/<package>. Nothing of them is committed. Whole packages are held out, and training never draws from those.
`measure` prints what a VAE makes of the held-out ones. Elsewhere than on Debian, put pictures there by hand.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

if not __package__:  # run as a file: `python reference/nano/photographs.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.typing import NDArray
from PIL import Image, ImageOps

from reference.nano import styles
from reference.nano.world import Canvas, Frames
from reference.vae import clip_psnr_db

__all__ = [
    "SOURCES", "Photographs", "Source", "fetch_photographs", "measure_photographs", "open_photographs",
    "open_shipped_photographs",
]  # fmt: skip

Picture = NDArray[np.float32]
"""float32 [H, W, 3] in [0, 1]."""


@dataclass(frozen=True)
class Source:
    """A package of pictures. licences: those that its copyright file names. is_held_out: never trained on."""

    package: str
    licences: str
    is_held_out: bool = False


SOURCES = (
    Source("plasma-workspace-wallpapers", "GPL-2+"),
    Source("mate-backgrounds", "GPL-2+, CC-BY-SA-4.0"),
    Source("gnome-backgrounds", "CC-BY-SA-3.0"),
    Source("ukui-wallpapers", "CC-BY-SA-3.0"),
    Source("lomiri-wallpapers-16.04", "CC-BY-4.0, CC-BY-SA-4.0, CC-BY-SA-3.0, CC0-1.0"),
    Source("lomiri-wallpapers-20.04", "CC-BY-4.0, CC-BY-SA-4.0", is_held_out=True),
)
HELD_OUT_PICTURES = (
    "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg",
)  # fmt: skip
"""Photographs that the package scikit-image ships, of the extra `evaluate`: held out as well."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
LONG_SIDE_PX = 480
"""Pictures are kept at this size: a cut of nano's frames then shows a part of a scene, or all of it reduced."""
MIN_SIDE_PX = 96
THUMBNAIL_PX = 12
NIGHT_TINT = (0.8, 0.9, 1.15)
SAME = 0.995
"""Correlation of two thumbnails from which they are one picture, at other sizes or in other packages."""
MEASURED_SEED = 97
BACKGROUND_SEED = 96
MEASURED = {1: 48, 9: 16}
"""Cuts that a measurement takes, by their frames."""


def fetch_photographs(folder: Path, sources: Sequence[Source] = SOURCES) -> None:
    """Download and unpack the packages that are not there. Raises FileNotFoundError where there is no apt-get."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        if (folder / source.package).exists():
            continue
        try:
            subprocess.run(["apt-get", "download", source.package], cwd=folder, check=True)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"there is no apt-get here; put the pictures of {source.package} into {folder / source.package}"
            ) from error
        (archive,) = folder.glob(f"{source.package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, folder / source.package], check=True)
        archive.unlink()


def find_pictures(folder: Path) -> list[Path]:
    """Picture files below a folder, by name."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def read_picture(path: Path) -> Picture | None:
    """A picture with its longer side at LONG_SIDE_PX at most; None for one that is too small or not to be read."""
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file).convert("RGB")
    except OSError:
        return None
    scale = min(1.0, LONG_SIDE_PX / max(upright.size))
    size = (round(upright.width * scale), round(upright.height * scale))
    if min(size) < MIN_SIDE_PX:
        return None
    return np.asarray(upright.resize(size, Image.Resampling.LANCZOS), np.float32) / np.float32(255)


def thumbnail_of(picture: Picture) -> NDArray[np.float32]:
    """A small grey form with mean 0 and length 1, for comparisons."""
    grey = Image.fromarray((picture.mean(-1) * 255).astype(np.uint8)).resize((THUMBNAIL_PX, THUMBNAIL_PX))
    values = np.asarray(grey, np.float32).ravel()
    values = values - values.mean()
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-6), np.float32)


def leave_out_copies(pictures: Iterable[Picture], others: Iterable[Picture] = ()) -> list[Picture]:
    """Pictures without those that are one of `others` or an earlier one, at whatever size."""
    known = [thumbnail_of(other) for other in others]
    kept = []
    for picture in pictures:
        own = thumbnail_of(picture)
        if all(float(own @ other) < SAME for other in known):
            kept.append(picture)
            known.append(own)
    return kept


class Photographs:
    """Clips out of pictures: cut, scaled, turned over, coloured, panned and zoomed, with night, fades and grain."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        if not pictures:
            raise ValueError(
                "there is no picture; expected one at least: run `fetch`, or name another folder"
            )
        self.pictures = list(pictures)

    def draw(self, rng: np.random.Generator, canvas: Canvas) -> Frames:
        """One clip uint8 [T, H, W, 3]."""
        clip = self._draw_lit(rng, canvas)
        if rng.random() < 0.25:
            clip = clip + _grain(rng, clip.shape, float(rng.uniform(0.005, 0.05)))
        shown = np.asarray(np.clip(clip, 0, 1) * 255 + 0.5, np.uint8)
        if rng.random() < 0.25:
            shown = styles.STYLES[str(rng.choice(list(styles.STYLES)))](shown)
        return shown

    def draw_background(self, seed: int, canvas: Canvas) -> NDArray[np.float32]:
        """A clip for a scene to be drawn over, see `world.Footage`: without grain, which no edit has to give back."""
        return np.clip(self._draw_lit(np.random.default_rng([BACKGROUND_SEED, seed]), canvas), 0, 1)

    def _draw_lit(self, rng: np.random.Generator, canvas: Canvas) -> Picture:
        """A clip that is cut, moved and coloured, some of them at night or with a fade; may leave [0, 1]."""
        picture = self.pictures[int(rng.integers(len(self.pictures)))]
        if rng.random() < 0.5:
            picture = picture[:, ::-1]
        clip = _recolour(rng, _pan(rng, picture, canvas))
        draw = rng.random()
        frames = np.linspace(0, 1, canvas.frames, dtype=np.float32)
        if draw < 0.12:  # night
            clip = clip * np.float32(rng.uniform(0.12, 0.45)) * np.asarray(NIGHT_TINT, np.float32)
        elif draw < 0.20 and canvas.frames > 1:  # a fade from or to black or white
            share = (frames if rng.random() < 0.5 else 1 - frames)[:, None, None, None]
            clip = share * clip + (1 - share) * np.float32(rng.integers(2))
        return clip

    def draw_plain(self, rng: np.random.Generator, canvas: Canvas) -> Frames:
        """One clip that is panned and zoomed, and nothing else: what measurements take."""
        picture = self.pictures[int(rng.integers(len(self.pictures)))]
        return np.asarray(np.clip(_pan(rng, picture, canvas), 0, 1) * 255 + 0.5, np.uint8)


ClipSource = Callable[[np.random.Generator, Canvas], Frames]


def mix(photographs: Photographs, share: float, other: ClipSource) -> ClipSource:
    """Clips of photographs in a share of the draws, and of another source in the rest."""

    def draw(rng: np.random.Generator, canvas: Canvas) -> Frames:
        return photographs.draw(rng, canvas) if rng.random() < share else other(rng, canvas)

    return draw


def _pan(rng: np.random.Generator, picture: Picture, canvas: Canvas) -> Picture:
    """A window that moves over the picture and grows or shrinks, float32 [T, H, W, 3]."""
    height, width = picture.shape[:2]
    largest = min(height / canvas.height, width / canvas.width)
    first = float(np.exp(rng.uniform(np.log(min(1.0, largest)), np.log(largest))))
    last = (
        float(np.clip(first * rng.uniform(0.85, 1.18), min(1.0, largest), largest))
        if canvas.frames > 1
        else first
    )
    # Some two pixels of a result a frame at most, as in footage of some frames a second.
    reach = 2.0 * (canvas.frames - 1) * first
    corners: list[NDArray[np.float64]] = []
    for scale in (first, last):
        room = np.array([height - scale * canvas.height, width - scale * canvas.width])
        if corners:
            wanted = corners[0] + rng.uniform(-reach, reach, 2)
        else:
            wanted = rng.uniform(0, 1, 2) * room
        corners.append(np.clip(wanted, 0, np.maximum(room, 0)))
    source = Image.fromarray((picture * 255).astype(np.uint8))
    clip = []
    for index in range(canvas.frames):
        share = index / max(1, canvas.frames - 1)
        scale = (1 - share) * first + share * last
        top, left = (1 - share) * corners[0] + share * corners[1]
        box = (
            float(left),
            float(top),
            min(float(left) + scale * canvas.width, width),
            min(float(top) + scale * canvas.height, height),
        )
        cut = source.resize((canvas.width, canvas.height), Image.Resampling.BICUBIC, box=box)
        clip.append(np.asarray(cut, np.float32) / np.float32(255))
    return np.stack(clip)


def _recolour(rng: np.random.Generator, clip: Picture) -> Picture:
    """Other channels, gamma, contrast and tint, each sometimes."""
    if rng.random() < 0.3:
        clip = clip[..., rng.permutation(3)]
    if rng.random() < 0.5:
        clip = np.power(clip, np.float32(rng.uniform(0.7, 1.5)))
    if rng.random() < 0.5:
        clip = clip.mean() + np.float32(rng.uniform(0.6, 1.4)) * (clip - clip.mean())
    if rng.random() < 0.3:
        clip = clip * rng.uniform(0.85, 1.15, 3).astype(np.float32)
    return np.clip(clip, 0, 1)


def _grain(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> NDArray[np.float32]:
    """Film grain or sensor noise: new in every frame, in grey or in colour."""
    channels = 3 if rng.random() < 0.5 else 1
    noise = rng.standard_normal((*shape[:3], channels), np.float32)
    if rng.random() < 0.5:  # grains of some pixels
        noise = (
            noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + np.roll(noise, 1, (1, 2))
        ) / np.float32(2)
    return np.float32(deviation) * noise


def open_photographs(folder: Path, *, held_out: bool, sources: Sequence[Source] = SOURCES) -> Photographs:
    """The pictures to train on, or those held out; no picture is in both, whatever its package or size.

    Raises ValueError where there is none.
    """

    def read(paths: Iterable[Path]) -> list[Picture]:
        return [picture for picture in map(read_picture, paths) if picture is not None]

    def paths(is_held_out: bool) -> list[Path]:
        chosen = [source for source in sources if source.is_held_out == is_held_out]
        return [path for source in chosen for path in find_pictures(folder / source.package)]

    kept_apart = leave_out_copies(read([*paths(is_held_out=True), *_shipped_pictures()]))
    if held_out:
        return Photographs(kept_apart)
    return Photographs(leave_out_copies(read(paths(is_held_out=False)), kept_apart))


def open_shipped_photographs() -> Photographs:
    """scikit-image's photographs, which are held out. Raises ValueError where the package is not installed."""
    return Photographs([picture for picture in map(read_picture, _shipped_pictures()) if picture is not None])


def _shipped_pictures() -> list[Path]:
    """scikit-image's photographs, where it is installed; found without importing it."""
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        return []
    data = Path(next(iter(spec.submodule_search_locations))) / "data"
    return [data / name for name in HELD_OUT_PICTURES if (data / name).exists()]


@torch.no_grad()
def measure_photographs(vae: AutoencoderKLWan, photographs: Photographs) -> dict[str, float]:
    """Mean PSNR in dB by "photo_<frames>": cuts of 64 x 64 pixels, the same for every VAE."""
    found = {}
    for frames, count in MEASURED.items():
        rng = np.random.default_rng([MEASURED_SEED, frames])
        decibels = []
        for _ in range(count):
            clip = photographs.draw_plain(rng, Canvas(frames, 64, 64))
            video = torch.from_numpy(clip).permute(3, 0, 1, 2)[None].to(vae.device).float() / 127.5 - 1
            out = vae.decode(vae.encode(video).latent_dist.mean).sample
            decibels.append(float(clip_psnr_db(out, video)))
        found[f"photo_{frames}"] = round(float(np.mean(decibels)), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="download the packages").add_argument("folder", type=Path)
    measure = commands.add_parser("measure", help="what a VAE makes of the held-out ones")
    measure.add_argument("folder", type=Path)
    measure.add_argument("vae", type=Path, help="a folder of diffusers")
    args = parser.parse_args()
    if args.command == "fetch":
        fetch_photographs(args.folder)
        return
    photographs = open_photographs(args.folder, held_out=True)
    vae = AutoencoderKLWan.from_pretrained(args.vae).eval()
    print(f"{len(photographs.pictures)} pictures", measure_photographs(vae, photographs))


if __name__ == "__main__":
    main()
