"""Labels from files as codes and people write them: ionic steps of VASP, plurals, folders, names, line ends."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from ase.units import GPa
from conftest import frames_of_copper

from helpers.potentials.ase import ASEPotential
from helpers.training import fine_tune, labels
from helpers.training.labels import LabelError

C = 1.25  # labels are this times EMT
CU = frozenset({29})


def copper(n: int = 3, seed: int = 0) -> list[tuple[ase.Atoms, float, np.ndarray, np.ndarray]]:
    """Return displaced copper with EMT's energy, forces and stress (3, 3), times 1.25."""
    frames = frames_of_copper(n, C, seed)
    return [(atoms.copy(), atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)) for atoms in frames]


def factor(frames) -> float:
    return fine_tune.linear_correction(ASEPotential("emt", EMT()), [frame.label() for frame in frames]).scale


def faults(frames) -> list[str]:
    return [frame.fault for frame in frames]


# ---------------------------------------------------------------------------------------------------
# VASP


def rows(tag: str, name: str, values) -> str:
    return f'<varray name="{name}">' + "".join(f"<{tag}>{' '.join(f'{x:.8f}' for x in row)}</{tag}>" for row in values) + "</varray>"


def vasprun(steps, electronic=None, nelm: int = 10, held: int = 0) -> str:
    """Return a vasprun.xml: ionic steps with their numbers of electronic ones, and how many atoms are held (selective dynamics)."""

    def structure(atoms) -> str:
        basis = rows("v", "basis", atoms.cell.array)
        return f"<crystal>{basis}</crystal>{rows('v', 'positions', atoms.get_scaled_positions(wrap=False))}"

    first = steps[0][0]
    flags = "".join(f"<v>{'F F F' if k < held else 'T T T'}</v>" for k in range(len(first)))
    species = "".join(f"<rc><c>{symbol}</c><c>1</c></rc>" for symbol in first.symbols)
    text = (
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>'
        f"<kpoints>{rows('v', 'kpointlist', np.zeros((1, 3)))}{rows('v', 'weights', np.ones((1, 1)))}</kpoints>"
        f'<parameters><i type="int" name="NELM">  {nelm}</i></parameters>'
        f'<atominfo><array name="atoms"><set>{species}</set></array></atominfo>'
        f'<structure name="initialpos">{structure(first)}<varray name="selective">{flags}</varray></structure>\n'
    )
    for (atoms, energy, forces, stress), n in zip(steps, electronic or [5] * len(steps), strict=True):
        energies = "".join(f'<i name="{name}">{energy:.8f}</i>' for name in ("e_fr_energy", "e_wo_entrp", "e_0_energy"))
        text += "<calculation>" + f"<scstep><energy>{energies}</energy></scstep>\n" * n
        text += f"<structure>{structure(atoms)}</structure>{rows('v', 'forces', forces)}{rows('v', 'stress', -10 / GPa * stress)}"
        text += f"<energy>{energies}</energy></calculation>\n"
    return text + "</modeling>\n"


def outcar(steps, endings=None, nelm: int = 10) -> str:
    """Return an OUTCAR; endings say how the electronic loop of each ionic step ended, or that it is a force field's."""
    n = len(steps[0][0])
    text = " POTCAR:    PAW_PBE Cu 05Jan2001\n" * 2 + f"   NELM   =     {nelm};\n   ISPIN  =      1\n   ions per type =              {n}\n"
    for k, ((atoms, energy, forces, stress), ending) in enumerate(zip(steps, endings or ["reached"] * len(steps), strict=True)):
        ml = " ML" if ending == "ML" else ""
        if not ml:
            m = nelm if ending == "gave up" else 5
            text += f"--------- Iteration {k + 1:4d}({m - 1:4d})  -----\n--------- Iteration {k + 1:4d}({m:4d})  -----\n"
            said = "was not reached (unconverged)" if ending == "not reached" else "is reached"
            text += f"------ aborting loop {'' if ending == 'not reached' else 'because '}EDIFF {said} ------\n"
        six = -10 / GPa * stress[[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0]]
        text += "  in kB  " + " ".join(f"{x:11.5f}" for x in six) + "\n"
        text += "      direct lattice vectors                 reciprocal lattice vectors\n"
        text += "".join("  " + " ".join(f"{x:13.9f}" for x in (*row, 0, 0, 0)) + "\n" for row in atoms.cell.array)
        text += f" POSITION                                       TOTAL-FORCE (eV/Angst){' (ML)' if ml else ''}\n ---------\n"
        text += "".join(" ".join(f"{x:14.8f}" for x in (*p, *f)) + "\n" for p, f in zip(atoms.positions, forces, strict=True))
        text += f" ---------\n {ml} FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  ---------\n"
        text += f"  free  energy{ml or '  '} TOTEN  = {energy:18.8f} eV\n\n"
        text += f" {ml} energy  without entropy= {energy:17.8f} {ml} energy(sigma->0) = {energy:17.8f}\n\n"
    return text


