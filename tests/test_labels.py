"""Reading labels, and every way in which they can be wrong."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import ase
import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write
from conftest import frames_of_copper

from helpers.potentials.ase import ASEPotential
from helpers.training import labels
from helpers.training.labels import LabelError

CU = frozenset({29})


def changed(atoms: ase.Atoms, move=lambda copy: None, **answers) -> ase.Atoms:
    """Return a copy, changed by a function, with some of its answers replaced."""
    copy = atoms.copy()
    move(copy)
    copy.calc = SinglePointCalculator(copy, **{**atoms.calc.results, **answers})
    return copy


def examined(images, tmp_path, elements=CU):
    """Return everything that is wrong with structures, as lines, and the notes."""
    path = tmp_path / "labels.traj"
    write(path, images)
    frames = labels.read([path])
    problems = labels.inspect(frames, elements)
    bad = {problem.frames[-1] for problem in problems}
    sound = [frame for k, frame in enumerate(frames) if k not in bad]
    potential = ASEPotential("emt", EMT())
    more, notes = labels.compare(sound, potential.evaluate([frame.atoms for frame in sound], stress=True))
    return [*labels.listed(frames, problems), *labels.listed(sound, more)], notes


def test_good_labels_have_no_problems(tmp_path):
    assert examined(frames_of_copper(), tmp_path) == ([], [])


@pytest.mark.parametrize("name", ["labels.extxyz", "labels.traj", "labels.json", "labels.db"])
def test_formats_of_ase(tmp_path, name):
    images = frames_of_copper(2)
    path = tmp_path / name
    if name.endswith("db"):
        with connect(path) as database:
            for atoms in images:
                database.write(atoms)
    else:
        write(path, images)
    read = labels.read([path])
    assert [frame.number for frame in read] == [0, 1]
    for frame, atoms in zip(read, images, strict=True):
        assert frame.forces == pytest.approx(atoms.get_forces(), abs=1e-6)
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
        assert frame.stress == pytest.approx(atoms.get_stress(voigt=False), abs=1e-6)
        assert frame.atoms.calc is None


def test_a_real_outcar(tmp_path):
    """VASP's own output, from ASE's collection: 18 atoms of nickel; the numbers are those that the file prints."""
    path = tmp_path / "OUTCAR"
    shutil.copy(Path(ase.__file__).parent / "test" / "testdata" / "vasp" / "OUTCAR_example_1", path)
    (frame,) = labels.read([path])
    assert frame.atoms.get_chemical_formula() == "Ni18"
    assert frame.energy == pytest.approx(-68.23102426)  # energy(sigma->0)
    printed = path.read_text().split("TOTAL-FORCE (eV/Angst)")[1].splitlines()[2:20]
    assert frame.forces == pytest.approx(np.array([line.split()[3:] for line in printed], dtype=float))
    kilobar = {(0, 0): -4.29429, (1, 1): -4.58894, (2, 2): -4.50342, (0, 1): 0.50047, (1, 2): -0.94049, (0, 2): 0.36481}
    for place, value in kilobar.items():
        assert frame.stress[place] == pytest.approx(-value * 0.1 * units.GPa), place  # VASP counts pressure as positive


@pytest.mark.parametrize(
    ("forces", "energy", "stress"),
    [("REF_forces", "REF_energy", "REF_stress"), ("dft_force", "DFT_energy", "dft_virial"), ("forces_ref", "energy_ref", "stress_ref")],
)
def test_common_spellings(tmp_path, forces, energy, stress):
    (atoms,) = frames_of_copper(1)
    plain = atoms.copy()
    plain.arrays[forces] = atoms.get_forces()
    plain.info[energy] = atoms.get_potential_energy()
    tensor = atoms.get_stress(voigt=False)
    plain.info[stress] = -tensor * atoms.get_volume() if "virial" in stress else tensor
    write(tmp_path / "labels.extxyz", plain)
    (frame,) = labels.read([tmp_path / "labels.extxyz"])
    assert frame.forces == pytest.approx(atoms.get_forces(), abs=1e-6)
    assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    assert frame.stress == pytest.approx(tensor, abs=1e-6)
    assert forces in frame.names


def test_named_answers_come_before_those_of_a_calculator():
    (atoms,) = frames_of_copper(1)
    atoms.arrays["REF_forces"] = 2 * atoms.get_forces()
    frame = labels.as_frame("x", 0, atoms, "")
    assert frame.forces == pytest.approx(2 * atoms.get_forces())
    assert frame.names.startswith("REF_forces, energy (calculator)")
    assert frame.remarks == ("found and not used: forces (calculator)",)


def test_bad_files(tmp_path):
    with pytest.raises(LabelError, match=r"missing.xyz: no such file"):
        labels.read([tmp_path / "missing.xyz"])
    broken = tmp_path / "broken.extxyz"
    broken.write_text("4\nLattice=no\nCu 0 0\n")
    with pytest.raises(LabelError, match=r"broken.extxyz cannot be read by ASE"):
        labels.read([broken])
    unknown = tmp_path / "labels.abc"
    unknown.write_text("what is this?\n")
    with pytest.raises(LabelError, match=r"labels.abc"):
        labels.read([unknown])
    mark = tmp_path / "mark"
    program = tmp_path / "labels.py"
    program.write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(LabelError, match="can run code"):
        labels.read([program])
    assert not mark.exists()
    with pytest.raises(LabelError, match="no label files"):
        labels.read([])


def not_finite(atoms):
    forces = atoms.get_forces()
    forces[2, 1] = np.nan
    return changed(atoms, forces=forces)


def bring_close(atoms):
    atoms.positions[1] = atoms.positions[0] + [0.3, 0, 0]


def isolate(atoms):
    atoms.pbc = False


def exchange(atoms):
    atoms.numbers[0] = 92


def repeat(atoms):
    """Shift an atom by a lattice vector and by less than the tolerance: still the same structure."""
    atoms.positions[2] += atoms.cell[0] + 1e-4


def without_forces(atoms):
    bare = atoms.copy()
    bare.calc = SinglePointCalculator(bare, energy=1.0)
    return bare


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without_forces, "no forces; write them"),
        (lambda atoms: changed(atoms, forces=np.zeros((4, 3))), "all forces are zero"),
        (not_finite, "force on atom 2 is not a number"),
        (lambda atoms: changed(atoms, bring_close), "atoms 0 (Cu) and 1 (Cu) are 0.30 Å apart, less than 0.4"),
        (lambda atoms: changed(atoms, isolate), "no periodic cell"),
        (lambda atoms: changed(atoms, exchange), "not trained on: U"),
        (lambda atoms: changed(atoms, energy=np.nan), "the energy is not a number"),
        (lambda atoms: changed(atoms, energy=atoms.get_potential_energy() + 12), "eV/atom off the other frames"),
    ],
)
def test_a_bad_frame_is_named(tmp_path, spoil, words):
    images = frames_of_copper(6)
    images[3] = spoil(images[3])
    lines, _ = examined(images, tmp_path)
    assert len(lines) == 1
    assert "labels.traj, frame 3: " in lines[0]
    assert words in lines[0]


def test_forces_of_the_wrong_shape():
    (atoms,) = frames_of_copper(1)
    frame = labels.Frame("x", 0, atoms, None, np.zeros((4, 2)))
    (problem,) = labels.inspect([frame], CU)
    assert "shape (4, 2), but 4 atoms need (4, 3)" in problem.text


def test_bad_frames_are_listed_together(tmp_path):
    images = frames_of_copper(6)
    for k in (0, 1, 2, 4):
        images[k] = without_forces(images[k])
    lines, _ = examined(images, tmp_path)
    assert lines == [f"{tmp_path}/labels.traj, frames 0–2, 4: no forces; write them as forces or REF_forces (eV/Å)"]


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1 / 51.4221, "as if those were in hartree/bohr.*multiply them by 51.4221"),
        (23.0605, "as if those were in kcal/mol/Å"),
        (1000, "meV/Å"),
        (-1, "point against the model's.*gradients"),
        (1e-7, "fits no unit"),
    ],
)
def test_units_and_sign_of_forces(tmp_path, factor, words):
    images = [changed(atoms, forces=factor * atoms.get_forces()) for atoms in frames_of_copper(3)]
    lines, _ = examined(images, tmp_path)
    assert len(lines) == 1
    assert re.search(words, lines[0])


def test_a_soft_or_stiff_model_is_no_unit(tmp_path):
    for scale in (0.7, 2.0):
        assert examined(frames_of_copper(4, scale=scale), tmp_path)[0] == []


@pytest.mark.parametrize(
    ("factor", "words"), [(1 / 27.2114, "in hartree"), (23.0605, "kcal/mol"), (0.25, "eV per atom instead of eV per cell")]
)
def test_units_of_energies(tmp_path, factor, words):
    images = [changed(atoms, energy=factor * atoms.get_potential_energy()) for atoms in frames_of_copper(6)]
    lines, _ = examined(images, tmp_path)
    assert len(lines) == 1
    assert words in lines[0]


@pytest.mark.parametrize(("factor", "words"), [(-1, "wrong sign"), (1602.18, "in kbar"), (160.218, "in GPa")])
def test_units_and_sign_of_stresses(tmp_path, factor, words):
    images = [changed(atoms, stress=factor * atoms.get_stress()) for atoms in frames_of_copper(3)]
    lines, _ = examined(images, tmp_path)
    assert len(lines) == 1
    assert words in lines[0]
    assert "--forces-only" in lines[0]


def test_two_sources_of_energies_in_one_set(tmp_path):
    images = frames_of_copper(7)
    images[4:] = [changed(atoms, energy=atoms.get_potential_energy() + 20) for atoms in images[4:]]
    (line,), _ = examined(images, tmp_path)
    assert "two kinds, 5000 meV/atom apart" in line
    assert f"4 frames ({tmp_path}/labels.traj, frames 0–3), and higher 3 frames ({tmp_path}/labels.traj, frames 4–6)" in line
    assert "--forces-only" in line


def test_a_constant_offset_of_energies_is_allowed(tmp_path):
    images = [changed(atoms, energy=atoms.get_potential_energy() - 3000) for atoms in frames_of_copper(5)]
    assert examined(images, tmp_path)[0] == []


def test_duplicates_name_both_frames(tmp_path):
    images = frames_of_copper(4)
    lines, _ = examined([*images, changed(images[1], repeat)], tmp_path)
    (line,) = lines
    assert "frame 4: the same structure as" in line
    assert "frame 1 (all atoms within" in line


def test_small_forces_and_compositions_are_noted(tmp_path):
    images = []
    rng = np.random.default_rng(1)
    for atoms in (bulk("Cu", cubic=True), bulk("Au", cubic=True)):
        atoms.positions += rng.normal(0, 1e-3, atoms.positions.shape)
        atoms.calc = EMT()
        atoms.get_forces()
        images.append(atoms)
    _, notes = examined(images, tmp_path, frozenset({29, 79}))
    assert any("Relaxed structures say little" in note for note in notes)
    assert any("2 compositions (Au, Cu)" in note for note in notes)
