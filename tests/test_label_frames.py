"""Labels beside a model, frame by frame: what is told from softness, what is not, and what a frame keeps."""

from __future__ import annotations

import re

import ase
import numpy as np
import pytest
from ase.build import bulk, fcc100
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from ase.stress import voigt_6_to_full_3x3_stress
from conftest import needs_mirror

from helpers import potentials
from helpers.benchmarks import off_equilibrium
from helpers.potentials.ase import ASEPotential
from helpers.training import fine_tune, labels
from helpers.training.fine_tune import EV_PER_A3_IN_GPA, Label

CU = frozenset({29})
C = 1.25  # labels are this times EMT
BOHR = 0.529177  # Å
VASP = "xx,yy,zz,xy,yz,xz"


def copper(n: int, seed: int = 0, size: int = 2, noise: float = 0.0, c: float | np.ndarray = C) -> list[Label]:
    """Return copper, displaced and strained, with EMT's answers times c, and noise on the forces (in units of their size)."""
    rng = np.random.default_rng(seed)
    found = []
    for factor in np.broadcast_to(c, n):
        atoms = bulk("Cu", cubic=True).repeat((size, size, 1))
        strain = rng.normal(0, 0.02, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        atoms.positions += rng.normal(0, rng.uniform(0.03, 0.15), atoms.positions.shape)
        atoms.calc = EMT()
        energy, forces, stress = (factor * x for x in (atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)))
        atoms.calc = None
        forces = forces + noise * np.sqrt(np.mean(forces**2)) * rng.normal(size=forces.shape)
        found.append(Label(atoms, energy, forces, stress))
    return found


def with_(label: Label, **answers: object) -> Label:
    return Label(**{"atoms": label.atoms, "energy": label.energy, "forces": label.forces, "stress": label.stress, **answers})


def judged(given: list[Label], potential=None, files: int = 1, **options):
    """Return problems and notes of labels, spread over files."""
    frames = labels.from_labels(given)
    frames = [labels.replace(frame, file=f"{k % files}.xyz", number=k // files) for k, frame in enumerate(frames)]
    assert labels.inspect(frames, CU) == []
    answers = (potential or ASEPotential("emt", EMT())).evaluate([frame.atoms for frame in frames], stress=True)
    return labels.compare(frames, answers, **options)


def factor(given: list[Label], left_out: set[int] = frozenset(), potential=None) -> float:
    """Return what the linear correction makes of frames."""
    frames = labels.from_labels([label for k, label in enumerate(given) if k not in left_out])
    return fine_tune.linear_correction(potential or ASEPotential("emt", EMT()), [frame.label() for frame in frames]).scale


def flagged(problems) -> set[int]:
    assert all(problem.kind == "frame" for problem in problems), [problem.text for problem in problems]
    return {problem.frames[0] for problem in problems}


NEGATED = {3: lambda f, rng: -f, 17: lambda f, rng: -f}
PERMUTED = {3: lambda f, rng: f[rng.permutation(len(f))], 7: lambda f, rng: np.roll(f, 1, axis=0)}
OTHER_UNIT = {3: lambda f, rng: f / 51.4221, 17: lambda f, rng: f * 23.0605}


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 7, 50])
@pytest.mark.parametrize(
    ("n", "spoilt", "words"),
    [
        (50, NEGATED, ("gradients", "gradients")),
        (10, PERMUTED, ("order of the atoms",) * 2),
        (50, OTHER_UNIT, ("hartree/bohr", "kcal/mol")),
    ],
)
def test_a_frame_is_judged_beside_the_others_whatever_its_file(n, spoilt, words, files):
    rng = np.random.default_rng(1)
    given = copper(n)
    for k, spoil in spoilt.items():
        given[k] = with_(given[k], forces=spoil(given[k].forces, rng))
    problems, _ = judged(given, files=files)
    assert flagged(problems) == set(spoilt)
    assert all(word in problem.text for word, problem in zip(words, problems, strict=True))
    assert factor(given) != pytest.approx(C, rel=0.005)
    assert factor(given, flagged(problems)) == pytest.approx(C, rel=1e-4)