def test_a_vasprun_with_selective_dynamics_gives_raw_forces(tmp_path):
    path = tmp_path / "vasprun.xml"
    path.write_text(vasprun(copper(4), held=2))
    frames = labels.read(path)
    assert faults(frames) == [""] * 4
    assert factor(frames) == pytest.approx(C, rel=1e-4)
    for frame, (_, energy, forces, stress) in zip(frames, copper(4), strict=True):
        assert frame.forces == pytest.approx(forces, abs=1e-6)
        assert frame.energy == pytest.approx(energy, abs=1e-6)
        assert frame.stress == pytest.approx(stress, abs=1e-6)


def test_ionic_steps_of_a_vasprun_that_are_no_labels(tmp_path):
    path = tmp_path / "vasprun.xml"
    steps = vasprun(copper(6), [5, 10, 0, 5, 5, 5]).replace("<v>", "<v> ", 1).split("</calculation>")
    steps[3] = steps[3].replace('name="forces"><v>', 'name="forces"><v>**********')
    steps[5] = steps[5][: len(steps[5]) // 2]
    path.write_text("</calculation>".join(steps[:6]))
    frames = labels.read(path)
    words = ["", "did not converge", "force field (ML_LMLFF)", "cannot be read (ValueError", "", "ends in the middle"]
    assert [word in fault for word, fault in zip(words, faults(frames), strict=True)] == [True] * 6
    assert [frame.number for frame in frames if not frame.fault] == [0, 4]
    problems = labels.inspect(frames, CU)
    assert [problem.kind for problem in problems] == ["frame"] * 4
    assert labels.listed(frames, problems)[0].startswith(f"{path}, frame 1: the electronic loop of this ionic step did not converge")
    assert factor([frames[0], frames[4]]) == pytest.approx(C, rel=1e-4)


def test_ionic_steps_of_an_outcar_that_are_no_labels(tmp_path):
    path = tmp_path / "OUTCAR"
    text = outcar(copper(7), ["reached", "gave up", "not reached", "ML", "reached", "reached", "reached"])
    lines = text.splitlines(keepends=True)
    at = [k for k, line in enumerate(lines) if "TOTAL-FORCE" in line]
    lines[at[4] + 2] = lines[at[4] + 2][:-16] + "*" * 14 + "\n"
    path.write_text("".join(lines[: at[6] + 3]))
    frames = labels.read(path)
    words = ["", "did not converge", "did not converge", "force field (ML_LMLFF)", "cannot be read", "", "ends in the middle"]
    assert [word in fault for word, fault in zip(words, faults(frames), strict=True)] == [True] * 7
    assert factor([frames[0], frames[5]]) == pytest.approx(C, rel=1e-4)
    assert frames[0].stress == pytest.approx(copper(1)[0][3], abs=1e-6)


# ---------------------------------------------------------------------------------------------------
# extxyz, and names of entries


def written(path, n: int = 3, **entries) -> list:
    """Write copper as extxyz; an entry is a name, and what of (energy, forces, stress) it holds."""
    images = []
    for atoms, energy, forces, stress in copper(n):
        for name, value in entries.items():
            found = value(atoms, energy, forces, stress)
            (atoms.arrays if np.ndim(found) > 0 and len(np.atleast_1d(found)) == len(atoms) else atoms.info)[name] = found
        images.append(atoms)
    write(path, images, format="extxyz")
    return labels.read(path)


STRESS = copper(1)[0][3]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("virial", lambda a, e, f, s: -s * a.get_volume()),  # NEP's and GPUMD's train.xyz: nine numbers, eV
        ("virials", lambda a, e, f, s: -s * a.get_volume()),
        ("REF_virials", lambda a, e, f, s: (-s * a.get_volume()).ravel()),
        ("REF_stresses", lambda a, e, f, s: s.ravel()),
        ("stresses", lambda a, e, f, s: s),
        ("dft_stress", lambda a, e, f, s: s[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]),
    ],
)
def test_names_of_stresses_and_virials(tmp_path, name, value):
    frames = written(tmp_path / "train.xyz", force=lambda a, e, f, s: f, energy=lambda a, e, f, s: e, **{name: value})
    assert frames[0].stress == pytest.approx(STRESS, abs=1e-6)
    assert name in frames[0].names
    assert frames[0].remarks == ()
    assert factor(frames) == pytest.approx(C, rel=1e-4)


def test_entries_that_are_not_used_are_named(tmp_path):
    frames = written(
        tmp_path / "labels.xyz",
        REF_forces=lambda a, e, f, s: f,
        REF_energy=lambda a, e, f, s: e,
        REF_virials=lambda a, e, f, s: np.tile(s.ravel(), (len(a), 1)),
        mace_forces=lambda a, e, f, s: 2 * f,
        free_energy=lambda a, e, f, s: e,
        energy_cutoff=lambda a, e, f, s: 520.0,
    )
    assert frames[0].stress is None
    assert frames[0].names == "REF_forces, REF_energy"
    assert frames[0].remarks == ("found and not used: REF_virials (one per atom: not the stress of the cell), energy_cutoff, mace_forces",)
    potential = ASEPotential("emt", EMT())
    _, notes = labels.compare(frames, potential.evaluate([frame.atoms for frame in frames]))
    assert f"{tmp_path}/labels.xyz, frames 0–2: {frames[0].remarks[0]}" in notes


