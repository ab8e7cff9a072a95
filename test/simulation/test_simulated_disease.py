"""What emphysema, and its absence, look like in a simulated case."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from model.fleischner import CENTRILOBULAR, PARASEPTAL
from model.simulation import SimulatedCase, simulate
from model.simulation.anatomy import MaskParameters, build_anatomy
from model.simulation.grid import Grid, Resampler
from test.simulation.conftest import CaseMaker, draw, ideal

SCORES = [(2, 2), *(pytest.param(*scores, marks=pytest.mark.slow) for scores in ((0, 1), (1, 0), (3, 1), (4, 0), (5, 2)))]


def depth(case: SimulatedCase) -> npt.NDArray[np.float32]:
    """Distance in mm from the edge of the lung mask, inside the lungs; counts both sides of a shared edge."""
    inside = [ndimage.distance_transform_edt(case.lungs == side, sampling=case.spacing) for side in (1, 2)]
    return np.asarray(np.maximum(*inside), np.float32)


def fissure_distance(case: SimulatedCase) -> npt.NDArray[np.float32]:
    """Distance in mm to the nearest fissure, from the anatomy that the case's own seed gives."""
    rng = np.random.default_rng(np.random.SeedSequence(case.parameters.seed, spawn_key=(0,)))
    anatomy = build_anatomy(case.parameters.anatomy, rng)
    shape = case.hounsfield.shape
    grid = Grid((shape[0], shape[1], shape[2]), case.spacing, case.origin)
    return Resampler(anatomy.lattice, grid).slab(anatomy.fissure_distance(), slice(0, shape[0]))


@pytest.mark.parametrize(("cle", "pse"), SCORES)
def test_extent_made_is_the_extent_asked_for_and_gives_its_score(ideal_case: CaseMaker, cle: int, pse: int) -> None:
    case = ideal_case(40 + cle, cle, pse)
    disease = case.parameters.disease
    assert (case.centrilobular_score, case.paraseptal_score) == (cle, pse)
    assert case.centrilobular_percentage == pytest.approx(disease.centrilobular.percentage, abs=0.05)
    assert case.paraseptal_percentage == pytest.approx(disease.paraseptal.percentage, abs=0.05)
    grades = CENTRILOBULAR.grades[cle], PARASEPTAL.grades[pse]
    for grade, percentage in zip(grades, (case.centrilobular_percentage, case.paraseptal_percentage), strict=True):
        assert grade.lower <= percentage < grade.upper
    counted = 100 * np.count_nonzero(case.centrilobular & (case.lungs > 0)) / np.count_nonzero(case.lungs)
    assert counted == pytest.approx(case.centrilobular_percentage)


@pytest.mark.parametrize(("cle", "pse"), SCORES)
def test_truth_maps_share_no_voxel_and_stay_in_the_lungs(ideal_case: CaseMaker, cle: int, pse: int) -> None:
    case = ideal_case(40 + cle, cle, pse)
    assert not (case.centrilobular & case.paraseptal).any()
    assert not ((case.centrilobular | case.paraseptal | case.panlobular) & (case.lungs == 0)).any()


def test_destroyed_lung_lies_between_950_and_1000_below_zero(ideal_case: CaseMaker) -> None:
    case = ideal_case(44, 4, 0, grid="network")
    core = ndimage.binary_erosion(case.centrilobular, ndimage.generate_binary_structure(3, 3), iterations=2)
    values = case.hounsfield[core]
    assert values.size > 5000
    # What is brighter is vessels; nothing is darker than air.
    assert values.min() >= -1000
    assert np.mean(values <= -950) > 0.85


@pytest.mark.slow
def test_paraseptal_cells_are_dark_with_walls_between_them(ideal_case: CaseMaker) -> None:
    case = ideal_case(42, 2, 2, grid="network")
    values = case.hounsfield[case.paraseptal]
    assert values.min() >= -1000
    assert np.mean(values <= -940) > 0.4
    assert 0.05 < np.mean((values > -900) & (values < -650)) < 0.5


