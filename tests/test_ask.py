"""Asking for DFT: frames and inputs that are read back."""

from __future__ import annotations

import re
import shlex
import warnings

import ase
import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from ase.io import read, write
from conftest import EMT_KEY, emt
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp import Incar, Kpoints, Poscar
from test_label_files import vasprun
from typer.testing import CliRunner

from helpers import cli, potentials
from helpers.potentials import fixes
from helpers.potentials.ase import ASEPotential
from helpers.reports import ask, check
from helpers.training import labels


class Known(ASEPotential):
    """A potential that says what it was trained on."""

    training_set = "MPtrj (PBE, PBE+U)"

    def describe(self):
        return super().describe() | {"training_set": self.training_set}


@pytest.fixture
def fast(monkeypatch):
    """Let every key load Lennard-Jones, which knows all elements, trained on what is said."""

    def as_if(training_set):
        potential = Known("lj", LennardJones(sigma=2.0, epsilon=0.2, rc=5.0))
        potential.training_set = training_set
        monkeypatch.setattr(potentials, "load", lambda *_, **__: potential)

    as_if(Known.training_set)
    return as_if


def iron_oxide(path, n=4):
    """Write a file of several frames of FeO, which are the candidates themselves."""
    frames = [bulk("FeO", "rocksalt", a=4.33) for _ in range(n)]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=k)
    write(path, frames)
    return frames


# ---------------------------------------------------------------------------------------------------
# Candidates


def made(crystal, kinds=ask.KINDS, seed=0, max_atoms=8):
    return ask.candidates(emt(), crystal, kinds, max_atoms=max_atoms, temperature_k=1000.0, seed=seed, steps=20)


def test_candidates_are_of_all_kinds_and_the_same_for_a_seed():
    once, again, other = (made(bulk("Cu"), seed=seed) for seed in (0, 0, 1))
    assert {kind for kind, _ in once} == set(ask.KINDS)
    assert {len(atoms) for kind, atoms in once if kind not in ("slab", "vacancy")} == {8}
    assert all(np.array_equal(a.positions, b.positions) for (_, a), (_, b) in zip(once, again, strict=True))
    assert not any(np.array_equal(a.positions, b.positions) for (_, a), (_, b) in zip(once, other, strict=True))
    volumes = {kind: {round(atoms.get_volume(), 3) for k, atoms in once if k == kind} for kind in ask.KINDS}
    assert len(volumes["rattled"]) == len(volumes["hot"]) == len(volumes["displaced"]) == 1 < len(volumes["strained"])


def test_slabs_have_vacuum_and_vacancies_lack_an_atom_of_each_element():
    # What a check asks for has to have as many candidates as it asks for.
    slabs = [atoms for _, atoms in made(bulk("Cu", cubic=True), ["slab"])]
    assert min(check.gap(atoms) for atoms in slabs) > check.LEAST_GAP_A
    assert len(slabs) >= 5
    cells = [atoms.get_chemical_formula() for _, atoms in made(bulk("CuAu", "cesiumchloride", a=3.0), ["vacancy"])]
    assert set(cells) == {"Au3Cu4", "Au4Cu3"}


def test_frames_for_phonons_are_displaced_little():
    rest = ask.enlarged(bulk("Cu"), 8).positions
    sizes = [np.std(atoms.positions - rest) for _, atoms in made(bulk("Cu"), ["displaced"])]
    assert np.mean(sizes) == pytest.approx(ask.DISPLACED_A, rel=0.2)


def test_a_cell_is_repeated_along_its_short_vectors_only():
    layer = bulk("Cu").repeat((1, 1, 8))
    large = ask.enlarged(layer, 48)
    assert np.allclose(large.cell.lengths() / layer.cell.lengths(), [3, 2, 1])  # no room for 3 × 3
    assert np.allclose(ask.enlarged(layer, 500).cell.lengths() / layer.cell.lengths(), [4, 4, 1])  # wider than 8 Å
    assert len(ask.enlarged(layer, 4)) == 8


# ---------------------------------------------------------------------------------------------------
# Inputs, read back


def same(one, other):
    """Tell whether two frames have the same atoms, in whatever order."""
    place = [atoms.positions[np.lexsort([*atoms.positions.round(4).T, atoms.numbers])] for atoms in (one, other)]
    return len(one) == len(other) and np.allclose(*place, atol=1e-6)


def folders(out):
    return sorted(path for path in out.iterdir() if path.is_dir())