def test_most_frames_wrong_is_said_of_all_and_cannot_be_skipped():
    given = copper(10)
    given = [with_(label, forces=-label.forces) if k > 2 else label for k, label in enumerate(given)]
    (problem,), _ = judged(given, files=10)
    assert problem.kind == "file"
    assert "10 files, 0.xyz to 9.xyz: the forces point against the model's" in problem.text


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_few_frames_half_of_them_negated(n):
    given = [with_(label, forces=-label.forces) if k % 2 else label for k, label in enumerate(copper(n))]
    problems, _ = judged(given)
    assert flagged(problems) == set(range(1, n, 2))


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.1, 0.3, 0.4])
def test_a_noisy_model_makes_no_outliers_and_hides_none(noise):
    given = copper(40, noise=noise)
    assert judged(given)[0] == []
    rng = np.random.default_rng(1)
    for k, spoil in (NEGATED | PERMUTED).items():
        given[k] = with_(given[k], forces=spoil(given[k].forces, rng))
    assert flagged(judged(given)[0]) == set(NEGATED | PERMUTED)


def test_other_softness_is_no_other_unit():
    """A model that is soft by one half on some frames and right on others is physics."""
    assert judged(copper(20, c=np.where(np.arange(20) < 8, 2.0, 1.0)))[0] == []


def test_small_forces_that_a_model_gets_wrong_are_no_outliers():
    given = copper(12, noise=0.1)
    noise = np.random.default_rng(2).normal(0, 0.02, given[5].forces.shape)
    atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
    given[5] = Label(atoms, C * ASEPotential("emt", EMT()).evaluate([atoms])[0].energy, noise, None)
    assert judged(given)[0] == []


def test_below_a_correlation_of_0_7_there_is_no_factor():
    rng = np.random.default_rng(3)
    given = [with_(label, forces=rng.normal(size=label.forces.shape)) for label in copper(8)]
    (problem,), _ = judged(given)
    assert problem.kind == "file"
    assert "below 0.7 no factor is written" in problem.text


def one_flipped(forces: np.ndarray) -> np.ndarray:
    largest = np.arange(len(forces)) == np.argmax(np.linalg.norm(forces, axis=1))
    return np.where(largest[:, None], -forces, forces)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "wrong", "spoil", "words"),
    [
        (20, (3, 9), lambda f: 2 * f, "slope 0.4, theirs 0.80"),
        (20, (3, 9), lambda f: 3 * f, "slope 0.267, theirs 0.80"),
        (20, (3, 9), lambda f: 4 * f, "slope 0.2, theirs 0.80"),
        (20, (3, 9), lambda f: 0.1 * f, "slope 8, theirs 0.80"),
        (20, (3, 9), lambda f: f @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]]), "axes"),
        (20, range(0, 20, 2), one_flipped, "times what is usual beside the others"),
        (60, (3, 47), lambda f: f * BOHR, "in eV/bohr; they must be in eV/Å: multiply them by 1.88973"),
        (60, range(0, 60, 2), lambda f: f * BOHR, "in eV/bohr; they must be in eV/Å: multiply them by 1.88973"),
        (60, range(0, 60, 3), lambda f: f / BOHR, "in eV/Å times Å/bohr; they must be in eV/Å: multiply them by 0.529177"),
        (60, range(0, 60, 2), lambda f: f / BOHR, "in eV/Å times Å/bohr; they must be in eV/Å: multiply them by 0.529177"),
        (60, (3, 47), lambda f: f / 27.2114, "hartree/Å or rydberg/bohr; they must be in eV/Å: multiply them by 27.2114 or 25.711"),
        (60, (3, 47), lambda f: f / 25.711, "rydberg/bohr or hartree/Å; they must be in eV/Å: multiply them by 25.711 or 27.2114"),
        (20, (3, 9), lambda f: f - [0.3, 0, 0], "beside the others|add up to"),
    ],
)
def test_frames_that_depart_from_others_that_agree_are_told(n, wrong, spoil, words):
    given = [with_(label, forces=spoil(label.forces)) if k in wrong else label for k, label in enumerate(copper(n))]
    problems, _ = judged(given)
    assert flagged(problems) == set(wrong)
    assert all(re.search(words, problem.text) for problem in problems), problems[0].text
    assert factor(given, flagged(problems)) == pytest.approx(C, rel=1e-4)


def test_a_set_of_two_kinds_is_said_to_be_one():
    given = copper(20, c=np.where(np.arange(20) < 8, 2.0, 1.0))
    problems, notes = judged(given)
    assert problems == []
    (note,) = (note for note in notes if "two kinds" in note)
    assert "1.00 times the labels' in 0.xyz, frames 8–19 and 0.50 times the labels' in 0.xyz, frames 0–7" in note


