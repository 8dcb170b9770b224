"""Ask for DFT: frames to label so that a potential can be mended, as ready inputs of a DFT code.

Frames are drawn by chance. Cleverer choices were rehearsed, with a stiff potential in the place of DFT, and did not leave less error; kinds
in equal numbers left more on hot frames (``data/reference/asking_tried.csv``, chapter *The cure*). What counts is that labels are of the
kind that the potential is wanted for.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.data import chemical_symbols
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.vasp.sets import MatPESStaticSet, MPStaticSet, VaspInputSet

from helpers import potentials, structures
from helpers.benchmarks import surfaces
from helpers.engine import dynamics
from helpers.potentials import Potential
from helpers.reports import check
from helpers.training import labels, trial
from helpers.training.fine_tune import Label

# Where the answers of each code are expected, and what runs it in the folder of a frame.
ANSWERS = {"vasp": "*/vasprun.xml", "qe": "*/pw.out", "aims": "*/aims.out", "extxyz": "labelled.extxyz"}
_RUNS = {"vasp": "vasp_std", "qe": "pw.x -in pw.in > pw.out", "aims": "aims.x > aims.out"}

KINDS = ("rattled", "strained", "hot", "displaced", "slab", "vacancy")  # the first three by default
SMALLEST, LARGEST = 0.01, 20.0  # eV/Å; frames whose largest force is outside are no candidates
RATTLES_A, DISPLACED_A = (0.05, 0.1, 0.2), 0.03  # Å, root mean square per coordinate; that of frames for phonons
STRAINS = (0.03, 0.06)  # largest component
FACETS = ((1, 0, 0), (1, 1, 0), (1, 1, 1))
N_EACH = 3  # candidates of each size above
_WIDE = 8.0  # Å; a cell this wide is not made larger
_STEPS, _EVERY = 100, 20  # of the dynamics, and from one hot frame to the next

# Forces of one cell without symmetry: converged electrons, and no tetrahedra, whose forces in metals are not those of the energy.
_STATIC = {"NSW": 0, "IBRION": -1, "ISYM": 0, "ISMEAR": 0, "SIGMA": 0.05, "EDIFF": 1e-6, "NELM": 200, "ALGO": "Normal", "LREAL": False}
_STATIC |= {"LWAVE": False, "LCHARG": False, "LAECHG": False}


def ask(
    source: Path | str,
    model: str,
    *,
    n: int = 5,
    code: str = "vasp",
    out: Path | str,
    kinds: Collection[str] = KINDS[:3],
    temperature_k: float = 1000.0,
    max_atoms: int = 48,
    seed: int = 0,
    device: str = "auto",
    trust: bool = False,
) -> str:
    """Draw n frames for DFT, write their inputs and a README into a new or empty folder, and return the README.

    ``source`` is a file of one crystal, of which frames of some ``kinds`` are made, a small cell repeated up to ``max_atoms``, the hottest
    at ``temperature_k``. Of a file of several structures n are taken, evenly spread. ``code`` is a key of :data:`ANSWERS`. ValueError if
    the code or a kind is unknown, a structure or an element cannot be used, there are fewer candidates than n, or the folder is not empty;
    and what :func:`helpers.potentials.load` raises.
    """
    out = Path(out)
    if code not in ANSWERS:
        raise ValueError(f"unknown code {code!r}; there are: {', '.join(ANSWERS)}")
    if not kinds or (unknown := [kind for kind in kinds if kind not in KINDS]):
        raise ValueError(f"unknown kind(s) {', '.join(unknown) if kinds else 'none'}; there are: {', '.join(KINDS)}")
    if n < 1 or not temperature_k > 0:
        raise ValueError(f"{n} frames at {temperature_k:g} K: both must be positive")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there and not empty; choose a new folder for --out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen's, about each setting that is changed
        potential = potentials.load(model, device, trust=trust)
        # Of a CIF file the crystal, of any other every structure.
        one = Path(source).suffix.lower() == ".cif"
        given = [check.read(source)] if one else [frame.atoms for frame in labels.read(source)]
        problems = _faults(given, source, potential)
        made = [("given", atoms) for k, atoms in enumerate(given) if k not in problems]
        trained_on = str(potential.describe().get("training_set", ""))
        numbers = {z for _, atoms in made for z in atoms.numbers}
        known = type(_inputs(made[0][1], trained_on)).CONFIG["POTCAR"]
        if code == "vasp" and (lacking := {chemical_symbols[z] for z in numbers} - set(known)):
            raise ValueError(f"{source}: pymatgen's input set has no pseudopotential for {', '.join(sorted(lacking))}; take another --code")
        if not (spread := len(made) > 1):
            made = candidates(potential, made[0][1], kinds, max_atoms=max_atoms, temperature_k=temperature_k, seed=seed)
        answers = potential.evaluate([atoms for _, atoms in made])
        sound = [k for k, p in enumerate(answers) if p.ok and SMALLEST < np.abs(p.forces).max() < LARGEST]
        if len(sound) < n:
            raise ValueError(f"{source}: {n} frames are asked for, but only {len(sound)} of {len(made)} candidates can be used")
        drawn = np.random.default_rng(seed).permutation(sound)[:n].tolist()
        if spread:  # neighbours in a trajectory are nearly the same
            drawn = [sound[round(place)] for place in np.linspace(0, len(sound) - 1, n)]
        frames = {f"{at:02d}-{made[k][0]}": made[k][1] for at, k in enumerate(drawn, 1)}
        sizes = [f"{np.sqrt(np.mean(answers[k].forces ** 2)):.2f}" for k in drawn]
        lines = [f"| {name} | {one.get_chemical_formula()} | {size} |" for (name, one), size in zip(frames.items(), sizes, strict=True)]
        sets = {name: _inputs(atoms, trained_on) for name, atoms in frames.items()}
        readme = _README.format(
            drawn=f"{n} of {len(sound)} candidates from `{source}`, {'evenly spread' if spread else f'drawn by chance (seed {seed})'}",
            model=model,
            table="\n".join(lines),
            level="\n".join(f"- {line}" for line in _level(code, [*sets.values()], trained_on)),
            command=f"--model {shlex.quote(model)} --labels {shlex.quote(str(out))}/{ANSWERS[code]} --out {shlex.quote(f'{out}-fix')}",
        )
        texts = {f"{name}/{file}": text for name, one in sets.items() if code in _RUNS for file, text in _WRITERS[code](one).items()}
    for name, text in (texts | {"README.md": readme}).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    if code == "extxyz":
        ase.io.write(out / "frames.extxyz", [ase.Atoms(atoms, info={"kind": name[3:]}) for name, atoms in frames.items()])
    return readme


def enlarged(crystal: ase.Atoms, max_atoms: int) -> ase.Atoms:
    """Return the crystal repeated along its shortest lattice vector, again and again, until it is wide or has no room for more atoms."""
    repeats = np.ones(3, dtype=int)
    while True:
        lengths = crystal.cell.lengths() * repeats
        more = repeats + (np.arange(3) == lengths.argmin())
        if lengths.min() >= _WIDE or len(crystal) * more.prod() > max_atoms:
            return crystal.repeat(repeats)
        repeats = more


def candidates(
    potential: Potential,
    crystal: ase.Atoms,
    kinds: Collection[str],
    *,
    max_atoms: int,
    temperature_k: float,
    seed: int,
    steps: int = _STEPS,
) -> list[tuple[str, ase.Atoms]]:
    """Return frames made from a crystal, each with its kind, one of :data:`KINDS`.

    ``hot`` ones are of the potential's own dynamics, half of them at half of the temperature; slabs are cut as the family of surfaces cuts
    them; from a cell with a vacancy one atom is taken, of each element in turn. All but the hot ones are rattled.
    """
    rng, cell = np.random.default_rng(seed), enlarged(crystal, max_atoms)

    def shaken(cells: Sequence[ase.Atoms], size: float = RATTLES_A[0], each: int = N_EACH) -> list[ase.Atoms]:
        return trial.rattled([one for one in cells for _ in range(each)], size, rng)

    def strained() -> list[ase.Atoms]:
        strains = [rng.uniform(-size, size, (3, 3)) for size in np.repeat(STRAINS, N_EACH)]
        return shaken([structures.strained(cell, (strain + strain.T) / 2) for strain in strains], each=1)

    def hot() -> list[ase.Atoms]:
        run = {"time_step_fs": 1.0 if 1 in cell.numbers else 2.0, "friction_per_ps": 10.0, "seed": seed}
        moved = dynamics.move(potential, shaken([cell], each=2), (temperature_k / 2, temperature_k), steps=steps, every=_EVERY, **run)
        found = [positions for snapshot in moved if snapshot.step for positions in snapshot.positions.values()]
        return [ase.Atoms(cell.numbers, positions, cell=cell.cell, pbc=True) for positions in found]

    def slabs() -> list[ase.Atoms]:
        found = []
        for facet in FACETS:
            with contextlib.suppress(ValueError):  # not every facet has a slab with equal faces
                found.append(surfaces.build_slab(crystal, facet, surfaces.Protocol()))
        return shaken(found, each=2 * N_EACH)

    def vacancies() -> list[ase.Atoms]:
        places = [list(cell.symbols).index(element) for element in dict.fromkeys(cell.symbols)]
        return shaken([cell[np.arange(len(cell)) != place] for place in places if len(cell) > 1], each=2 * N_EACH)

    made: dict[str, Callable[[], list[ase.Atoms]]] = {
        "rattled": lambda: [atoms for size in RATTLES_A for atoms in shaken([cell], size)],
        "strained": strained,
        "hot": hot,
        "displaced": lambda: shaken([cell], DISPLACED_A, each=3 * N_EACH),
        "slab": slabs,
        "vacancy": vacancies,
    }
    return [(kind, atoms) for kind in KINDS if kind in kinds for atoms in made[kind]()]


def _faults(given: Sequence[ase.Atoms], source: Path | str, potential: Potential) -> set[int]:
    """Return which structures repeat another; ValueError for the first that the potential cannot evaluate, or whose atoms overlap."""
    # Forces that raise no question: only the structures are judged.
    frames = labels.from_labels([Label(atoms, None, np.ones((len(atoms), 3))) for atoms in given], str(source))
    problems = labels.inspect(frames, potential.elements)
    if wrong := [problem for problem in problems if problem.kind == "frame"]:
        raise ValueError(labels.listed(frames, wrong)[0])
    return {problem.frames[-1] for problem in problems}


def _inputs(atoms: ase.Atoms, trained_on: str) -> VaspInputSet:
    """Return pymatgen's input set at the level of theory of the training data; that of the Materials Project where it is not known."""
    chosen = MatPESStaticSet if "MatPES" in trained_on else MPStaticSet
    return chosen(AseAtomsAdaptor.get_structure(atoms), user_incar_settings=dict(_STATIC))