def test_vasp_inputs_as_of_the_materials_project(tmp_path, fast):
    given = iron_oxide(tmp_path / "feo.extxyz")
    text = ask.ask(tmp_path / "feo.extxyz", "chgnet-0.3.0", n=2, code="vasp", out=tmp_path / "out")
    assert "U(Fe 3d) = 5.3 eV**, as the Materials Project, which has this U beside O or F only" in text
    assert "that pymatgen calls `PBE`, the one without a number" in text
    for folder in folders(tmp_path / "out"):
        incar, kpoints, poscar = (kind.from_file(folder / kind.__name__.upper()) for kind in (Incar, Kpoints, Poscar))
        assert incar["LDAU"]
        assert dict(zip(poscar.site_symbols, incar["LDAUU"], strict=True)) == {"Fe": 5.3, "O": 0}
        assert (incar["NSW"], incar["ISYM"], incar["ISMEAR"], incar["ISPIN"], incar["ENCUT"]) == (0, 0, 0, 2, 520)
        assert incar["EDIFF"] == 1e-6
        assert not incar["LREAL"]
        assert incar["MAGMOM"] == [5.0, 0.6]
        assert min(kpoints.kpts[0]) >= 4
        assert (folder / "POTCAR.spec").read_text().split() == ["Fe_pv", "O"]
        assert any(np.allclose(poscar.structure.cart_coords, one.positions, atol=1e-6) for one in given)
    assert len(folders(tmp_path / "out")) == 2
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name == "POTCAR"]


def test_vasp_inputs_as_of_matpes(tmp_path, fast):
    fast("MatPES-PBE 2025.1 (PBE)")
    iron_oxide(tmp_path / "feo.extxyz")
    text = ask.ask(tmp_path / "feo.extxyz", "tensornet-matpes-pbe-2025.1", n=1, out=tmp_path / "out")
    (folder,) = folders(tmp_path / "out")
    incar = Incar.from_file(folder / "INCAR")
    assert (incar["ENCUT"], incar["KSPACING"], incar["GGA"].upper(), incar["NSW"]) == (680, 0.22, "PE", 0)
    assert not incar.get("LDAU")
    assert not (folder / "KPOINTS").exists()
    assert "no U" in text
    assert "No antiferromagnetic order is made here" in text
    assert "PBE_64" in text


def test_unknown_training_data_are_said(tmp_path, fast):
    fast("")
    iron_oxide(tmp_path / "feo.extxyz")
    assert "not known here" in ask.ask(tmp_path / "feo.extxyz", "ase:a.b", n=1, out=tmp_path / "out")


def test_quantum_espresso_inputs(tmp_path, fast):
    given = iron_oxide(tmp_path / "feo.extxyz")
    for atoms in given:
        atoms.set_initial_magnetic_moments([4.0, 0.0])
    cell = given[0].repeat((2, 1, 1))
    cell.set_initial_magnetic_moments([4, 0, -4, 0])
    write(tmp_path / "afm.traj", cell)
    for source, labels_of_u in (("feo.extxyz", ["U Fe-3d 5.3"]), ("afm.traj", ["U Fe-3d 5.3", "U Fe1-3d 5.3"])):
        out = tmp_path / f"out-{source}"
        source = tmp_path / source
        if source.suffix == ".traj":
            write(source, [cell, given[1]])
        ask.ask(source, "chgnet-0.3.0", n=2, code="qe", out=out)
        texts = [(folder / "pw.in").read_text() for folder in folders(out)]
        text = max(texts, key=len)
        assert "SSSP PBE Precision 1.3.0" in (out / "README.md").read_text()
        assert "tprnfor" in text
        assert "nosym" in text
        assert "nspin            = 2" in text
        assert text[text.index("HUBBARD") :].split("\n")[1:-1] == labels_of_u
        # Shares of the valence electrons, which every version reads alike; oxygen has none.
        assert sorted({abs(float(value)) for value in re.findall(r"starting_magnetization\(\d\) *= *(\S+)", text)} | {0.0}) == [0.0, 0.5]
        for folder in folders(out):
            back = read(folder / "pw.in", format="espresso-in")
            assert any(same(back, one) for one in (*given, cell))