@pytest.mark.parametrize("seed", [43, 42])
def test_paraseptal_lies_on_pleura_and_fissures_and_centrilobular_away_from_them(ideal_case: CaseMaker, seed: int) -> None:
    case = ideal_case(seed, seed - 40, {43: 1, 42: 2}[seed])
    surface = np.minimum(depth(case), fissure_distance(case))
    cell = case.parameters.disease.paraseptal
    reach = 3 * max(cell.cell_radius, cell.bulla_radius if cell.bullae else 0)
    paraseptal, centrilobular = surface[case.paraseptal], surface[case.centrilobular]
    assert paraseptal.max() < reach
    assert np.median(paraseptal) < 1.3 * cell.cell_radius or cell.bullae > 0
    assert np.median(centrilobular) > 1.5 * np.median(paraseptal)
    # Lobular centres lie 4 mm inside, so the layer on the pleura itself is all but free of CLE.
    assert np.mean(centrilobular < 2) < 0.08
    assert np.mean(paraseptal < 6) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("predominance", "upper"), [(3.0, True), (-3.0, False)])
def test_predominance_decides_which_zones_centrilobular_disease_takes(predominance: float, upper: bool) -> None:
    parameters = ideal(draw(50, 1, 0))
    disease = parameters.disease
    centrilobular = replace(disease.centrilobular, upper_predominance=predominance, patchiness=0.2)
    case = simulate(replace(parameters, disease=replace(disease, centrilobular=centrilobular)), "example")
    height = np.cumsum((case.lungs > 0).sum((1, 2)))
    half = int(np.searchsorted(height, height[-1] / 2))
    share = case.centrilobular[half:].sum() / case.centrilobular.sum()
    assert share > 0.7 if upper else share < 0.35


@pytest.mark.slow
def test_lesions_are_small_when_few_and_coalesce_when_disease_is_extensive() -> None:
    parameters = ideal(draw(41, 1, 0))

    def diameters(percentage: float) -> npt.NDArray[np.float64]:
        centrilobular = replace(parameters.disease.centrilobular, percentage=percentage)
        disease = replace(parameters.disease, centrilobular=centrilobular)
        case = simulate(replace(parameters, disease=disease), "network")
        labels, _ = ndimage.label(case.centrilobular)
        volumes = np.bincount(labels.ravel())[1:] * float(np.prod(case.spacing))
        return np.asarray((6 * volumes / np.pi) ** (1 / 3), np.float64)

    trace, confluent = diameters(3.0), diameters(40.0)
    assert len(trace) > 100
    assert 2 <= np.median(trace) <= 10
    assert np.mean((trace >= 1) & (trace <= 12)) > 0.85
    # Most of extensive disease is one or a few confluent regions.
    assert np.sum(np.sort(confluent)[-3:] ** 3) > 0.5 * np.sum(confluent**3)
    assert np.sum(np.sort(trace)[-3:] ** 3) < 0.15 * np.sum(trace**3)


@pytest.mark.slow
def test_septa_show_between_destroyed_lobules_and_nowhere_else(ideal_case: CaseMaker) -> None:
    with_septa = ideal_case(44, 4, 0, grid="network")
    parameters = with_septa.parameters
    mesh = parameters.disease.mesh
    assert mesh is not None
    without = simulate(replace(parameters, disease=replace(parameters.disease, mesh=replace(mesh, septum=0.0))), "network")
    np.testing.assert_array_equal(with_septa.centrilobular, without.centrilobular)
    higher = with_septa.hounsfield.astype(int) - without.hounsfield
    near = ndimage.binary_dilation(with_septa.centrilobular)
    assert higher.min() >= -1
    assert np.mean(higher[~near] > 3) < 1e-3
    assert 0.1 < np.mean(higher[with_septa.centrilobular] > 10) < 0.6


@pytest.mark.slow
def test_paraseptal_disease_that_prefers_recesses_has_less_lung_around_it() -> None:
    parameters = ideal(draw(43, 0, 1))
    around = []
    for recess in (0.0, 20.0):
        paraseptal = replace(parameters.disease.paraseptal, recess=recess)
        case = simulate(replace(parameters, disease=replace(parameters.disease, paraseptal=paraseptal)), "example")
        share = ndimage.gaussian_filter((case.lungs > 0).astype(np.float32), [9 / s for s in case.spacing])
        around.append(float(share[case.paraseptal].mean()))
    assert around[1] < around[0] - 0.04