def _settings(inputs: VaspInputSet) -> tuple[ase.Atoms, list[int], dict[str, tuple[str, float]]]:
    """Return the atoms, with moments if spins count, the grid of k-points, and shell and Hubbard U (eV) by element."""
    atoms, incar = structures.plain(inputs.structure), inputs.incar
    if set(atoms.symbols) & structures.OPEN_SHELL or "magmom" in inputs.structure.site_properties:
        atoms.set_initial_magnetic_moments(incar["MAGMOM"])
    lengths = 2 * np.pi * atoms.cell.reciprocal().lengths()
    grid = inputs.kpoints.kpts[0] if inputs.kpoints else np.maximum(1, np.ceil(lengths / incar["KSPACING"]))
    values = zip(inputs.poscar.site_symbols, incar.get("LDAUU", []), strict=False)
    return atoms, [int(k) for k in grid], {symbol: ({"Mo": "4d", "W": "5d"}.get(symbol, "3d"), u) for symbol, u in values if u}


def _vasp(inputs: VaspInputSet) -> dict[str, str]:
    texts = {"INCAR": str(inputs.incar), "POSCAR": inputs.poscar.get_str(significant_figures=12)}
    texts["POTCAR.spec"] = "\n".join(inputs.potcar_symbols) + "\n"
    return texts | ({"KPOINTS": str(inputs.kpoints)} if inputs.kpoints else {})