def test_aims_inputs(tmp_path, fast):
    given = iron_oxide(tmp_path / "feo.extxyz")
    text = ask.ask(tmp_path / "feo.extxyz", "chgnet-0.3.0", n=1, code="aims", out=tmp_path / "out")
    assert "plus_u 3 d 5.3" in text
    assert "plus_u_petukhov_mixing 1.0" in text
    assert "08_O 26_Fe" in text
    (folder,) = folders(tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        back = read(folder / "geometry.in", format="aims")
    assert any(np.allclose(back.positions, one.positions, atol=1e-6) and np.allclose(back.cell, one.cell) for one in given)
    assert back.get_initial_magnetic_moments().tolist() == [5.0, 0.6]
    control = dict(line.split(maxsplit=1) for line in (folder / "control.in").read_text().splitlines() if not line.startswith("#"))
    assert control["xc"] == "pbe"
    assert control["spin"] == "collinear"
    assert control["compute_forces"] == ".true."
    assert [int(k) for k in control["k_grid"].split()] == list(Kpoints.automatic_density_by_vol(_structure(given[0]), 100).kpts[0])


def _structure(atoms):
    return Structure(atoms.cell.array, atoms.symbols, atoms.positions, coords_are_cartesian=True)


# ---------------------------------------------------------------------------------------------------
# The way back


def pwscf(atoms, energy, forces, stress):
    """Return what pw.x prints of a calculation, as far as it is read."""
    ry, lines = units.Ry, ["     Program PWSCF v.7.2 starts", f"     number of atoms/cell      = {len(atoms)}"]
    alat = 10.0
    lines += [f"     celldm(1)= {alat:.8f}", "     crystal axes: (cart. coord. in units of alat)"]
    cell = atoms.cell.array / units.Bohr / alat
    lines += ["               a({}) = ( {:.9f} {:.9f} {:.9f} )".format(k + 1, *row) for k, row in enumerate(cell)]
    lines.append("     site n.     atom                  positions (alat units)")
    for k, atom in enumerate(atoms):
        lines.append(
            "     {}  {} tau( {}) = ( {:.9f} {:.9f} {:.9f} )".format(k + 1, atom.symbol, k + 1, *atom.position / units.Bohr / alat)
        )
    lines += [f"!    total energy              = {energy / ry:.8f} Ry", "     Forces acting on atoms (cartesian axes, Ry/au):", ""]
    for k, force in enumerate(forces * units.Bohr / ry):
        lines.append("     atom    {} type  1   force =  {:.8f} {:.8f} {:.8f}".format(k + 1, *force))
    lines += ["", "     total   stress  (Ry/bohr**3)  (kbar)     P=  0"]
    lines += ["   {:.8f} {:.8f} {:.8f}  0 0 0".format(*row) for row in -stress * units.Bohr**3 / ry]
    return "\n".join([*lines, ""])


def aims_out(atoms, energy, forces, stress):
    """Return what FHI-aims prints of a calculation, as far as it is read."""
    lines = ["          Invoking FHI-aims ...", f"  | Number of atoms                   : {len(atoms)}"]
    lines += ["  | Number of spin channels           : 1", "  | Number of Kohn-Sham states (occupied + empty): 10"]
    lines += ["  | Formation charge: 0", "  The structure contains 4 atoms,  and a total of 44.000 electrons.", "  | Unit cell:"]
    lines += ["  |  {:.8f} {:.8f} {:.8f}".format(*row) for row in atoms.cell]
    lines += ["  | Atomic structure:", "  |       Atom                x [A]            y [A]            z [A]"]
    lines += ["  |    {}: Species {}  {:.8f} {:.8f} {:.8f}".format(k + 1, a.symbol, *a.position) for k, a in enumerate(atoms)]
    lines += ["  Begin self-consistency iteration #    1", "  a", "  b"]
    lines += [f"  | Electronic free energy        :  {energy:.8f} eV"]
    lines += [f"  | Total energy uncorrected      :  {energy:.8f} eV", "  Self-consistency cycle converged."]
    lines += ["  Total atomic forces (unitary forces cleaned) [eV/Ang]:"]
    lines += ["  |  {} {:.8f} {:.8f} {:.8f}".format(k + 1, *force) for k, force in enumerate(forces)]
    lines += ["  +-----+", "  |   Analytical stress tensor - Symmetrized  |", "  a", "  b", "  c", "  d"]
    lines += ["  |  {} {:.8f} {:.8f} {:.8f} |".format(axis, *row) for axis, row in zip("xyz", stress, strict=True)]
    return "\n".join([*lines, "          Have a nice day.", ""])


def answered(code, folder):
    """Write the answer of EMT, a quarter stiffer, in the format of a code."""
    name = {"vasp": "POSCAR", "qe": "pw.in", "aims": "geometry.in"}[code]
    kind = {"vasp": "vasp", "qe": "espresso-in", "aims": "aims"}[code]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        atoms = read(folder / name, format=kind)
    (p,) = emt().scaled(1.25).evaluate([atoms], stress=True)
    answer = (ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True), p.energy, p.forces, p.stress)
    if code == "vasp":
        (folder / "vasprun.xml").write_text(vasprun([answer]))
    else:
        (folder / f"{'pw' if code == 'qe' else 'aims'}.out").write_text({"qe": pwscf, "aims": aims_out}[code](*answer))