@pytest.mark.slow
def test_positions_in_bohr_are_told_by_distances():
    def stretched(label: Label, by: float) -> Label:
        atoms = label.atoms.copy()
        atoms.set_cell(atoms.cell * by, scale_atoms=True)
        return with_(label, atoms=atoms)

    problem = judged([stretched(label, 1 / BOHR) for label in copper(12)])[0][0]
    assert problem.kind == "file"
    assert "as if positions and cell were in bohr; multiply both by 0.529177" in problem.text
    for by, words in ((1 / BOHR, "in bohr; multiply both by 0.529177"), (BOHR, "in Å times Å/bohr; multiply both by 1.88973")):
        problems, _ = judged([stretched(label, by) if k in (3, 9) else label for k, label in enumerate(copper(20))])
        assert flagged(problems) == {3, 9}
        assert {problem.frames[0] for problem in problems if words in problem.text} == {3, 9}, [problem.text for problem in problems]


def test_all_in_a_unit_like_another_names_both():
    (problem,), _ = judged([with_(label, forces=label.forces / 27.2114) for label in copper(12)])
    assert "hartree/Å" in problem.text
    assert "rydberg/bohr" in problem.text


def test_forces_that_do_not_add_up_to_zero_are_noted():
    _, notes = judged([with_(label, forces=label.forces - [0.5, 0, 0]) for label in copper(12)])
    assert "0.xyz, frames 0–11: the forces add up to as much as 0.50 eV/Å per atom" in " ".join(notes)


@pytest.mark.slow
@needs_mirror
def test_real_data_raise_no_alarm_and_hide_none():
    """14 compounds of one to four frames under pressure, softness 0.53 to 1.14, with DFT's answers and CHGNet's."""
    cases = off_equilibrium.cases(sets=["wbm-21"])
    given = [Label(*case.structures.values(), *(case.reference[what] for what in ("energy", "forces", "stress"))) for case in cases]
    chgnet = potentials.load("chgnet-0.3.0", "cpu")
    frames = labels.from_labels(given)
    answers = chgnet.evaluate([frame.atoms for frame in frames], stress=True)
    assert labels.inspect(frames, chgnet.elements) == []
    assert labels.compare(frames, answers)[0] == []
    rng = np.random.default_rng(0)
    for spoil in (lambda f: -f, lambda f: f[rng.permutation(len(f))], lambda f: f / 51.4221, lambda f: f * 23.0605):
        spoilt = [labels.replace(frame, forces=spoil(frame.forces)) if k in (5, 14) else frame for k, frame in enumerate(frames)]
        assert flagged(labels.compare(spoilt, answers)[0]) == {5, 14}
    for (problem,) in (
        labels.compare([labels.replace(frame, forces=frame.forces * BOHR) for frame in frames], answers)[0],
        labels.compare([labels.replace(frame, stress=voigt_6_to_full_3x3_stress(turned(frame.stress, VASP))) for frame in frames], answers)[
            0
        ],
    ):
        assert problem.kind == "file"
        assert "eV/bohr" in problem.text or VASP in problem.text


# ---------------------------------------------------------------------------------------------------
# Energies


SOFT = ASEPotential("soft", EMT()).scaled(0.5)