def test_one_damaged_frame_loses_no_other(tmp_path):
    path = tmp_path / "labels.xyz"
    written(path, 4, forces=lambda a, e, f, s: f)
    lines = path.read_text().splitlines()
    lines[8] = lines[8][:-12] + "************"
    path.write_text("\n".join(lines[:-1]))
    frames = labels.read(path)
    assert [bool(fault) for fault in faults(frames)] == [False, True, False, True]
    assert factor([frames[0], frames[2]]) == pytest.approx(C, rel=1e-4)


def test_an_empty_line_ends_no_file_in_silence(tmp_path):
    path = tmp_path / "labels.xyz"
    written(path, 4, forces=lambda a, e, f, s: f)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:12], "", *lines[12:]]))
    frames = labels.read(path)
    assert faults(frames)[:2] == ["", ""]
    assert "ASE stops here, though 4 frames begin" in frames[2].fault


# ---------------------------------------------------------------------------------------------------
# Files, folders, names


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["labels.xyz", "Größe – 標籤 @2.xyz"])
def test_line_ends_and_names(tmp_path, name, ending):
    path = tmp_path / name
    written(path, forces=lambda a, e, f, s: f)
    path.write_bytes(path.read_text().replace("\n", ending).encode())
    for given in (path, str(path), [path], [str(path)], iter([path])):
        frames = labels.read(given)
        assert [frame.file for frame in frames] == [str(path)] * 3
        assert factor(frames) == pytest.approx(C, rel=1e-4)


def test_vasp_files_with_line_ends_of_windows(tmp_path):
    for name, text in (("vasprun.xml", vasprun(copper())), ("OUTCAR", outcar(copper()))):
        (tmp_path / name).write_bytes(text.replace("\n", "\r\n").encode())
        frames = labels.read(tmp_path / name)
        assert faults(frames) == [""] * 3
        assert factor(frames) == pytest.approx(C, rel=1e-4)


def test_a_folder_in_natural_order(tmp_path):
    for k, (atoms, _, forces, _) in enumerate(copper(12)):
        atoms.arrays["REF_forces"] = forces
        (tmp_path / f"run{k}").mkdir()
        write(tmp_path / f"run{k}" / "out.extxyz", atoms)
    (tmp_path / "run3" / "vasprun.xml").write_text(vasprun(copper(1, seed=1)))
    (tmp_path / "run3" / "OUTCAR").write_text(outcar(copper(1, seed=1)))
    (tmp_path / "run4" / "POSCAR").write_text("")
    (tmp_path / "run4" / "notes.txt").write_text("what was done")
    (tmp_path / "run5" / "setup.py").write_text("raise SystemExit")
    write(tmp_path / "bare.cif", bulk("Cu"))
    frames = labels.read(tmp_path)
    names = [frame.file.removeprefix(f"{tmp_path}/") for frame in frames]
    assert names == [*(f"run{k}/out.extxyz" for k in range(4)), "run3/vasprun.xml", *(f"run{k}/out.extxyz" for k in range(4, 12))]
    ((remark,),) = {frame.remarks for frame in frames}
    assert "bare.cif (no forces)" in remark
    assert "run3/OUTCAR (the same steps as its vasprun.xml)" in remark
    assert "run4/notes.txt (" in remark
    assert "run4/POSCAR (" in remark
    assert "run5/setup.py (files of the format 'py' can run code" in remark
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabelError, match="empty holds no file with forces"):
        labels.read(tmp_path / "empty")


def test_many_files_of_one_frame(tmp_path):
    paths = []
    for k, (atoms, _, forces, _) in enumerate(copper(40)):
        atoms.arrays["forces"] = -forces if k in (3, 30) else forces
        paths.append(tmp_path / f"{k}.xyz")
        write(paths[-1], atoms, format="extxyz")
    frames = labels.read(paths)
    potential = ASEPotential("emt", EMT())
    problems, _ = labels.compare(frames, potential.evaluate([frame.atoms for frame in frames]))
    assert [problem.frames for problem in problems] == [(3,), (30,)]
    assert labels.listed(frames, problems)[0].startswith(f"{paths[3]}, frame 0: the forces point against the model's")


def test_a_pattern_that_no_file_matches_asks_whether_the_frames_were_computed(tmp_path):
    with pytest.raises(labels.LabelError, match=r"no such file; no file matched this pattern: were the frames computed\?"):
        labels.read(tmp_path / "*" / "vasprun.xml")