@pytest.mark.parametrize("code", ask.ANSWERS)
def test_the_line_of_the_readme_takes_the_labels_back(tmp_path, code):
    frames = [bulk("Cu", cubic=True) for _ in range(1 if code == "vasp" else 5)]  # one: frames are made of it
    for k, atoms in enumerate(frames[1:]):
        atoms.rattle(0.1, seed=k)
    write(tmp_path / "cu.extxyz", frames)
    out = tmp_path / "my labels"
    text = ask.ask(tmp_path / "cu.extxyz", EMT_KEY, n=4, code=code, out=out, max_atoms=4)
    assert text == (out / "README.md").read_text()
    if code == "extxyz":
        frames = read(out / "frames.extxyz", ":")
        assert [atoms.info["kind"] for atoms in frames] == ["given"] * 4
        for atoms, p in zip(frames, emt().scaled(1.25).evaluate(frames), strict=True):
            atoms.info["REF_energy"], atoms.arrays["REF_forces"] = p.energy, p.forces
        write(out / "labelled.extxyz", frames)
    for folder in folders(out):
        answered(code, folder)
    line = text.split("```bash\n")[1].split("\n```")[0]
    program, *words = shlex.split(line)
    # As a shell does.
    words = [str(path) for word in words for path in (sorted(tmp_path.glob(word.removeprefix(f"{tmp_path}/"))) if "*" in word else [word])]
    assert program == "softening"
    result = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert fixes.record(tmp_path / "my labels-fix")["factor"] == pytest.approx(1.25, abs=0.01)
    assert all(frame.energy is not None for frame in labels.read(sorted(out.glob(ask.ANSWERS[code]))))


# ---------------------------------------------------------------------------------------------------
# What is refused, and what is drawn


def test_bad_input_is_one_line(tmp_path, fast):
    def refused(source, what, **settings):
        with pytest.raises(ValueError, match=what) as error:
            ask.ask(source, "chgnet-0.3.0", **{"n": 1, "out": tmp_path / "out"} | settings)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

    iron_oxide(good := tmp_path / "feo.extxyz")
    refused(good, "unknown code 'abinit'; there are: vasp, qe, aims, extxyz", code="abinit")
    refused(good, "5 frames are asked for, but only 4 of 4 candidates", n=5)
    refused(good, "must be positive", n=0)
    refused(good, "unknown kind.s. molten; there are: rattled, strained, hot, displaced, slab, vacancy", kinds=["molten"])
    mixed = Structure(Lattice.cubic(4.2), [{"Mg": 0.5, "Ca": 0.5}, "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    mixed.to(str(tmp_path / "mixed.cif"))
    refused(tmp_path / "mixed.cif", "mixed.cif.*disordered")
    write(tmp_path / "water.xyz", molecule("H2O"))
    refused(tmp_path / "water.xyz", "water.xyz, frame 0: no periodic cell")
    near = bulk("Cu", cubic=True)
    near.positions[1] = near.positions[0] + 0.1
    write(tmp_path / "near.vasp", near)
    refused(tmp_path / "near.vasp", "are 0.17 Å apart")
    write(tmp_path / "po.vasp", bulk("Po", "sc", a=3.35))
    refused(tmp_path / "po.vasp", "no pseudopotential for Po; take another --code")
    refused(tmp_path / "nothing.vasp", "no such file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(ValueError, match="not empty; choose a new folder"):
        ask.ask(good, "chgnet-0.3.0", out=tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_frames_are_drawn_by_the_seed_of_the_kinds_asked_for_or_spread_over_a_trajectory(tmp_path, fast):
    write(tmp_path / "cu.vasp", bulk("Cu", cubic=True))

    def drawn(name, source="cu.vasp", **settings):
        ask.ask(tmp_path / source, "chgnet-0.3.0", code="extxyz", out=tmp_path / name, max_atoms=4, **settings)
        return read(tmp_path / name / "frames.extxyz", ":")

    once, again, other = (drawn(name, kinds=["rattled", "strained"], seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert [atoms.positions.tolist() for atoms in once] == [atoms.positions.tolist() for atoms in again]
    assert once[0].positions.tolist() not in [atoms.positions.tolist() for atoms in other]
    assert {atoms.info["kind"] for atoms in drawn("d", kinds=["hot"])} == {"hot"}
    given = iron_oxide(tmp_path / "feo.extxyz", 9)
    places = [next(k for k, one in enumerate(given) if same(one, atoms)) for atoms in drawn("e", "feo.extxyz", n=3)]
    assert places == [0, 4, 8]
