"""The CT scanner: sampling, sharpness and noise texture of the reconstruction kernel, slice thickness, and dose.

A kernel is its modulation transfer function (MTF); noise has the texture that filtered back-projection gives it, a ramp
times the MTF. Signal and noise pass through the same kernel, whatever the disease.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import fft

from .grid import Floats, Grid, smoothstep

GridName = Literal["network", "scan", "example"]

NETWORK_BOX = (128, 224, 288)
"""Voxels (z y x) that the network sees of the lungs' bounding box."""

NETWORK_MARGIN = (6, 8, 6)
"""Voxels around that box, z y x; they make matrices whose Fourier transforms are fast (240 x 300)."""

SCAN_MATRIX = 512
SPACING_MM = (0.478, 1.0)
"""In-plane spacing in the paper's data (Methods, "Data collection")."""

EXAMPLE_MATRIX, EXAMPLE_SLICES = 192, 80
SCAN_MARGIN_MM = 8.0
SUBSLICE_MM = 1.3
"""Thick slices are rendered as thinner ones and averaged."""

OUTPUT_HU = (-1024, 3071)

SHIFTS = (
    (True, False, False),
    (False, True, False),
    (False, False, True),
    (True, True, False),
    (True, False, True),
)
"""Ways to leave the trained range: thicker slices, a sharper kernel, more noise (never both of the last two)."""


SHARP_NOISE_STEP = 0.05
SHARP_NOISE = (0.0, 0.06, 0.16, 0.38, 0.64, 0.87, 1.0, 0.96, 0.81, 0.60, 0.40, 0.23, 0.12, 0.046, 0.017, 0.0)
"""Noise power of a sharp kernel, relative, at multiples of `SHARP_NOISE_STEP` (1 / mm): one scan (Lung-PET-CT-Dx A0001)
reconstructed with a sharp and a smooth kernel, the difference of the two inside the lungs."""


@dataclass(frozen=True)
class StreakParameters:
    """Noise that runs one way, as where few photons pass the body sideways.

    Attributes:
        share: of the noise's variance that is streaks, above the base of the lungs.
        shoulders: the same at the apices, between the shoulders.
        gain: by how much more noise there is at the apices.
        angle: degrees by which streaks rise from the horizontal towards the middle of the body.
        spread: degrees (standard deviation) around that angle.
    """

    share: float
    shoulders: float
    gain: float
    angle: float
    spread: float


@dataclass(frozen=True)
class ScannerParameters:
    """A protocol.

    Attributes:
        sharpness: of the kernel: 0 smooth (as B31f), 1 sharp (as B60f), beyond 1 sharper still.
        mtf50: spatial frequency at which half of the contrast is left, in mm-1.
        enhancement: how far the kernel lifts edges above their contrast.
        noise: standard deviation of noise in the lungs at 1 mm slice thickness, before the kernel amplifies it, in HU.
        noise_centre: how much more noise there is in the middle of the body than at its surface.
        slice_thickness, slice_increment: in mm.
        spacing: in-plane spacing of a full-size matrix, in mm.
        streaks: directed part of the noise; with it, sharp kernels have the noise of `SHARP_NOISE`. None in the first look.
    """

    sharpness: float
    mtf50: float
    enhancement: float
    noise: float
    noise_centre: float
    slice_thickness: float
    slice_increment: float
    spacing: float
    streaks: StreakParameters | None = None

    @property
    def noise_hu(self) -> float:
        """Standard deviation of noise in a slice, in HU: sharper kernels amplify it, thicker slices average it.

        Less than by the square root of the thickness, as exposure control gives thick slices less dose.
        """
        return self.noise * (1 + 3 * self.sharpness) * float(max(self.slice_thickness, 0.6) ** -0.3)