def heated(n: int, share: float = 0.0, seed: int = 4) -> list[Label]:
    """Return copper from cold to hot (energies over 0.5 eV/atom), some of it (a share) with energies that are off by noise."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(n):
        atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
        atoms.positions += rng.normal(0, 0.03 + 0.2 * k / n, atoms.positions.shape)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        found.append(Label(atoms, energy + len(atoms) * rng.normal(0, share), forces, None))
        atoms.calc = None
    return found


@pytest.mark.slow
def test_hot_frames_of_a_soft_model_are_right():
    given = heated(30, share=0.003)
    energies = np.array([label.energy / len(label.atoms) for label in given])
    assert np.ptp(energies) > 0.4
    assert judged(given, SOFT)[0] == []
    # What is wrong is seen as before.
    given[25] = with_(given[25], energy=given[25].energy + 1.0 * len(given[25].atoms))
    problems, notes = judged(given, SOFT)
    assert flagged(problems) == {25}
    assert "energy +1.0" in problems[0].text
    problems, notes = judged(given, SOFT, energies=False)
    assert problems == []
    assert any("Not used by this method" in note and "energy +1.0" in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 20])
@pytest.mark.parametrize("upper", [lambda k: k % 2, lambda k: k < 20], ids=["every other", "the first half"])
def test_two_groups_of_energies_are_named_as_two(files, upper):
    """50 meV/atom between halves of a set whose own spread is 5, wherever the halves stand."""
    rng = np.random.default_rng(5)
    shifts = [0.05 * upper(k) + rng.normal(0, 0.005) for k in range(40)]
    given = [with_(label, energy=label.energy + len(label.atoms) * shift) for label, shift in zip(copper(40), shifts, strict=True)]
    (problem,), _ = judged(given, files=files)
    assert problem.kind == "file"
    assert float(re.search(r"two kinds, (\d+) meV", problem.text)[1]) == pytest.approx(50, abs=5)
    assert "20 frames (" in problem.text
    assert "and higher 20 frames (" in problem.text
    _, notes = judged(given, energies=False)
    assert any("two kinds" in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [lambda rng: rng.normal(0, 0.01), lambda rng: rng.uniform(-0.02, 0.02), lambda rng: rng.laplace(0, 0.01)])
@pytest.mark.parametrize("n", [5, 8, 20])
def test_one_group_of_energies_is_one(shape, n):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        given = [with_(label, energy=label.energy + len(label.atoms) * shape(rng)) for label in copper(n, seed)]
        assert judged(given)[0] == []


@pytest.mark.parametrize(
    ("spoil", "r"),
    [
        (lambda energies: np.roll(energies, 1), "0"),
        (lambda energies: -energies, "-1.00"),
        (lambda energies: np.full(len(energies), 3.0), "0.00"),
        (lambda energies: np.random.default_rng(1).permutation(energies), ""),
        (lambda energies: np.random.default_rng(1).normal(size=len(energies)), ""),
    ],
)
def test_energies_of_other_structures_are_told(spoil, r):
    given = copper(20)
    energies = spoil(np.array([label.energy for label in given]))
    given = [with_(label, energy=float(energy)) for label, energy in zip(given, energies, strict=True)]
    (problem,), _ = judged(given)
    assert problem.kind == "file"
    assert f"the energies do not go with the model's (correlation {r if r != '0' else ''}" in problem.text
    problems, notes = judged(given, energies=False)
    assert problems == []
    assert any(note.startswith("Not used by this method, but: ") for note in notes)


def test_energies_per_atom_are_not_only_called_rydberg():
    (problem,), _ = judged([with_(label, energy=label.energy / 16) for label in copper(20)])
    assert "eV per atom instead of eV per cell" in problem.text
    assert "rydberg" in problem.text


# ---------------------------------------------------------------------------------------------------
# Units that hide in softness


def test_energies_betray_forces_per_bohr():
    given = [with_(label, forces=label.forces * BOHR) for label in copper(12)]
    assert factor(given) == pytest.approx(C * BOHR, rel=1e-4)
    for options in ({}, {"energies": False}):
        (problem,), _ = judged(given, **options)
        assert problem.kind == "file"
        assert "the model's forces are 1.51 times the labels', its energy differences 0.80 times, its stresses 0.80 times" in problem.text
        assert "eV/bohr: multiply them by 1.88973" in problem.text
    given = [with_(label, forces=label.forces / BOHR) for label in copper(12)]
    (problem,), _ = judged(given)
    assert "multiply them by 0.529177" in problem.text


def test_a_stiff_model_is_no_unit():
    assert judged(copper(12, c=1 / 1.5))[0] == []


def test_forces_alone_leave_it_open():
    given = [with_(label, forces=label.forces * BOHR, energy=None, stress=None) for label in copper(12)]
    problems, notes = judged(given)
    assert problems == []
    assert any("that may be softness, or a unit (eV/bohr" in note for note in notes)
    assert judged([with_(label, energy=None, stress=None) for label in copper(12)])[1] == []


# ---------------------------------------------------------------------------------------------------
# Stress


def turned(stress: np.ndarray, order: str) -> np.ndarray:
    """Return what comes out if six numbers are written in another order and read in ASE's."""
    place = dict(zip("xyz", range(3), strict=True))
    return np.array([stress[place[a], place[b]] for a, b in order.split(",")])


@pytest.mark.parametrize("order", ["xx,yy,zz,xy,yz,xz", "xx,yy,zz,xy,xz,yz", "xx,xy,xz,yy,yz,zz"])
def test_another_voigt_order_is_named(order):
    given = [with_(label, stress=turned(label.stress, order)) for label in copper(10)]
    (problem,), _ = judged(given)
    assert problem.kind == "file"
    assert f"in the order {order}" in problem.text
    assert "(correlation 1.00)" in problem.text


