"""The controlled experiment: structures, students, and what is measured on them."""

import numpy as np
import pandas as pd
import pytest
import torch
from ase.build import bulk
from conftest import EMT_KEY as EMT

from helpers import potentials
from helpers.experiments import students
from helpers.experiments.students import Protocol, Student
from helpers.potentials import PotentialError, untrained
from helpers.training import fine_tune, trial
from helpers.training.fine_tune import Label, Recipe


@pytest.fixture(scope="module")
def teacher():
    return potentials.load(EMT)


@pytest.fixture(scope="module")
def relaxations(teacher):
    return students.relaxation_frames(teacher, "Cu", 16, 0.08, 0.05, seed=0)


@pytest.fixture(scope="module")
def broad(teacher):
    return students.broad_frames(teacher, "Cu", 20, seed=0)


def rms(labels):
    return float(np.sqrt(np.mean(np.concatenate([label.forces.ravel() for label in labels]) ** 2)))


def test_one_thing_is_varied_at_a_time():
    found = students.students(Protocol())
    assert len(found) == len(set(found))
    standard = Student("mace", 16, 0.0, 100, 0.08, 600, 0)
    for student in found:
        changed = [name for name in ("n_frames", "start_a", "steps") if getattr(student, name) != getattr(standard, name)]
        changed += ["network"] if (student.architecture, student.channels) != ("mace", 16) else []
        assert len(changed) <= 1
        assert not changed or student.share in (0.0, 1.0)
    # Every student exists with every seed.
    assert len(found) % len(Protocol().seeds) == 0


@pytest.mark.slow
def test_relaxations_end_near_equilibrium_and_broad_frames_do_not(relaxations, broad):
    assert len(relaxations) == 16
    assert len(broad) == 20
    # Eight frames of one relaxation: the last has nearly no forces, the first has.
    assert np.abs(relaxations[7].forces).max() < 0.05 < np.abs(relaxations[0].forces).max()
    assert rms(broad) > 3 * rms(relaxations)
    # Vacancies and slabs are among them.
    assert {len(label.atoms) for label in broad} > {8, 15}


@pytest.mark.slow
def test_the_teacher_labels_what_it_labels(teacher, relaxations):
    answer = teacher.evaluate([relaxations[3].atoms])[0]
    np.testing.assert_allclose(answer.forces, relaxations[3].forces, atol=1e-10)
    assert answer.energy == pytest.approx(relaxations[3].energy)


@pytest.mark.slow
def test_frames_depend_on_the_seed_alone(teacher, broad):
    again = students.broad_frames(teacher, "Cu", 5, seed=0)
    np.testing.assert_allclose(again[4].atoms.positions, broad[4].atoms.positions, atol=1e-10)
    other = students.broad_frames(teacher, "Cu", 5, seed=1)
    assert np.abs(other[4].forces[:5] - broad[4].forces[:5]).max() > 0.1


@pytest.mark.slow
def test_a_share_of_the_frames_is_broad(teacher):
    protocol = Protocol(n_frames=12)
    mixture = students.training_frames(teacher, "Cu", Student("mace", 4, 0.25, 12, 0.08, 5, 3), protocol)
    pure = students.training_frames(teacher, "Cu", Student("mace", 4, 0.0, 12, 0.08, 5, 3), protocol)
    assert len(mixture) == len(pure) == 12
    near = {label.energy for label in pure}
    assert sum(label.energy in near for label in mixture) == 9


def test_a_vacancy_takes_a_neighbouring_pair_out_of_a_compound():
    assert len(students.without_vacancy_sites(bulk("Cu", cubic=True), 1)) == 3
    kept = students.without_vacancy_sites(bulk("MgO", "rocksalt", a=4.2, cubic=True), 0)
    assert kept.symbols.count("Mg") == kept.symbols.count("O") == 3


def test_reference_energies_sum_up_to_the_labels():
    def label(formula, energy):
        atoms = bulk(*formula, cubic=True)
        return Label(atoms, energy, np.zeros((len(atoms), 3)))

    found = trial.reference_energies([label(("MgO", "rocksalt", 4.2), -48.0), label(("MgO", "zincblende", 4.6), -48.0)])
    assert found["Mg"] + found["O"] == pytest.approx(-12.0)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", untrained.ARCHITECTURES)
