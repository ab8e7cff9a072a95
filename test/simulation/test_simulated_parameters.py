"""What is drawn for a case: by Table 1, in the stated ranges, and with nothing that tells of the disease."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from model.fleischner import CENTRILOBULAR, PARASEPTAL
from model.simulation import CaseParameters, draw_parameters
from model.simulation.case import Look

CASES = 3000


def draw_many(look: Look) -> list[CaseParameters]:
    return [draw_parameters(np.random.SeedSequence(8, spawn_key=(k,)), look=look) for k in range(CASES)]


@pytest.fixture(scope="module")
def drawn() -> list[CaseParameters]:
    return draw_many("measured")


@pytest.fixture(scope="module")
def drawn_first() -> list[CaseParameters]:
    return draw_many("first")


def scores(drawn: list[CaseParameters]) -> tuple[list[int], list[int]]:
    cle = [CENTRILOBULAR.score(p.disease.centrilobular.percentage) for p in drawn]
    return cle, [PARASEPTAL.score(p.disease.paraseptal.percentage) for p in drawn]


def test_scores_of_a_cohort_follow_the_development_set(drawn: list[CaseParameters]) -> None:
    # Xie et al. 2023, Table 1 b and c, #subjects (dev).
    tables = [(782, 431, 478, 430, 275, 111), (1145, 739, 623)]
    for made, cases in zip(scores(drawn), tables, strict=True):
        expected = np.array(cases) / 2507 * CASES
        assert stats.chisquare(np.bincount(made, minlength=len(cases)), expected).pvalue > 0.001


def test_subtypes_occur_together_in_patients_and_by_chance_alone_in_the_first_look(
    drawn: list[CaseParameters], drawn_first: list[CaseParameters]
) -> None:
    for made, correlated in ((drawn, True), (drawn_first, False)):
        cle, pse = (np.array(one) for one in scores(made))
        table = np.array([[np.sum((cle == a) & (pse == b)) for b in range(3)] for a in range(6)])
        assert (table > 0).all()
        assert bool(stats.spearmanr(cle, pse).statistic > 0.3) == correlated
        assert bool(stats.chi2_contingency(table).pvalue > 0.001) != correlated


@pytest.mark.parametrize("given", [0, 2])
def test_a_given_score_says_as_much_of_the_other_as_a_drawn_one(drawn: list[CaseParameters], given: int) -> None:
    cle, pse = (np.array(made) for made in scores(drawn))
    asked = [draw_parameters(np.random.SeedSequence(9, spawn_key=(k,)), paraseptal_score=given) for k in range(1000)]
    found = np.bincount(scores(asked)[0], minlength=6)
    expected = np.bincount(cle[pse == given], minlength=6)
    assert stats.chi2_contingency(np.array([found, expected])).pvalue > 0.001


def test_a_given_score_draws_percentages_all_over_its_interval() -> None:
    for subtype, position in ((CENTRILOBULAR, 0), (PARASEPTAL, 1)):
        for grade in subtype.grades:
            given: list[int | None] = [None, None]
            given[position] = grade.score
            parameters = [draw_parameters(np.random.SeedSequence(k), *given) for k in range(150)]
            values = [(p.disease.centrilobular if position == 0 else p.disease.paraseptal).percentage for p in parameters]
            assert {subtype.score(value) for value in values} == {grade.score}
            assert np.ptp(values) > 0.7 * min(grade.upper - grade.lower, 15)


def test_anatomy_confounders_and_scanner_do_not_depend_on_the_disease() -> None:
    for k in range(20):
        none, worst = (draw_parameters(np.random.SeedSequence(k), *pair) for pair in ((0, 0), (5, 2)))
        assert none.seed == worst.seed
        assert none.anatomy == worst.anatomy
        assert none.confounders == worst.confounders
        assert none.scanner == worst.scanner


def test_confounders_occur_with_every_score(drawn: list[CaseParameters]) -> None:
    cle, pse = scores(drawn)
    for made, count in ((cle, 6), (pse, 3)):
        for score in range(count):
            group = [p.confounders for p, s in zip(drawn, made, strict=True) if s == score]
            for name in ("trapping", "speckle", "motion", "hardening", "streaks"):
                present = np.mean([getattr(c, name) > 0 for c in group])
                assert 0.2 < present < 0.8, (score, name)


def test_parameters_stay_in_the_ranges_that_they_are_meant_for(drawn: list[CaseParameters]) -> None:
    spacing = np.array([p.scanner.spacing for p in drawn])
    assert (spacing.min() >= 0.478) & (spacing.max() <= 1.0)
    assert all(512 * p.scanner.spacing > 2 * p.anatomy.thorax.half_width for p in drawn)
    thickness = np.array([p.scanner.slice_thickness for p in drawn])
    assert (thickness.min() >= 0.6) & (thickness.max() <= 5.0) & (np.ptp(thickness) > 4)
    density = np.array([p.anatomy.parenchyma.density for p in drawn])
    # COPDGene's normal patches have a median of -895 HU; some healthy lungs are as dark as what a threshold calls emphysema.
    assert np.median(density) == pytest.approx(-897, abs=4)
    assert np.mean(density < -925) > 0.06
    seen = np.array([p.scanner.noise_hu for p in drawn])
    assert np.mean((seen >= 8) & (seen <= 20)) > 0.55
    assert (
        abs(stats.spearmanr(seen[seen < 20], [p.scanner.sharpness for p in drawn if p.scanner.noise_hu < 20]).statistic) < 0.1
    )
    assert all(p.confounders.trapping_hu <= -900 for p in drawn)
    assert all(6 <= p.disease.centrilobular.lobule_spacing <= 10 for p in drawn)
    assert all(p.disease.edge <= 0.8 and -995 <= p.disease.attenuation <= -968 for p in drawn)
    mild = [p.disease.paraseptal for p in drawn if p.disease.paraseptal.percentage < 3]
    assert all(p.cell_radius < 7 and p.bullae == 0 for p in mild)
    assert all(p.disease.paraseptal.wall < 1 for p in drawn)


def test_the_first_look_stays_in_its_ranges(drawn_first: list[CaseParameters]) -> None:
    assert all(30 <= p.anatomy.parenchyma.gradient <= 60 for p in drawn_first)
    assert np.mean([p.anatomy.parenchyma.density for p in drawn_first]) == pytest.approx(-850, abs=5)
    assert all(-930 <= p.confounders.trapping_hu <= -880 for p in drawn_first)
    assert all(10 <= p.disease.centrilobular.lobule_spacing <= 25 for p in drawn_first)
    mild = [p.disease.paraseptal for p in drawn_first if p.disease.paraseptal.percentage < 3]
    assert all(2 * p.cell_radius <= 10 and p.bullae == 0 for p in mild)


@pytest.mark.parametrize(("look", "spacings"), [("measured", (6, 10)), ("first", (10, 20))])
def test_shifted_cases_lie_outside_the_trained_range(look: Look, spacings: tuple[float, float]) -> None:
    sequences = [np.random.SeedSequence(k) for k in range(200)]
    shifted = [draw_parameters(s, shifted_scanner=True, shifted_disease=True, look=look) for s in sequences]
    drawn = draw_many(look)
    noise = "noise" if look == "first" else "noise_hu"
    trained = {name: max(getattr(p.scanner, name) for p in drawn) for name in ("sharpness", "slice_thickness", noise)}
    for parameters in shifted:
        assert any(getattr(parameters.scanner, name) > limit for name, limit in trained.items())
        spacing = parameters.disease.centrilobular.lobule_spacing
        assert spacing < spacings[0] or spacing >= spacings[1]
        assert parameters.disease.centrilobular.upper_predominance < 0.3
    for name, limit in trained.items():
        assert any(getattr(p.scanner, name) > limit for p in shifted), name


def test_drawing_leaves_the_seed_as_it_was() -> None:
    seed = np.random.SeedSequence(3)
    assert astuple(draw_parameters(seed)) == astuple(draw_parameters(seed))


@pytest.mark.parametrize(("cle", "pse"), [(6, 0), (-1, 0), (0, 3)])
def test_a_score_that_does_not_exist_is_refused(cle: int, pse: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to"):
        draw_parameters(np.random.SeedSequence(0), cle, pse)
