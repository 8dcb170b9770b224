"""Strained cells: which strain a cell has, stresses against a known answer, and corrections with one of them."""

import numpy as np
import pandas as pd
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from conftest import needs_mirror
from pymatgen.analysis.elasticity import Strain

from helpers import structures
from helpers.benchmarks import strained_cells as cells
from helpers.potentials.ase import ASEPotential


def emt():
    return ASEPotential("emt", EMT(), elements=frozenset({13, 29}))


def test_the_strain_of_a_cell_is_what_was_imposed():
    rest = bulk("Cu", cubic=True)
    strain = Strain.from_voigt([0.01, -0.02, 0, 0.03, 0, 0.04])
    found = cells.strain_of(structures.strained(rest, strain).cell.array, rest.cell.array)
    assert found == pytest.approx(np.asarray(strain), abs=1e-12)


def test_the_live_set_needs_no_file_and_has_both_kinds():
    made = cells.cases(sets=["al-shear"])
    assert {case.info["kind"] for case in made} == {"stretch", "shear"}
    assert [case.info["strain"] for case in made if case.info["kind"] == "stretch"] == pytest.approx([-0.02, -0.01, 0.01, 0.02])
    # A shear of 0.02 in Voigt's notation is 0.01 as a component of the tensor.
    assert [case.info["strain"] for case in made if case.info["kind"] == "shear"] == pytest.approx([-0.01, -0.005, 0.005, 0.01])
    table = cells.run(emt(), made)
    assert table["reference"].isna().all()
    assert cells.summarise(table).empty


def test_the_stress_of_a_sheared_crystal_is_its_shear_modulus():
    table = cells.run(emt(), cells.cases(sets=["al-shear"]))
    sheared = table[table["kind"] == "shear"]
    assert sheared["component"].unique().tolist() == ["xy"]
    slope = (sheared["value"] / (2 * sheared["strain"])).mean()
    rest = bulk("Al", cubic=True, a=4.05)
    plus, minus = (
        emt().evaluate([structures.strained(rest, Strain.from_voigt([0, 0, 0, 0, 0, sign * 1e-3]))], stress=True)[0].stress[0, 1]
        for sign in (1, -1)
    )
    assert slope == pytest.approx((plus - minus) / 2e-3 / units.GPa, rel=0.02)
    assert sorted(table[table["kind"] == "stretch"]["component"].unique()) == ["xx", "yy", "zz"]


@pytest.fixture
def soft_in_shear():
    """A model that is right when stretched and half as stiff as it should be when sheared."""
    rows = []
    for kind, factor in (("stretch", 1.0), ("shear", 0.5)):
        for number, reference in enumerate((1.0, -2.0, 4.0)):
            rows.append(
                {
                    "model": "m",
                    "set": "four-elements",
                    "material": "X",
                    "case": f"{kind}/{number}",
                    "property": "stress_change",
                    "value": factor * reference,
                    "reference": reference,
                    "unit": "GPa",
                    "status": "ok",
                    "reason": "",
                    "kind": kind,
                    "component": "xy" if kind == "shear" else "xx",
                }
            )
    return pd.DataFrame(rows)


def test_each_kind_has_its_own_slope(soft_in_shear):
    slopes = cells.summarise(soft_in_shear).set_index("kind")["slope"]
    assert slopes["stretch"] == pytest.approx(1)
    assert slopes["shear"] == pytest.approx(0.5)


def test_one_cell_mends_its_kind_and_harms_the_other(soft_in_shear):
    own = cells.from_one_cell(soft_in_shear)
    sheared = own[own["material"] == "X, shear"]
    assert sheared["c"].tolist() == pytest.approx([2, 2, 2])
    assert sheared["mae_after"].to_numpy() == pytest.approx(0, abs=1e-12)
    across = cells.from_shear_to_stretch(soft_in_shear)
    harmed = across[across["from_kind"] == "shear"]
    assert harmed["mae_before"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert harmed["mae_after"].to_numpy() == pytest.approx(7 / 3)


def test_a_potential_without_stress_makes_failed_rows():
    class NoStress(ASEPotential):
        def evaluate(self, structures, *, stress=False, progress=False):
            return super().evaluate(structures, stress=False, progress=progress)

    table = cells.run(NoStress("emt", EMT(), elements=frozenset({13})), cells.cases(sets=["al-shear"]))
    assert (table["status"] == "failed").all()
    assert table["reason"].str.contains("no stress").all()


def test_unknown_set():
    with pytest.raises(KeyError, match="unknown set"):
        cells.cases(sets=["steel"])


@pytest.mark.slow
@needs_mirror
def test_the_cells_of_the_source():
    made = cells.cases(sets=["four-elements"])
    assert {case.material for case in made} == {"Si", "Mo", "Cu", "Ni"}
    for case in made:
        assert 1e-4 < abs(case.info["strain"]) <= 0.11
        strain = cells.strain_of(case.structures["frame"].cell.array, case.structures["undeformed"].cell.array)
        # Where a cell is sheared its stress is, too: the components of source and geometry belong together.
        if case.info["kind"] == "shear":
            place = np.unravel_index(np.argmax(np.abs(strain)), (3, 3))
            change = case.reference["stress_change"]
            off_diagonal = np.abs(change - np.diag(np.diag(change)))
            assert off_diagonal[place] == off_diagonal.max() > 0
            assert change[place] * strain[place] > 0