def test_an_untrained_network_learns(architecture, relaxations):
    energies = trial.reference_energies(relaxations)
    network = untrained.build(architecture, energies, channels=8, force_rms=rms(relaxations), seed=0)
    same = untrained.build(architecture, energies, channels=8, force_rms=rms(relaxations), seed=0)
    assert same.evaluate([relaxations[0].atoms])[0].energy == network.evaluate([relaxations[0].atoms])[0].energy
    recipe = Recipe(epochs=20, learning_rate=1e-2, batch_size=5, energy_weight=10, force_weight=10, max_gradient_norm=10)
    history = fine_tune.fine_tune(network, relaxations, recipe).history
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(("max_l", "dtype"), [(1, torch.float32), (0, torch.float64)])
def test_equivariant_and_double_networks_learn(max_l, dtype, relaxations):
    energies = trial.reference_energies(relaxations)
    plain = untrained.build("mace", energies, channels=4, force_rms=rms(relaxations), seed=0)
    network = untrained.build("mace", energies, channels=4, force_rms=rms(relaxations), seed=0, max_l=max_l, dtype=dtype)
    assert {parameter.dtype for parameter in network.network.parameters()} == {dtype}
    more = network.describe()["parameters"] - plain.describe()["parameters"]
    assert (more > 0) == (max_l > 0)
    if not max_l:
        # The same network, in other digits.
        first, second = (one.evaluate([relaxations[0].atoms])[0] for one in (plain, network))
        assert first.energy == pytest.approx(second.energy, abs=1e-5)
    recipe = Recipe(epochs=20, learning_rate=1e-2, batch_size=5, energy_weight=10, force_weight=10, max_gradient_norm=10)
    history = fine_tune.fine_tune(network, relaxations, recipe).history
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]


def test_chgnet_has_no_equivariant_features():
    with pytest.raises(PotentialError, match="max_l must be 0, not 1"):
        untrained.build("chgnet", {"Cu": 0.0}, channels=4, force_rms=1.0, seed=0, max_l=1)


@pytest.mark.slow
def test_random_weights_leave_pytorchs_generator_alone(relaxations):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    untrained.build("mace", {"Cu": 0.0}, channels=4, force_rms=1.0, seed=0)
    assert torch.rand(1) == expected


def test_an_unknown_architecture_is_refused():
    with pytest.raises(PotentialError, match="no architecture 'gpt'"):
        untrained.build("gpt", {"Cu": 0.0}, channels=4, force_rms=1.0, seed=0)


@pytest.mark.slow
def test_a_student_as_good_as_its_teacher_has_slope_one(teacher):
    """The measurement itself: the teacher scaled by 0.8 must come out with 0.8 everywhere."""
    case = students.cases(Protocol(), ["small"])[0]
    soft = teacher.scaled(0.8)
    made = trial.filled(pd.DataFrame(students.examine(teacher, soft, case, "trained")))
    assert students.scales(made)["slope"].to_numpy() == pytest.approx(0.8, abs=1e-3)
    found = students.ratios(made).set_index("property")["ratio"]
    assert found["surface_energy"] == pytest.approx(0.8)
    assert found["vacancy_energy"] == pytest.approx(0.8)
    pulled = made[made["property"] == "pull"]
    # The atom is pushed back, the harder the further it was pulled.
    assert (pulled["reference"].diff().dropna() < 0).all()
    assert pulled["reference"].max() < 0


def test_frequencies_scale_with_the_square_root(teacher):
    value, reason = students.highest_frequency(teacher, "Cu")
    soft, _ = students.highest_frequency(teacher.scaled(0.64), "Cu")
    assert reason is None
    assert soft / value == pytest.approx(0.8, rel=1e-3)


def test_a_teacher_that_does_not_know_the_elements_is_a_failed_row(teacher):
    case = students.cases(Protocol(), ["magnesia"])[0]
    made = students.run(teacher, [case], Protocol())
    assert list(made["status"]) == ["failed"]
    assert "MgO" in made["reason"].iloc[0] or "Mg" in made["reason"].iloc[0]


def test_the_second_compound_varies_the_share_only():
    protocol = Protocol()
    found = [Student(**case.info) for case in students.cases(protocol, ["magnesia"])]
    assert len(found) == len(protocol.shares) * len(protocol.seeds)
    assert set(found) <= set(students.students(protocol))
    assert {(student.n_frames, student.channels, student.steps) for student in found} == {(100, 16, 600)}
