"""The scanner: noise, sharpness, slices, and the grids that a scan is laid on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from model.preprocessing import PAPER_INPUT_SHAPE
from model.simulation.grid import Grid
from model.simulation.scanner import NETWORK_BOX, Sampling, ScannerParameters, Slab, StreakParameters, kernel, plan, scan

LOW, HIGH = np.array([0.0, -90.0, -130.0]), np.array([256.0, 89.2, 129.2])
PROTOCOL = ScannerParameters(
    sharpness=0.2,
    mtf50=0.32,
    enhancement=0.0,
    noise=12.0,
    noise_centre=0.0,
    slice_thickness=1.0,
    slice_increment=0.8,
    spacing=0.7,
)


def square(rows: int, slices: int, spacing: float = 0.7) -> Sampling:
    grid = Grid((slices, rows, rows), (1.0, spacing, spacing), (0.0, 0.0, 0.0))
    identity = np.eye(slices, dtype=np.float32)
    return Sampling(grid, 1, identity, identity)


def noise(protocol: ScannerParameters, seed: int = 0) -> npt.NDArray[np.float64]:
    sampling = square(128, 24)
    flat = np.full(sampling.rendered.shape, -850, np.float32)
    return scan(flat, protocol, sampling, np.random.default_rng(seed)).astype(float) + 850


def test_the_grid_of_a_network_is_the_input_of_the_paper() -> None:
    assert NETWORK_BOX == PAPER_INPUT_SHAPE


@pytest.mark.parametrize(("sharpness", "mtf50"), [(0.0, 0.28), (1.0, 0.55)])
def test_noise_has_the_level_of_the_protocol(sharpness: float, mtf50: float) -> None:
    protocol = replace(PROTOCOL, sharpness=sharpness, mtf50=mtf50)
    assert noise(protocol).std() == pytest.approx(protocol.noise_hu, rel=0.03)
    assert abs(noise(protocol).mean()) < 0.5


def test_sharp_kernels_and_thin_slices_are_noisier() -> None:
    sharp, thick = replace(PROTOCOL, sharpness=1.0), replace(PROTOCOL, slice_thickness=5.0)
    assert sharp.noise_hu > 2 * PROTOCOL.noise_hu
    assert thick.noise_hu < 0.75 * PROTOCOL.noise_hu


def test_noise_of_a_sharp_kernel_is_finer() -> None:
    def correlation(protocol: ScannerParameters) -> float:
        field = noise(protocol)
        return float(np.mean(field[:, :, :-1] * field[:, :, 1:]) / field.var())

    assert correlation(replace(PROTOCOL, mtf50=0.28)) > correlation(replace(PROTOCOL, mtf50=0.6)) + 0.2


def test_streaks_run_one_way_and_leave_the_level_as_it_is() -> None:
    streaks = StreakParameters(share=0.8, shoulders=0.8, gain=1.0, angle=0.0, spread=15.0)
    level, field = replace(PROTOCOL, streaks=streaks).noise_hu, noise(replace(PROTOCOL, streaks=streaks))
    assert field.std() == pytest.approx(level, rel=0.03)
    along, across = np.mean(field[:, :, :-3] * field[:, :, 3:]), np.mean(field[:, :-3] * field[:, 3:])
    assert along > across + 0.3 * level**2
    even = noise(replace(PROTOCOL, streaks=replace(streaks, share=0.0, shoulders=0.0)))
    assert abs(np.mean(even[:, :, :-3] * even[:, :, 3:]) - np.mean(even[:, :-3] * even[:, 3:])) < 0.05 * level**2


def test_noise_of_the_sharpest_kernel_has_the_spectrum_of_a_real_one() -> None:
    # Lung-PET-CT-Dx A0001: most power near 0.31 per mm, half of that below 0.18 and above 0.48, a tenth beyond 0.61.
    streaks = StreakParameters(share=0.0, shoulders=0.0, gain=1.0, angle=0.0, spread=15.0)
    field = noise(replace(PROTOCOL, sharpness=1.0, mtf50=0.55, streaks=streaks))
    power = np.abs(np.fft.fft2(field)) ** 2
    f = np.hypot(np.fft.fftfreq(128, 0.7)[:, None], np.fft.fftfreq(128, 0.7)[None, :])
    at = {low: float(power[:, (f > low - 0.02) & (f < low + 0.02)].mean()) for low in (0.1, 0.31, 0.48, 0.63)}
    assert at[0.1] / at[0.31] == pytest.approx(0.16, abs=0.05)
    assert at[0.48] / at[0.31] == pytest.approx(0.48, abs=0.08)
    assert at[0.63] / at[0.31] < 0.12


def test_a_slab_has_its_place_and_its_pixels() -> None:
    sampling = plan(PROTOCOL, Slab(level=0.75, slices=9, increment=0.8, spacing=0.65), LOW, HIGH)
    assert sampling.grid.spacing == (0.8, 0.65, 0.65)
    assert np.mean(sampling.grid.axis(0)) == pytest.approx(0.75 * 256)
    assert sampling.grid.shape[2] * 0.65 > 259.2


def test_half_of_the_contrast_is_left_at_the_frequency_of_the_protocol() -> None:
    # 256 pixels of 0.5 mm: frequencies are multiples of 1 / 128 per mm, and 41 / 128 = 0.3203.
    grid = Grid((1, 256, 256), (1.0, 0.5, 0.5), (0.0, 0.0, 0.0))
    transfer, _ = kernel(replace(PROTOCOL, mtf50=41 / 128), grid)
    assert transfer[0, 0] == pytest.approx(1)
    assert transfer[0, 41] == pytest.approx(0.5, abs=1e-5)
    assert transfer[41, 0] == pytest.approx(0.5, abs=1e-5)


def test_an_enhancing_kernel_overshoots_at_an_edge_and_a_smooth_one_does_not() -> None:
    sampling = square(128, 1)
    edge = np.full(sampling.rendered.shape, -850, np.float32)
    edge[:, :, 40:88] = 0
    for enhancement, overshoots in ((0.0, False), (0.5, True)):
        protocol = replace(PROTOCOL, noise=0.0, mtf50=0.4, enhancement=enhancement)
        highest = int(scan(edge, protocol, sampling, np.random.default_rng(0)).max())
        assert (highest > 10) is overshoots


def test_a_thick_slice_averages_what_it_spans() -> None:
    protocol = replace(PROTOCOL, noise=0.0, mtf50=50.0, slice_thickness=5.0, slice_increment=5.0)
    sampling = plan(protocol, "scan", LOW, HIGH)
    assert sampling.grid.spacing[0] == pytest.approx(5.0)
    np.testing.assert_allclose(sampling.profile.sum(1), 1, rtol=1e-5)
    plate = np.zeros(sampling.rendered.shape[0], np.float32)
    middle = sampling.every * 10 + sampling.every // 2
    plate[middle] = 1000
    # One rendered slice of the five that make up this one, and of no other.
    seen = sampling.profile @ plate
    assert seen[10] == pytest.approx(1000 / sampling.every, rel=1e-4)
    assert np.count_nonzero(seen > 1) == 1


def test_network_grid_gives_the_lungs_the_voxels_that_the_network_sees() -> None:
    grid = plan(PROTOCOL, "network", LOW, HIGH).grid
    np.testing.assert_allclose((HIGH - LOW) / grid.spacing, (128, 224, 288))
    assert (np.array(grid.origin) < LOW).all()
    assert (np.array(grid.origin) + np.array(grid.spacing) * (np.array(grid.shape) - 1) > HIGH).all()


def test_slices_between_thick_acquired_ones_are_interpolated() -> None:
    protocol = replace(PROTOCOL, slice_thickness=5.0, slice_increment=5.0)
    sampling = plan(protocol, "network", LOW, HIGH)
    np.testing.assert_allclose(sampling.profile.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(sampling.noise_profile.sum(1), 1, rtol=1e-5)
    # 140 slices of 2 mm hold what about 57 slices of 5 mm recorded.
    assert 56 <= sampling.noise_profile.shape[1] <= 59


def test_scan_grid_is_a_full_matrix_with_the_spacing_of_the_protocol() -> None:
    grid = plan(replace(PROTOCOL, slice_thickness=1.25, slice_increment=1.0), "scan", LOW, HIGH).grid
    assert grid.shape[1:] == (512, 512)
    assert grid.spacing == pytest.approx((1.0, 0.7, 0.7))
    assert grid.shape[0] == pytest.approx((HIGH - LOW)[0] + 16, abs=1)


def test_example_grid_is_small() -> None:
    grid = plan(PROTOCOL, "example", LOW, HIGH).grid
    assert grid.shape == (80, 192, 192)
    last = np.array(grid.origin) + np.array(grid.spacing) * (np.array(grid.shape) - 1)
    assert (np.array(grid.origin) < LOW).all()
    assert (last > HIGH).all()