def draw_scanner(rng: np.random.Generator, lung_width: float, shifted: bool = False) -> ScannerParameters:
    """Draw a protocol for lungs that are `lung_width` mm wide.

    Args:
        shifted: draw from beyond the trained range, in one of the ways of `SHIFTS`.
    """
    # Most scans that are read for emphysema have a smooth kernel; sharp ones come beside them.
    sharpness = rng.uniform(0, 0.35) if rng.random() < 0.6 else rng.uniform(0.35, 1)
    # Thin slices are the rule, as in the paper's data; thick ones must not be new to a network either.
    thickness = float(np.exp(rng.uniform(np.log(0.6), np.log(5.0))))
    # What the slices show, whatever kernel and thickness they have: dose and filters make up for both.
    usual = float(np.clip(rng.lognormal(np.log(15), 0.3), 7, 30))
    seen = usual if rng.random() < 0.75 else float(np.exp(rng.uniform(np.log(20), np.log(26 + 40 * sharpness))))
    if shifted:
        thicker, sharper, noisier = SHIFTS[rng.integers(len(SHIFTS))]
        if thicker:
            thickness = rng.uniform(5.5, 8.0)
        if sharper:
            sharpness = rng.uniform(1.1, 1.6)
        if noisier:
            seen = rng.uniform(70, 90)
    smallest = float(np.clip((lung_width + 2 * SCAN_MARGIN_MM) / SCAN_MATRIX, *SPACING_MM))
    protocol = ScannerParameters(
        sharpness=sharpness,
        mtf50=(0.32 + 0.25 * sharpness) * rng.uniform(0.9, 1.2),
        enhancement=max(0.0, 0.55 * (sharpness - 0.35)) * rng.uniform(0.7, 1.3),
        noise=1.0,
        noise_centre=rng.uniform(0.1, 0.6),
        slice_thickness=thickness,
        slice_increment=thickness * rng.uniform(0.7, 1.0),
        spacing=smallest + (SPACING_MM[1] - smallest) * rng.beta(1.2, 3),
        streaks=_draw_streaks(rng),
    )
    return replace(protocol, noise=seen / protocol.noise_hu)


def _draw_streaks(rng: np.random.Generator) -> StreakParameters:
    """Nearly half of COPDGene's patches have noise that runs one way."""
    share = rng.uniform(0.0, 0.25) if rng.random() < 0.6 else rng.uniform(0.25, 0.6)
    return StreakParameters(
        share=float(share),
        shoulders=float(min(0.85, share + rng.uniform(0.0, 0.35))),
        gain=rng.uniform(1.0, 1.7),
        angle=rng.normal(0, 30),
        spread=rng.uniform(8, 25),
    )


@dataclass(frozen=True)
class Slab:
    """A part of a scan, at full resolution: `slices` slices, `increment` mm apart, whose middle lies at `level`, a share of
    the lungs' height; pixels of `spacing` mm over all of their width and depth. Percentages are then of the slab."""

    level: float
    slices: int
    increment: float
    spacing: float


@dataclass(frozen=True)
class Sampling:
    """The grids of one scan.

    Attributes:
        rendered: the grid that the chest is rendered on.
        every: rendered slices for each slice of the scan; odd.
        profile: weights (scan slices x rendered slices) that turn rendered slices into the signal of the scan's.
        noise_profile: weights (scan slices x acquired slices) that turn independent noise into the scan's.
        low, high: mm, where the lungs begin and end along z.
    """

    rendered: Grid
    every: int
    profile: npt.NDArray[np.float32]
    noise_profile: npt.NDArray[np.float32]
    low: float = 0.0
    high: float = 1.0

    @property
    def grid(self) -> Grid:
        """The grid of the scan."""
        return self.rendered.every(self.every)


def plan(scanner: ScannerParameters, name: GridName | Slab, low: npt.ArrayLike, high: npt.ArrayLike) -> Sampling:
    """Lay the grids for a scan of lungs whose bounding box runs from `low` to `high` (mm, z y x).

    - `network`: the lungs' box has the network's 128 x 224 x 288 voxels; slices are those of the protocol, resampled.
    - `scan`: a matrix of 512 x 512 with the protocol's spacing and increment.
    - `example`: 192 x 192 x 80 voxels around the lungs, slices as thick as they are apart; of the protocol it has the
      kernel and the noise.
    - a `Slab`: that part of a scan, with the protocol's slice thickness.
    """
    start, stop = np.asarray(low, float), np.asarray(high, float)
    extent = stop - start
    if isinstance(name, Slab):
        matrix = np.ceil((extent[1:] + 2 * SCAN_MARGIN_MM) / name.spacing / 8).astype(int) * 8
        shape = (name.slices, int(matrix[0]), int(matrix[1]))
        middle = np.array([start[0] + name.level * extent[0], *((start + stop) / 2)[1:]])
        steps = np.array([name.increment, name.spacing, name.spacing])
        corner = middle - (np.array(shape) - 1) / 2 * steps
        grid = Grid(shape, (name.increment, name.spacing, name.spacing), (corner[0], corner[1], corner[2]))
        profile = _profile(grid.axis(0), grid.axis(0), scanner.slice_thickness)
        return Sampling(grid, 1, profile, np.eye(name.slices, dtype=np.float32), float(start[0]), float(stop[0]))
    if name == "network":
        spacing = extent / NETWORK_BOX
        origin = start + spacing / 2 - np.array(NETWORK_MARGIN) * spacing
        z, y, x = (n + 2 * margin for n, margin in zip(NETWORK_BOX, NETWORK_MARGIN, strict=True))
        grid = Grid((z, y, x), tuple(spacing.tolist()), tuple(origin.tolist()))
        acquired, noise = _acquire(grid, scanner.slice_thickness, scanner.slice_increment)
        return Sampling(grid, 1, acquired, noise, float(start[0]), float(stop[0]))
    if name == "scan":
        matrix, spacing_yx, increment = SCAN_MATRIX, scanner.spacing, scanner.slice_increment
        slices = int(np.ceil((extent[0] + 2 * SCAN_MARGIN_MM) / increment))
    else:
        matrix, slices = EXAMPLE_MATRIX, EXAMPLE_SLICES
        spacing_yx = (float(extent[1:].max()) + 2 * SCAN_MARGIN_MM) / matrix
        increment = float(extent[0] + 2 * SCAN_MARGIN_MM) / slices
    every = 2 * int(np.ceil((increment / SUBSLICE_MM - 1) / 2)) + 1 if increment > SUBSLICE_MM else 1
    fine = increment / every
    middle = (start + stop) / 2
    origin = middle - (np.array([slices * every, matrix, matrix]) - 1) / 2 * np.array([fine, spacing_yx, spacing_yx])
    rendered = Grid((slices * every, matrix, matrix), (fine, spacing_yx, spacing_yx), tuple(origin.tolist()))
    thickness = scanner.slice_thickness if name == "scan" else increment
    profile = _profile(rendered.every(every).axis(0), rendered.axis(0), thickness)
    return Sampling(rendered, every, profile, np.eye(slices, dtype=np.float32), float(start[0]), float(stop[0]))