@pytest.mark.slow
def test_panlobular_emphysema_prefers_the_bases_and_displaces_no_other(ideal_case: CaseMaker) -> None:
    case = ideal_case(46, 1, 1, 15.0)
    assert case.panlobular_percentage == pytest.approx(15, abs=0.05)
    assert not (case.panlobular & (case.centrilobular | case.paraseptal)).any()
    height = np.cumsum((case.lungs > 0).sum((1, 2)))
    half = int(np.searchsorted(height, height[-1] / 2))
    assert case.panlobular[:half].sum() > 0.75 * case.panlobular.sum()


def test_healthy_lung_has_the_density_and_the_gradient_of_its_parameters() -> None:
    parameters = ideal(draw(60, 0, 0))
    tissue = replace(parameters.anatomy.parenchyma, density=-850.0, gradient=45.0, dependent=0.0, mottle=4.0)
    disease = replace(
        parameters.disease,
        centrilobular=replace(parameters.disease.centrilobular, percentage=0.0),
        paraseptal=replace(parameters.disease.paraseptal, percentage=0.0),
    )
    anatomy = replace(parameters.anatomy, parenchyma=tissue)
    case = simulate(replace(parameters, anatomy=anatomy, disease=disease), "example")
    assert not (case.centrilobular | case.paraseptal | case.panlobular).any()
    assert (case.centrilobular_score, case.paraseptal_score) == (0, 0)
    inner = depth(case) > 6
    assert np.median(case.hounsfield[inner]) == pytest.approx(-850, abs=12)
    rows = np.flatnonzero((case.lungs > 0).any((0, 2)))
    medians = {y: np.median(case.hounsfield[:, y][inner[:, y]]) for y in rows if inner[:, y].sum() > 500}
    slope = np.polyfit(list(medians), list(medians.values()), 1)[0]
    assert slope * len(rows) == pytest.approx(45, abs=12)
    # Apart from airways, nothing healthy is as dark as emphysema.
    assert np.mean(case.hounsfield[inner] < -950) < 0.005


@pytest.mark.slow
def test_sharp_noisy_scan_of_a_healthy_lung_has_low_attenuation_that_is_not_emphysema() -> None:
    parameters = draw(61, 0, 0)
    scanner = replace(parameters.scanner, sharpness=1.0, mtf50=0.55, noise=18.0, slice_thickness=1.0)
    disease = replace(
        parameters.disease,
        centrilobular=replace(parameters.disease.centrilobular, percentage=0.0),
        paraseptal=replace(parameters.disease.paraseptal, percentage=0.0),
    )
    case = simulate(replace(parameters, scanner=scanner, disease=disease), "network")
    assert np.mean(case.hounsfield[case.lungs > 0] < -950) > 0.03
    assert not (case.centrilobular | case.paraseptal).any()


@pytest.mark.slow
def test_trapped_gas_is_dark_but_lighter_than_emphysema() -> None:
    parameters = ideal(draw(62, 0, 0))
    disease = replace(
        parameters.disease,
        centrilobular=replace(parameters.disease.centrilobular, percentage=0.0),
        paraseptal=replace(parameters.disease.paraseptal, percentage=0.0),
    )
    tissue = replace(parameters.anatomy.parenchyma, density=-845.0)
    parameters = replace(parameters, anatomy=replace(parameters.anatomy, parenchyma=tissue))
    confounders = replace(parameters.confounders, trapping=30.0, trapping_hu=-925.0, trapping_length=15.0)
    plain = simulate(replace(parameters, disease=disease), "example")
    trapped = simulate(replace(parameters, disease=disease, confounders=confounders), "example")
    changed = (trapped.hounsfield < plain.hounsfield - 40) & (plain.hounsfield < -750) & (trapped.lungs > 0)
    assert 0.15 < changed.sum() / (trapped.lungs > 0).sum() < 0.35
    assert np.quantile(trapped.hounsfield[changed], 0.01) >= -942
    assert -935 < np.median(trapped.hounsfield[changed]) < -880
    assert trapped.centrilobular_percentage == 0