def _qe(inputs: VaspInputSet) -> dict[str, str]:
    atoms, grid, hubbard = _settings(inputs)
    if atoms.has("initial_magmoms"):
        # Below one it is a share of the valence electrons, in every version; ligands start without.
        atoms.set_initial_magnetic_moments([0.5 * np.sign(one) * (abs(one) > 1) for one in atoms.get_initial_magnetic_moments()])
    data: dict[str, Any] = {
        "calculation": "scf",
        "tprnfor": True,
        "tstress": True,
        "pseudo_dir": "../pseudo",
        "outdir": "tmp",
        "nosym": True,
    }
    data |= {"ecutwfc": 90, "ecutrho": 720, "conv_thr": 1e-10 * len(atoms)}  # Ry
    data |= {"occupations": "smearing", "smearing": "gaussian", "degauss": 0.0037}  # Ry: 0.05 eV, as in VASP
    file, names = io.StringIO(), {symbol: f"{symbol}.upf" for symbol in atoms.symbols}
    ase.io.write(file, atoms, format="espresso-in", input_data=data, pseudopotentials=names, kpts=grid)
    text = file.getvalue()
    # An element with two moments is two species, each with its U.
    species = re.findall(r"^(([A-Z][a-z]?)\d*) +[\d.]+ +\S+\.upf$", text, re.MULTILINE)
    lines = [f"U {name}-{hubbard[symbol][0]} {hubbard[symbol][1]:g}\n" for name, symbol in species if symbol in hubbard]
    return {"pw.in": text + "".join(["HUBBARD (atomic)\n", *lines] if lines else [])}