def test_some_frames_in_another_voigt_order():
    given = [with_(label, stress=turned(label.stress, "xx,yy,zz,xy,yz,xz")) if k < 6 else label for k, label in enumerate(copper(30))]
    problems, _ = judged(given)
    assert flagged(problems) == set(range(6))


def test_units_and_signs_of_stresses_frame_by_frame():
    given = copper(20)
    given[4] = with_(given[4], stress=-given[4].stress)
    given[9] = with_(given[9], stress=EV_PER_A3_IN_GPA * given[9].stress)
    given[11] = with_(given[11], stress=10 * EV_PER_A3_IN_GPA * given[11].stress)
    problems, _ = judged(given, files=20)
    assert flagged(problems) == {4, 9, 11}
    assert [word in problem.text for word, problem in zip(("wrong sign", "GPa", "kbar"), problems, strict=True)] == [True] * 3


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda label, rng: rng.normal(0, 0.02, 6), "do not go with the model's"),
        (lambda label, rng: copper(1, seed=9)[0].stress, "do not go with the model's"),
        (lambda label, rng: label.stress * BOHR**3, "5.4 times the labels', as if those were in eV/bohr³"),
        (lambda label, rng: label.stress * label.atoms.get_volume(), r"eV \(stress times volume\)"),
        (lambda label, rng: -1602.18 * label.stress, "in kbar.*Besides, the stresses have the wrong sign"),
    ],
)
def test_stresses_of_other_structures_and_units_are_told(spoil, words):
    rng = np.random.default_rng(2)
    (problem,), _ = judged([with_(label, stress=spoil(label, rng)) for label in copper(20)])
    assert problem.kind == "file"
    assert re.search(words, problem.text), problem.text


def test_stresses_that_are_twice_too_large_are_noted():
    problems, notes = judged([with_(label, stress=2 * label.stress) for label in copper(20)])
    assert problems == []
    assert any("stresses are 0.40 times the labels', forces 0.80 times, energy differences 0.80 times" in note for note in notes)


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "words"), [(-1602.18, "kbar, and of the wrong sign"), (1602177.0, "in bar")])
def test_two_stresses_of_another_unit_are_told(factor, words):
    problems, _ = judged([with_(label, stress=factor * label.stress) if k in (3, 47) else label for k, label in enumerate(copper(60))])
    assert flagged(problems) == {3, 47}
    assert all(words in problem.text for problem in problems)


def test_a_stress_of_zero_is_left_out_and_named():
    given = copper(6)
    given[2] = with_(given[2], stress=np.zeros((3, 3)))
    frames = labels.from_labels(given)
    assert [frame.stress is None for frame in frames] == [False, False, True, False, False, False]
    problems, notes = judged(given)
    assert problems == []
    assert "0.xyz, frame 2: the stress is zero beside forces that are not: it was not computed, and is not used" in notes


# ---------------------------------------------------------------------------------------------------
# What a frame keeps, and which atoms count


class Charged(Calculator):
    """EMT that is stiffer by one half on charged structures."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        copy = atoms.copy()
        copy.calc = EMT()
        scale = 1.5 if atoms.info.get("charge") and atoms.get_initial_magnetic_moments().any() and atoms.get_tags().any() else 1.0
        self.results = {
            "energy": scale * copy.get_potential_energy(),
            "forces": scale * copy.get_forces(),
            "stress": scale * copy.get_stress(),
        }


def test_charge_spin_moments_and_tags_reach_the_calculator(tmp_path):
    """Without the charge the factor would be 1.875."""
    images = []
    for label in copper(4):
        atoms = label.atoms
        atoms.info |= {"charge": 1, "spin": 2, "REF_energy": 1.5 * label.energy, "dft_note": "kept"}
        atoms.set_initial_magnetic_moments(np.ones(len(atoms)))
        atoms.set_tags(np.arange(len(atoms)))
        atoms.arrays["REF_forces"] = 1.5 * label.forces
        images.append(atoms)
    write(tmp_path / "labels.extxyz", images)
    frames = labels.read(tmp_path / "labels.extxyz")
    assert frames[0].atoms.info["charge"] == 1
    assert frames[0].atoms.info["dft_note"] == "kept"
    assert not {"REF_energy", "REF_forces"} & (frames[0].atoms.info.keys() | frames[0].atoms.arrays.keys())
    potential = ASEPotential("charged", Charged())
    assert fine_tune.linear_correction(potential, [frame.label() for frame in frames]).scale == pytest.approx(C, rel=1e-4)


def slab() -> ase.Atoms:
    """Return a displaced slab whose lower half is held, with EMT's raw answers times 1.25."""
    atoms = fcc100("Cu", (2, 2, 4), vacuum=6.0, periodic=True)
    atoms.positions += np.random.default_rng(0).normal(0, 0.1, atoms.positions.shape)
    atoms.calc = EMT()
    energy, forces = C * atoms.get_potential_energy(), C * atoms.get_forces()
    atoms.set_constraint(FixAtoms(mask=atoms.positions[:, 2] < atoms.positions[:, 2].mean()))
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