@pytest.mark.slow
def test_same_person_with_and_without_disease_differs_only_where_the_disease_is() -> None:
    parameters = draw(63, 1, 1)
    # Thick slices and motion would carry what a lesion changes to slices that do not show it.
    parameters = replace(
        parameters,
        confounders=replace(parameters.confounders, motion=0.0),
        scanner=replace(parameters.scanner, slice_thickness=1.0, slice_increment=1.0),
    )
    disease = replace(
        parameters.disease,
        centrilobular=replace(parameters.disease.centrilobular, percentage=0.0),
        paraseptal=replace(parameters.disease.paraseptal, percentage=0.0),
    )
    sick = simulate(parameters, "network")
    well = simulate(replace(parameters, disease=disease), "network")
    np.testing.assert_array_equal(sick.lungs, well.lungs)
    near = ndimage.binary_dilation(sick.centrilobular | sick.paraseptal, iterations=5)
    assert (~near & (sick.lungs > 0)).any()
    # The kernel's ringing carries a rounding step or two, and lesions that begin between two slices have no truth voxel, but
    # lung around them is a little darker; lungs, vessels and noise are the same.
    difference = np.abs(sick.hounsfield.astype(int) - well.hounsfield)
    assert np.mean(difference[~near] > 3) < 0.01
    assert np.mean(difference[~near] > 50) < 1e-4
    assert np.mean(difference[sick.centrilobular] > 30) > 0.7


@pytest.mark.slow
def test_a_mask_made_by_a_threshold_has_airways_but_no_vessels_and_the_same_percentages(ideal_case: CaseMaker) -> None:
    case = ideal_case(42, 2, 2)
    parameters = case.parameters
    made = simulate(replace(parameters, mask=MaskParameters(airways=True, vessels=True)), "example")
    more, less = (made.lungs > 0) & (case.lungs == 0), (made.lungs == 0) & (case.lungs > 0)
    assert np.median(made.hounsfield[more]) < -950
    assert np.median(made.hounsfield[less]) > -500
    assert 0.003 < more.sum() / (case.lungs > 0).sum() < 0.06
    assert 0.003 < less.sum() / (case.lungs > 0).sum() < 0.06
    assert not ((made.centrilobular | made.paraseptal) & (made.lungs == 0)).any()
    disease = parameters.disease
    assert made.centrilobular_percentage == pytest.approx(disease.centrilobular.percentage, abs=0.05)
    assert made.paraseptal_percentage == pytest.approx(disease.paraseptal.percentage, abs=0.05)


@pytest.mark.slow
def test_a_repeated_slice_fills_the_scan_with_its_truth(ideal_case: CaseMaker) -> None:
    once = ideal_case(42, 2, 2)
    case = simulate(replace(once.parameters, repeated_level=0.6), "example")
    for name in ("hounsfield", "lungs", "centrilobular", "paraseptal"):
        repeated, whole = getattr(case, name), getattr(once, name)
        assert (repeated == repeated[0]).all()
        assert any(np.array_equal(repeated[0], one) for one in whole[30:60]), name
    share = 100 * case.centrilobular[0].sum() / (case.lungs[0] > 0).sum()
    assert case.centrilobular_percentage == pytest.approx(share)


@pytest.mark.slow
def test_same_parameters_give_the_same_voxels() -> None:
    first, second = (simulate(draw(64, 1, 1), "example") for _ in range(2))
    np.testing.assert_array_equal(first.hounsfield, second.hounsfield)
    np.testing.assert_array_equal(first.centrilobular, second.centrilobular)
    np.testing.assert_array_equal(first.paraseptal, second.paraseptal)


@pytest.mark.slow
def test_full_size_scan_shows_the_same_person_with_the_same_disease() -> None:
    parameters = draw(80, 3, 1)
    small, full = simulate(parameters, "network"), simulate(parameters, "scan")
    assert full.hounsfield.shape[1:] == (512, 512)
    volumes = [np.count_nonzero(case.lungs) * float(np.prod(case.spacing)) for case in (small, full)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.005)
    assert small.centrilobular_percentage == pytest.approx(full.centrilobular_percentage, abs=0.05)
    # The same lesions in the same places: the full-size truth, looked up at the small one's voxels.
    axes = [
        np.rint((o + s * np.arange(n) - start) / step).astype(int)
        for o, s, n, start, step in zip(
            small.origin, small.spacing, small.hounsfield.shape, full.origin, full.spacing, strict=True
        )
    ]
    inside = [(axis >= 0) & (axis < n) for axis, n in zip(axes, full.hounsfield.shape, strict=True)]
    for name in ("centrilobular", "paraseptal"):
        here = getattr(small, name)[np.ix_(*inside)]
        there = getattr(full, name)[np.ix_(*(axis[keep] for axis, keep in zip(axes, inside, strict=True)))]
        assert 2 * (here & there).sum() / (here.sum() + there.sum()) > 0.8, name