def _profile(slices: Floats, rendered: Floats, thickness: float) -> npt.NDArray[np.float32]:
    """Weights that average the rendered slices within `thickness` mm around each of `slices` (positions in mm)."""
    step = abs(float(rendered[1] - rendered[0]))
    offset = np.abs(slices[:, None] - rendered[None, :])
    weights = np.clip((max(thickness, step) + step) / 2 - offset, 0, step)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def _acquire(grid: Grid, thickness: float, increment: float) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The two profiles of a scan whose slices, `increment` mm apart, were interpolated to those of `grid`."""
    rendered = grid.axis(0)
    slices = np.arange(rendered[0] - increment, rendered[-1] + 2 * increment, increment, dtype=np.float32)
    position = (rendered - slices[0]) / increment
    lower = np.minimum(position.astype(int), len(slices) - 2)
    interpolation = np.zeros((len(rendered), len(slices)), np.float32)
    rows = np.arange(len(rendered))
    interpolation[rows, lower] = 1 - (position - lower)
    interpolation[rows, lower + 1] = position - lower
    used = interpolation.any(0)
    near = np.clip(slices[used], rendered[0], rendered[-1])
    return interpolation[:, used] @ _profile(near, rendered, thickness), interpolation[:, used]


def scan(hounsfield: Floats, scanner: ScannerParameters, sampling: Sampling, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Scan a rendered chest (z y x, HU, on `sampling.rendered`): HU on `sampling.grid`, with noise from `rng`."""
    grid = sampling.grid
    transfer, texture = kernel(scanner, grid)
    result = np.empty(grid.shape, np.int16)
    middle = [(grid.axis(k) - grid.axis(k).mean()) / np.ptp(grid.axis(k)) * 2 for k in (1, 2)]
    centre = np.exp(-1.5 * (middle[0][:, None] ** 2 + middle[1][None, :] ** 2))
    level = scanner.noise_hu * (1 + scanner.noise_centre * (centre - 0.5)).astype(np.float32)
    maker = _NoiseMaker.of(scanner, grid, texture)
    height = (grid.axis(0) - sampling.low) / max(sampling.high - sampling.low, 1.0)
    noise: dict[int, Floats] = {}
    for k in range(grid.shape[0]):
        signal = _combine(sampling.profile[k], hounsfield)
        spectrum = fft.rfft2(signal, workers=1)
        spectrum *= transfer
        picture = fft.irfft2(spectrum, s=signal.shape, workers=1)
        if scanner.noise > 0:
            used = np.flatnonzero(sampling.noise_profile[k]).tolist()
            # Acquired slices are drawn in order, once each, and forgotten when the scan has passed them.
            for i in used:
                if i not in noise:
                    white = rng.standard_normal(signal.shape, dtype=np.float32)
                    noise[i] = maker.picture(white, float(height[k]))
            noise = {i: noise[i] for i in noise if i >= used[0]}
            grainy = sum((sampling.noise_profile[k, i] * noise[i] for i in used), start=np.float32(0))
            picture += grainy * level
        result[k] = np.clip(np.rint(picture), *OUTPUT_HU)
    return result