@pytest.mark.parametrize("name", ["labels.extxyz", "labels.traj", "labels.json"])
def test_raw_labels_of_a_slab_with_constraints(tmp_path, name):
    write(tmp_path / name, [slab()])
    (frame,) = labels.read(tmp_path / name)
    assert frame.atoms.constraints == []
    assert frame.counted.all()
    assert factor([frame.label()]) == pytest.approx(C, rel=1e-4)
    assert factor([Label(slab(), None, slab().calc.results["forces"])]) == pytest.approx(C, rel=1e-4)


def test_forces_that_get_forces_sets_to_zero_do_not_count():
    """As README's snippet would have them: get_forces() of atoms that are held."""
    atoms = slab()
    frames = labels.from_labels([Label(atoms, None, atoms.get_forces()), *copper(3)])
    assert frames[0].counted.sum() == 3 * (len(atoms) // 2)
    assert np.array_equal(frames[0].forces, atoms.get_forces())
    made = frames[0].label()
    assert np.isnan(made.forces[~frames[0].counted]).all()
    assert np.array_equal(made.forces[frames[0].counted], atoms.get_forces()[frames[0].counted])
    potential = ASEPotential("emt", EMT())
    problems, notes = labels.compare(frames, potential.evaluate([frame.atoms for frame in frames]))
    assert problems == []
    assert any(note.startswith("labels, frame 0: 8 atoms with a force of exactly zero") for note in notes)
    assert fine_tune.linear_correction(potential, [made]).scale == pytest.approx(C, rel=1e-4)


def test_components_that_are_held_do_not_count():
    atoms = slab()
    forces = atoms.calc.results["forces"].copy()
    forces[:4, 2] = 0
    (frame,) = frames = labels.from_labels([Label(atoms, None, forces)])
    assert frame.counted.sum() == 3 * len(atoms) - 4
    assert np.isnan(frame.label().forces).sum() == 4
    potential = ASEPotential("emt", EMT())
    answers = potential.evaluate([frame.atoms])
    _, notes = labels.compare(frames, answers)
    assert any("4 single components of forces of exactly zero" in note for note in notes)
    assert fine_tune.linear_correction(potential, [frame.label()]).scale == pytest.approx(C, rel=1e-4)


def test_a_zero_by_symmetry_is_no_news():
    atoms = bulk("Cu", cubic=True).repeat((2, 1, 1))
    atoms.positions[0, 0] += 0.1
    answers = ASEPotential("emt", EMT()).evaluate([atoms])
    frames = labels.from_labels([Label(atoms, None, np.where(np.abs(answers[0].forces) < 1e-6, 0.0, C * answers[0].forces))])
    assert not frames[0].counted.all()
    assert labels.compare(frames, answers)[1] == []


def test_labels_in_memory_may_be_lists():
    (label,) = copper(1)
    six = [label.stress[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))]
    (frame,) = labels.from_labels([Label(label.atoms, np.array([label.energy]), label.forces.tolist(), six)])
    assert frame.energy == label.energy
    assert np.array_equal(frame.forces, label.forces)
    assert frame.stress == pytest.approx(label.stress)


@pytest.mark.parametrize(("symbol", "distance", "fine"), [("H", 0.74, True), ("Cu", 1.2, True), ("Cu", 1.0, False), ("K", 1.8, True)])
def test_contacts_go_by_covalent_radii(symbol, distance, fine):
    atoms = ase.Atoms([symbol] * 2, [[0, 0, 0], [distance, 0, 0]], cell=[8, 8, 8], pbc=True)
    found = labels.inspect([labels.Frame("x", 0, atoms, None, np.eye(3)[:2])], frozenset({1, 19, 29}))
    assert (found == []) == fine, found