def _aims(inputs: VaspInputSet) -> dict[str, str]:
    atoms, grid, _ = _settings(inputs)
    spin = "collinear" if atoms.has("initial_magmoms") else "none"
    lines = ["xc pbe", f"spin {spin}", "relativistic atomic_zora scalar", f"k_grid {' '.join(map(str, grid))}"]
    lines += ["occupation_type gaussian 0.05", "sc_accuracy_rho 1e-6", "sc_accuracy_forces 1e-4", "compute_forces .true."]
    lines += ["compute_analytical_stress .true.", "# Here come the blocks of the species: README.md"]
    geometry = ["lattice_vector {:.10f} {:.10f} {:.10f}".format(*vector) for vector in atoms.cell]
    for atom in atoms:
        geometry.append("atom {:.10f} {:.10f} {:.10f} {}".format(*atom.position, atom.symbol))
        geometry += [f"initial_moment {atom.magmom:g}"] if spin == "collinear" else []
    return {"geometry.in": "\n".join([*geometry, ""]), "control.in": "\n".join([*lines, ""])}


_WRITERS = {"vasp": _vasp, "qe": _qe, "aims": _aims}


_README = """# Frames that wait for DFT

{drawn}, to mend `{model}`.

| frame | atoms | forces of the potential, rms (eV/Å) |
|---|---|---|
{table}

## What to compute

{level}

## Take the labels back

```bash
softening fix {command}
```

This finds one factor and says what it is worth; `--method full` trains the weights. Energies may have any zero.
"""


def _release(inputs: VaspInputSet) -> str:
    """Return the release of VASP's pseudopotentials that an input set is made for, as pymatgen calls it."""
    name = str(inputs.user_potcar_functional)
    other = ", the one without a number; `PBE_54` is later, has slightly other energies and no `W_pv`" if name == "PBE" else ""
    return f"VASP's set that pymatgen calls `{name}`{other}"


def _level(code: str, sets: Sequence[VaspInputSet], trained_on: str) -> list[str]:
    """Return what to compute, as lines."""
    settings = [_settings(inputs) for inputs in sets]
    hubbard = {symbol: found for *_, each in settings for symbol, found in each.items()}
    numbers = sorted({z for atoms, *_ in settings for z in atoms.numbers})
    plus_u = "".join(f" + U({symbol} {shell}) = {u:g} eV" for symbol, (shell, u) in hubbard.items())
    project = f"the Materials Project, which has {'this U beside O or F only' if hubbard else 'no U here'}"
    lines = [f"**PBE{plus_u}**, as {'MatPES, which has no U' if 'MatPES' in trained_on else project}."]
    if not re.search("MatPES|MP", trained_on):
        lines.append(
            f"The potential was trained on {trained_on or 'what is not known here'}: if that has another functional or U, change it."
        )
    lines.append("Energy, forces and stress of every frame as it is. Relax nothing: a relaxed frame teaches nothing.")
    if any(atoms.has("initial_magmoms") for atoms, *_ in settings):
        lines.append(
            "Spins start parallel, unless the structure brought moments. No antiferromagnetic order is made here, and a small cell may "
            "not hold the order of the ground state (that of NiO doubles the cell along [111]). If it is another, set the moments."
        )
    files = ", ".join(f"`{chemical_symbols[z]}.upf`" for z in numbers)
    species = " ".join(f"{z:02d}_{chemical_symbols[z]}" for z in numbers)
    lines += {
        "vasp": [f"POTCAR: those of `POTCAR.spec`, in its order, from {_release(sets[0])}."],
        "qe": [f"Pseudopotentials: SSSP PBE Precision 1.3.0 (materialscloud.org), as {files} in `pseudo`; see to the cutoffs."],
        "aims": [f"In every folder `for s in {species}; do cat $TIGHT/${{s}}_default >> control.in; done`, from the tight species."]
        + [f"Into the block of {symbol}: `plus_u {' '.join(shell)} {u:g}`." for symbol, (shell, u) in hubbard.items()]
        + ["Into `control.in`, for the double counting of VASP: `plus_u_petukhov_mixing 1.0`."] * bool(hubbard),
        "extxyz": ["Write the frames with REF_energy (eV), REF_forces (eV/Å), REF_stress (eV/Å³) to `labelled.extxyz` in this folder."],
    }[code]
    if hubbard and code in ("qe", "aims"):
        lines.append("U is VASP's; with other projectors it acts a little differently.")
    return lines + ([f"In every folder: `{_RUNS[code]}`."] if code in _RUNS else [])
