"""Fine-tuning for energy differences: draws, energies against the pure crystals, and that the loop learns them."""

import functools

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from conftest import needs_mirror

from helpers import potentials
from helpers.benchmarks import Case, row
from helpers.experiments import mending
from helpers.training import trial
from helpers.training.fine_tune import Label


def toy_pool(n=14, held=3):
    """Return labels that can be told apart by their energy, and two pure crystals."""
    labels = [Label(bulk("NaCl", "rocksalt", a=5.6), float(k), np.full((2, 3), float(k)), np.zeros((3, 3))) for k in range(n)]
    crystals = {"Na": (bulk("Na", "bcc", a=4.2, cubic=True), -2.6), "Cl": (bulk("Cl", "sc", a=4.0), -1.8)}
    return mending.Pool(labels[held:], labels[:held], crystals)


def toy_case(seed=0):
    return mending.draw(Case("set/NaCl", "set", "NaCl", {}, {}, {"seed": seed}), toy_pool(), 10)


def test_draws_differ_by_seed_and_never_touch_what_is_held_out():
    drawn = []
    for seed in range(3):
        case = toy_case(seed)
        labels = [label.energy for label in trial.labels_of(case)]
        held = [label.energy for label in trial.labels_of(case, "held")]
        assert len(set(labels)) == 10
        assert held == [0.0, 1.0, 2.0]
        assert not set(labels) & set(held)
        drawn.append(labels)
    assert drawn[0] != drawn[1] != drawn[2]
    assert [label.energy for label in trial.labels_of(toy_case(1))] == drawn[1]


class _Constant:
    """A potential whose energy is a given number per atom of each element."""

    key = "constant"

    def __init__(self, **per_atom):
        self.per_atom = per_atom

    def evaluate(self, structures):
        from helpers.potentials.base import Prediction

        energies = [sum(self.per_atom[s] for s in atoms.get_chemical_symbols()) for atoms in structures]
        return [Prediction(e, np.zeros((len(atoms), 3))) for e, atoms in zip(energies, structures, strict=True)]


def test_an_energy_difference_is_taken_from_the_pure_crystals():
    """A sum of atomic energies has no energy of mixing, and what is left of DFT is what its crystals leave."""
    case = toy_case()
    rows = pd.DataFrame(mending.test(_Constant(Na=-1.3, Cl=-2.4), case, functools.partial(row, "constant", case)))
    made = rows[rows["property"] == "energy_difference"]
    assert made["value"].to_numpy() == pytest.approx(0, abs=1e-12)
    # NaCl holds one Na, half of the cubic cell's -2.6 eV, and one Cl of -1.8 eV.
    assert made["reference"].tolist() == pytest.approx([k + 1.3 + 1.8 for k in (0.0, 1.0, 2.0)])
    assert (rows["property"] == "force").sum() == 3 * 2 * 3


@pytest.fixture(scope="module")
def taught():
    potential = potentials.load("chgnet-0.3.0")
    cases = mending.cases(sets=["teacher"])
    return mending.run(potential, cases, mending.Protocol()), potential


@pytest.mark.slow
def test_the_loop_learns_the_energies_of_a_stiffer_teacher(taught):
    table, _ = taught
    summary = mending.summarise(table).set_index("stage")
    assert summary.loc["before", "energy_slope"] == pytest.approx(1 / 1.25, abs=1e-3)
    assert summary.loc["before", "force_slope"] == pytest.approx(1 / 1.25, abs=1e-3)
    assert abs(summary.loc["after", "force_slope"] - 1) < 0.75 * abs(summary.loc["before", "force_slope"] - 1)
    assert np.isnan(summary["vacancy_energy"]).all()


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_checkpoint(taught, monkeypatch, killed_after, tmp_path):
    table, potential = taught
    monkeypatch.setattr(trial.results, "runs_dir", lambda: tmp_path)
    protocol = mending.Protocol()
    [case] = mending.cases(sets=["teacher"])
    with killed_after(3) as kept:
        mending.run(potential, [case], protocol)
    assert kept[0].is_file()
    resumed = mending.run(potential, [case], protocol)
    assert not kept[0].is_file()
    errors = [t.loc[t["property"] == "validation_force_mae", "value"].to_numpy() for t in (table, resumed)]
    assert errors[1] == pytest.approx(errors[0], abs=1e-4)


def test_unknown_sets_are_refused():
    with pytest.raises(KeyError, match="there are: vacancy-frames, orderings, teacher"):
        mending.cases(sets=["vacancies"])


@pytest.mark.slow
@needs_mirror
def test_vacancy_frames_cost_what_a_vacancy_costs():
    """Cold frames lie above the crystal by the vacancy and the heat: more than 3/2 kT per atom in excess of a few eV is not a vacancy."""
    protocol = mending.Protocol()
    everything = mending.cases(protocol, ["vacancy-frames"])
    assert len(everything) == len(protocol.elements) * len(protocol.seeds)
    cases = {case.material: case for case in everything if case.info["seed"] == 0}
    assert set(cases) == set(protocol.elements)
    for element, case in cases.items():
        labels = trial.labels_of(case) + trial.labels_of(case, "held")
        assert len(labels) == protocol.n_labels + protocol.n_held_out
        crystal = case.reference[f"energy/crystal/{element}"] / len(case.structures[f"crystal/{element}"])
        above = [label.energy - len(label.atoms) * crystal for label in labels]
        assert min(above) > 0.5, element
        sizes = {len(label.atoms) for label in labels}
        assert sizes == {{"Si": 63, "Mo": 53, "Li": 53, "Cu": 107, "Ni": 107}[element]}


@needs_mirror
def test_orderings_are_labelled_unrelaxed_and_tested_relaxed():
    protocol = mending.Protocol(seeds=(0,))
    for case in mending.cases(protocol, ["orderings"]):
        labels, held = trial.labels_of(case), trial.labels_of(case, "held")
        assert (len(labels), len(held)) == (protocol.n_labels, protocol.n_held_out_orderings)
        assert min(np.abs(label.forces).max() for label in labels) > 1e-3
        largest = [[np.abs(label.forces).max() for label in part] for part in (held, labels)]
        assert max(largest[0]) < 0.15
        assert np.median(largest[0]) < 0.1 * np.median(largest[1])
        assert {len(label.atoms) for label in labels + held} == {16}