@dataclass(frozen=True)
class _NoiseMaker:
    """Turns white noise into the noise of a slice; `sides` are the textures of streaks in the right and the left half."""

    texture: Floats
    streaks: StreakParameters | None
    sides: tuple[Floats, Floats] | None
    leftness: Floats

    @classmethod
    def of(cls, scanner: ScannerParameters, grid: Grid, texture: Floats) -> _NoiseMaker:
        x = grid.axis(2)
        leftness = smoothstep((x - x.mean()) / 60 + 0.5)
        if scanner.streaks is None:
            return cls(texture, None, None, leftness)
        sides = [_one_way(texture, grid, sign * scanner.streaks.angle, scanner.streaks.spread) for sign in (1, -1)]
        return cls(texture, scanner.streaks, (sides[0], sides[1]), leftness)

    def picture(self, white: Floats, height: float) -> Floats:
        """Noise of variance 1 (more at the apices) from `white`; `height` is the slice's share of the lungs' height."""
        spectrum = fft.rfft2(white, workers=1)
        even: Floats = fft.irfft2(spectrum * self.texture, s=white.shape, workers=1)
        if self.streaks is None or self.sides is None:
            return even
        apical = float(smoothstep(np.array((height - 0.65) / 0.3)))
        share = self.streaks.share + (self.streaks.shoulders - self.streaks.share) * apical
        # Rolled by half, the same white noise serves three times without being correlated where it meets.
        rolled = (-1.0) ** np.arange(spectrum.shape[0])[:, None], (-1.0) ** np.arange(spectrum.shape[1])[None, :]
        right, left = (
            fft.irfft2(spectrum * (roll * side).astype(np.float32), s=white.shape, workers=1)
            for roll, side in zip(rolled, self.sides, strict=True)
        )
        streaks = np.sqrt(1 - self.leftness) * right + np.sqrt(self.leftness) * left
        gain = 1 + (self.streaks.gain - 1) * apical
        return np.asarray(gain * (np.sqrt(1 - share) * even + np.sqrt(share) * streaks), np.float32)


def _one_way(texture: Floats, grid: Grid, angle: float, spread: float) -> Floats:
    """The texture (for `rfft2`, of unit variance) of noise that runs along `angle` degrees from the rows."""
    _, rows, columns = grid.shape
    fy, fx = np.fft.fftfreq(rows, grid.spacing[1])[:, None], np.fft.rfftfreq(columns, grid.spacing[2])[None, :]
    # Streaks along a direction vary across it.
    across = np.arctan2(fy, fx) - np.deg2rad(angle + 90)
    weight = np.exp(-((np.sin(across) / np.sin(np.deg2rad(spread))) ** 2) / 2)
    return _unit_variance(texture**2 * weight, rows, columns)


def _combine(weights: npt.NDArray[np.float32], slices: Floats) -> Floats:
    used = np.flatnonzero(weights)
    if len(used) == 1:
        return np.asarray(slices[used[0]] * weights[used[0]], np.float32)
    return np.asarray(sum((weights[i] * slices[i] for i in used), start=np.float32(0)), np.float32)


def kernel(scanner: ScannerParameters, grid: Grid) -> tuple[Floats, Floats]:
    """The kernel's MTF and the shape of its noise, for `rfft2` of a slice of `grid`.

    MTF(f) = g(f) (1 + e (1 - g(2 f))) with g(f) = 2^-(f/f50)^2; noise power is a ramp times MTF^2, with unit variance.
    """
    _, rows, columns = grid.shape
    f = np.hypot(np.fft.fftfreq(rows, grid.spacing[1])[:, None], np.fft.rfftfreq(columns, grid.spacing[2])[None, :])
    gauss = np.exp2(-((f / scanner.mtf50) ** 2))
    transfer = gauss * (1 + scanner.enhancement * (1 - np.exp2(-((2 * f / scanner.mtf50) ** 2))))
    power = (f + 0.03) * transfer**2
    if scanner.streaks is not None:
        measured = np.interp(f, SHARP_NOISE_STEP * np.arange(len(SHARP_NOISE)), SHARP_NOISE, right=0.0)
        sharp = float(np.clip((scanner.sharpness - 0.3) / 0.6, 0, 1))
        parts = [_unit_variance(part, rows, columns) ** 2 for part in (power, measured + 1e-4)]
        power = (1 - sharp) * parts[0] + sharp * parts[1]
    return transfer.astype(np.float32), _unit_variance(power, rows, columns)


def _unit_variance(power: npt.NDArray[np.floating], rows: int, columns: int) -> Floats:
    """The root of a power spectrum (for `rfft2`) after scaling it to unit variance."""
    # Frequencies of the half spectrum stand for two, except the first column and, for even sizes, the last.
    count = np.full(columns // 2 + 1, 2.0)
    count[0] = 1
    if columns % 2 == 0:
        count[-1] = 1
    variance = float((power * count).sum()) / (rows * columns)
    return np.sqrt(power / variance).astype(np.float32)
