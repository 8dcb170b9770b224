"""Solid solutions: mixing energies of substitutional orderings (Deng et al., npj Comput. Mater. 11, 9 (2025), Fig. 2c).

The mixing energy is what it costs to distribute two species over the sites of one lattice, against the pure
end members: Δh = E/N − (1 − x) e₁ − x e₂, with N formula units of energies e₁ and e₂ in the end members and the fraction x of the
second species. It is positive where like prefers like (a miscibility gap), negative where the species order. The sets are

``ca-mg-o``
    Rocksalt Ca_xMg_{2−x}O2, the paper's system: all 240 symmetry-distinct orderings of a 16-cation cell with the full cubic
    symmetry, x the fraction of Ca. Their multiplicities make the average over all 2¹⁶ configurations exact. The paper's orderings are
    not known, so ``reference`` is NaN: compare the distribution at each composition with :func:`paper_curves`.
``sic-aln``
    155 orderings of wurtzite SiC–AlN with geometry and energy from DFT (PBE, cell and atoms relaxed), of the examples of
    pyclupan; x is the fraction of AlN. In cells of 4 to 36 atoms, many of them polar and rich in bonds Si–N and Al–C, at
    up to 1 eV per formula unit: no sample of a random alloy. Nine have made or broken bonds as they relaxed in DFT. Nitrogen's
    pseudopotential (N_s) is softer than that of the models' training data.
``nb-mo``, ``ta-w``
    All 329 orderings of a 16-atom bcc cell, from DFT (PBE): Li et al., npj Comput. Mater. 6, 70 (2020). Each is there twice: on
    the ideal sites of the first (x ≤ 1/2) or the second element's lattice, and relaxed. x is the fraction of Mo and W. The relaxed
    ones keep stresses of up to 1.4 GPa.

Energies are per formula unit: two cations in ``ca-mg-o``, two atoms in ``sic-aln``, one atom in the metals.

``formation_energy`` (``ca-mg-o``) and ``mixing_energy`` (``sic-aln``): atoms and cell relaxed by the model, against the model's own
relaxed end members. ``formation_energy_unrelaxed``: on the ideal sites, at a lattice parameter between those
of the model's end members; what it lies higher is the relaxation energy. ``mixing_energy_static``: alloy and end members at
the DFT geometry. The metals have this one only: in ten orderings of each, CHGNet gained less than 2 meV/atom by relaxing further
than DFT did. A relaxation keeps the symmetry that it starts with.

``force`` rows hold the force components on the unrelaxed frames of the metals, but for those frames where symmetry forbids any force.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import nan
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import ase
import numpy as np
import pandas as pd
from ase import units
from ase.build import bulk, make_supercell
from numpy.typing import ArrayLike
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
from scipy import special
from scipy.spatial import ConvexHull

from helpers import engine, potentials, registry, softening, structures
from helpers.benchmarks import Case, Family, Sample, beside, chosen_sets, force_rows, of, row, table
from helpers.potentials.base import Potential, Prediction
from helpers.sources import snap

_SNAP = f"{snap.SNAP}/NbMoTaW/training"
_METALS = {"nb-mo": ("Nb", "Mo"), "ta-w": ("Ta", "W")}

SETS: dict[str, Sequence[str]] = {
    "ca-mg-o": (),
    "sic-aln": registry.Listed("solid_solutions", lambda key: "/SiC-AlN/" in key),
    **{
        name: (f"{_SNAP}/{first}{second}_SS.json", f"{_SNAP}/{first}_Elastic.json", f"{_SNAP}/{second}_Elastic.json")
        for name, (first, second) in _METALS.items()
    },
}
LIVE = "ca-mg-o"
KEYS = ("atom", "component")
QUICK = {"sic-aln": Sample(12), "nb-mo": Sample(12), "ta-w": Sample(12)}
STAND_IN = Sample(6)

# How far a recomputed value may lie from the committed one: rounding for statics, the thresholds for relaxed alloys. M3GNet's old weights
# jump a little as bonds cross the cutoff, so that two relaxations of one alloy were seen to end 3 meV apart.
TOLERANCES = {
    "formation_energy": 6e-3,
    "formation_energy_unrelaxed": 2e-3,
    "mixing_energy": 6e-3,
    "mixing_energy_static": 5e-4,
    "force": 2e-3,
}


@dataclass(frozen=True)
class System:
    """What the energies of a set refer to."""

    # Atoms in a formula unit, and sites in it that either species can take.
    atoms_per_unit: int
    sites_per_unit: int
    unit: str  # of the energies
    quantity: str  # the energy that the thermodynamic model is fitted to
    enumerated: bool  # whether the orderings are all those of one cell, so that multiplicities make the random alloy


# In SiC–AlN cations and anions mix on their own sublattices.
SYSTEMS = {
    "ca-mg-o": System(4, 2, "eV/f.u.", "formation_energy", True),
    "sic-aln": System(2, 2, "eV/f.u.", "mixing_energy", False),
    "nb-mo": System(1, 1, "eV/atom", "mixing_energy_static", True),
    "ta-w": System(1, 1, "eV/atom", "mixing_energy_static", True),
}

# Measured lattice parameters, Å: only where the relaxation of the end members starts.
_A_MGO, _A_CAO = 4.21, 4.81

# Below this DFT force (eV/Å) a frame counts as one without forces.
_NO_FORCE = 1e-6


@dataclass(frozen=True)
class Protocol:
    """Settings of the benchmark."""

    # Largest force at convergence of a relaxation, eV/Å. The stress falls below the default of :func:`helpers.engine.relax`.
    fmax_ev_per_a: float = 0.05
    max_steps: int = 300  # FIRE steps after which a relaxation counts as failed
    # Whether alloys are relaxed. Without it there are no ``formation_energy`` and ``mixing_energy`` rows; the end members of ``ca-mg-o``
    # are relaxed in any case.
    relax: bool = True


def mixing_energy(e_alloy: float, n_units: float, x: float, e_first: float, e_second: float) -> float:
    """Return Δh = E/N − (1 − x) e₁ − x e₂ (eV per formula unit) of N formula units with the fraction x of the second species."""
    return e_alloy / n_units - (1 - x) * e_first - x * e_second


# ---- Orderings ------------------------------------------------------------------------------------


def site_permutations(sites: ase.Atoms) -> np.ndarray:
    """Return how the space group of a cell, translations that it repeats included, permutes its sites, all of one species.

    Shape (n_operations, n_sites): operation k takes site i to site ``permutations[k, i]``. ValueError if one does not map sites onto sites.
    """
    operations = SpacegroupAnalyzer(AseAtomsAdaptor.get_structure(sites)).get_symmetry_operations()
    rotations = np.array([operation.rotation_matrix for operation in operations])
    translations = np.array([operation.translation_vector for operation in operations])
    scaled = sites.get_scaled_positions()
    images = np.einsum("kab,ib->kia", rotations, scaled) + translations[:, None]
    apart = images[:, :, None] - scaled
    distance = np.abs(apart - np.rint(apart)).max(axis=3)
    permutations = distance.argmin(axis=2)
    if distance.min(axis=2).max() > 1e-3 or (np.sort(permutations, axis=1) != np.arange(len(sites))).any():
        raise ValueError(f"the symmetry operations of {sites.get_chemical_formula()} do not map its sites onto each other")
    return permutations


def canonical_orderings(permutations: np.ndarray) -> np.ndarray:
    """Return, for every way to colour n sites with two species, the representative of its equivalents.

    A colouring is a bit mask: bit i is set where site i holds the second species. Its representative is the smallest mask among
    its images under :func:`site_permutations`; how often one occurs is its multiplicity. The result has shape (2**n_sites,), indexed by
    mask: every colouring is visited, so this is for cells of up to some twenty sites.
    """
    n_sites = permutations.shape[1]
    smallest = np.arange(2**n_sites, dtype=np.int32)
    for permutation in permutations:
        image = np.zeros(1, dtype=np.int32)
        for target in permutation:
            # The masks with bit i set are those without it, moved up by 2^i.
            image = np.concatenate([image, image | np.int32(1 << target)])
        np.minimum(smallest, image, out=smallest)
    return smallest


def _coloured(mask: int, n_sites: int) -> np.ndarray:
    """Return which sites of a mask hold the second species."""
    return (mask >> np.arange(n_sites)) & 1 == 1


def rocksalt_cell(a: float) -> ase.Atoms:
    """Return MgO with 16 cations in the body-centred superlattice a(−1,1,1), a(1,−1,1), a(1,1,−1) of the cubic cell; a in Å.

    The cell keeps the full cubic symmetry, so that few orderings are distinct.
    """
    return make_supercell(bulk("MgO", "rocksalt", a=a, cubic=True), [[-1, 1, 1], [1, -1, 1], [1, 1, -1]])


@cache
def _rocksalt_orderings() -> tuple[np.ndarray, np.ndarray]:
    """Return the representative masks of the 16-cation cell and their multiplicities."""
    cell = rocksalt_cell(1.0)
    return np.unique(canonical_orderings(site_permutations(cell[cell.symbols == "Mg"])), return_counts=True)


@cache
def _bcc_orderings() -> tuple[ase.Atoms, np.ndarray, np.ndarray]:
    """Return the 2×2×2 bcc cell (lattice parameter 1), and representative and multiplicity of every mask."""
    cell = bulk("W", "bcc", a=1.0, cubic=True) * 2
    representative = canonical_orderings(site_permutations(cell))
    return cell, representative, np.bincount(representative)[representative]


# ---- Reference cases ------------------------------------------------------------------------------


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return the reference cases, whatever the protocol.

    Structures ``alloy`` and the end members ``first`` and ``second``; reference ``energy`` (mixing energy, eV per formula
    unit; NaN in ``ca-mg-o``) and, for unrelaxed metals, ``forces`` (eV/Å, shape (n_atoms, 3)). ``info`` holds ``x`` (fraction of
    the second species), ``ordering``, ``multiplicity`` (equivalent configurations; NaN where the cells differ),
    ``relaxed_in_dft`` and ``geometry`` (``built`` or ``DFT``).
    """
    makers = {"ca-mg-o": _ca_mg_o, "sic-aln": _sic_aln, "nb-mo": _metals, "ta-w": _metals}
    return [case for name in chosen_sets(SETS, sets) for case in makers[name](name)]


def _case(
    name: str,
    material: str,
    ordering: str,
    atoms: dict[str, ase.Atoms],
    x: float,
    reference: dict[str, Any] | None = None,
    relaxed: bool = False,
    multiplicity: float = nan,
) -> Case:
    """Return a case; without a reference, of DFT, it is one that is built here."""
    info = {
        "x": round(x, 6),
        "ordering": ordering.partition("/")[0],
        "multiplicity": float(multiplicity),
        "n_atoms": len(atoms["alloy"]),
        "relaxed_in_dft": relaxed,
        "geometry": "DFT" if reference else "built",
    }
    return Case(f"{name}/{ordering}", name, material, atoms, reference or {"energy": nan}, info)


def _ca_mg_o(name: str) -> list[Case]:
    ends = {"first": bulk("MgO", "rocksalt", a=_A_MGO), "second": bulk("CaO", "rocksalt", a=_A_CAO)}
    masks, multiplicities = _rocksalt_orderings()
    n_cations = len(rocksalt_cell(1.0)) // 2
    n_ca = np.bitwise_count(masks)
    found = []
    for n in range(n_cations + 1):
        x = n / n_cations
        for number, (mask, multiplicity) in enumerate(zip(masks[n_ca == n], multiplicities[n_ca == n], strict=True), start=1):
            alloy = rocksalt_cell((1 - x) * _A_MGO + x * _A_CAO)
            cations = np.flatnonzero(alloy.symbols == "Mg")
            alloy.symbols[cations[_coloured(mask, n_cations)]] = "Ca"
            found.append(_case(name, "Ca-Mg-O", f"{n:02d}-{number:02d}", {"alloy": alloy, **ends}, x, multiplicity=multiplicity))
    return found


def read_vasprun(path: Path) -> tuple[ase.Atoms, float, tuple[object, ...]]:
    """Return the final structure of a relaxation, its energy (eV), and the settings that energies depend on.

    The energy is that of the last electronic step, extrapolated to zero smearing. The summary of the ionic step
    has it under another name: VASP 5.3 writes the entropy as ``e_0_energy`` there.
    """
    root = ElementTree.parse(path).getroot()  # noqa: S314  (a file of known checksum)
    energy = root.findall("calculation")[-1].findall("scstep")[-1].findtext("energy/i[@name='e_0_energy']", "")

    def texts(where: str) -> list[str]:
        return [(entry.text or "").strip() for entry in root.findall(where)]

    cell, scaled = (
        [[float(number) for number in text.split()] for text in texts(f"structure[@name='finalpos']/{where}/v")]
        for where in ("crystal/varray[@name='basis']", "varray[@name='positions']")
    )
    atoms = ase.Atoms(texts("atominfo/array[@name='atoms']/set/rc/c[1]"), cell=cell, scaled_positions=scaled, pbc=True)
    incar = tuple(zip([entry.get("name") for entry in root.findall("incar/*")], texts("incar/*"), strict=True))
    return atoms, float(energy), (incar, *texts("parameters//i[@name='GGA']"))


def _sic_aln(name: str) -> list[Case]:
    read = {key: read_vasprun(registry.fetch(key)) for key in SETS[name]}
    settings = next(iter(read.values()))[2]
    for key, (_, _, other) in read.items():
        if other != settings:
            raise ValueError(f"{key} was calculated with other settings than {SETS[name][0]}; leave it out of the registry")
    per_unit = SYSTEMS[name].atoms_per_unit
    fractions = {key: float((atoms.symbols == "Al").mean()) * per_unit for key, (atoms, _, _) in read.items()}
    (first,), (second,) = ([key for key, x in fractions.items() if x == end] for end in (0.0, 1.0))
    ends = {"first": read[first][0], "second": read[second][0]}
    pure = [read[key][1] / (len(read[key][0]) / per_unit) for key in (first, second)]
    found = []
    for key, (atoms, energy, _) in read.items():
        x, ordering = fractions[key], Path(key).parent.name
        reference = {"energy": mixing_energy(energy, len(atoms) / per_unit, x, *pure)}
        found.append(_case(name, "SiC-AlN", ordering, {"alloy": atoms, **ends}, x, reference, relaxed=True))
    return found


def _metals(name: str) -> list[Case]:
    alloys, *pure = (snap.frames([key]) for key in SETS[name])
    first, second = map(snap.undeformed, pure)
    ends = {"first": first.atoms, "second": second.atoms}
    e_first, e_second = (frame.energy / len(frame.atoms) for frame in (first, second))
    multiplicities = {}
    found = []
    # Unrelaxed frames first: on the ideal sites an ordering's multiplicity can be found.
    for frame in sorted(alloys, key=lambda frame: "unrelax" not in frame.info["notes"]):
        ((tag, ordering),) = frame.info["notes"].items()
        relaxed = tag == "relax"
        alloy = frame.atoms
        second = alloy.symbols == _METALS[name][1]
        if not relaxed:
            multiplicities[ordering] = _bcc_multiplicity(alloy, second)
        x = float(second.mean())
        reference: dict[str, Any] = {"energy": mixing_energy(frame.energy, len(alloy), x, e_first, e_second)}
        if not relaxed and np.abs(frame.forces).max() > _NO_FORCE:
            reference["forces"] = frame.forces
        label = f"{ordering}/{'relaxed' if relaxed else 'unrelaxed'}"
        found.append(_case(name, "-".join(_METALS[name]), label, {"alloy": alloy, **ends}, x, reference, relaxed, multiplicities[ordering]))
    return found


def _bcc_multiplicity(alloy: ase.Atoms, second: np.ndarray) -> int:
    """Return how many colourings of the 2×2×2 bcc cell are equivalent to an ordering on its ideal sites."""
    cell, _, multiplicity = _bcc_orderings()
    # The frames' lattice vectors are the cubic ones in another order, which is a symmetry operation of the crystal.
    apart = alloy.get_scaled_positions()[:, None] - cell.get_scaled_positions()
    distance = np.abs(apart - np.rint(apart)).max(axis=2)
    sites = distance.argmin(axis=1)
    if distance.min(axis=1).max() > 1e-3 or len(set(sites.tolist())) != len(cell):
        raise ValueError(f"{alloy.get_chemical_formula()} is not on the sites of a 2×2×2 bcc cell")
    return int(multiplicity[sum(1 << int(site) for site in sites[second])])


# ---- Predictions ----------------------------------------------------------------------------------


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol, progress: bool = False) -> pd.DataFrame:
    """Predict mixing energies, and forces on the unrelaxed metals.

    The end members that the cases need are relaxed first, together; then every distinct structure is evaluated in one call, and
    all alloys are relaxed in another.

    The properties of the module's text, energies in the unit of :data:`SYSTEMS`, and ``force`` (eV/Å, one row per
    component, with columns ``atom`` and ``component``, 0 to 2 for x to z, rounded to 1e-4). ``volume_a3_per_atom`` is that of
    the structure that the value belongs to.
    """
    settings: dict[str, Any] = {"cell": "full", "fmax": protocol.fmax_ev_per_a, "max_steps": protocol.max_steps, "progress": progress}
    moving = [number for number, case in enumerate(cases) if protocol.relax and _relaxes(case)]
    wanted = [case for number, case in enumerate(cases) if _built(case) or number in moving]
    relaxed_ends = engine.relax_distinct(potential, [end for case in wanted for end in _ends(case).values()], **settings)
    starts = [_at_own_lattice(case, relaxed_ends) if _built(case) else case.structures["alloy"] for case in cases]
    ends = [end for case in cases if not _built(case) for end in _ends(case).values()]
    static = engine.evaluate_distinct(potential, [*starts, *ends], progress)
    relaxed = dict(zip(moving, engine.relax(potential, [starts[number] for number in moving], **settings), strict=True))

    rows = []
    for number, (case, start) in enumerate(zip(cases, starts, strict=True)):
        alloy = static[structures.content(start)]
        if _built(case):
            rows.append(_energy_row(potential.key, case, "formation_energy_unrelaxed", start, alloy, relaxed_ends))
        else:
            rows.append(_energy_row(potential.key, case, "mixing_energy_static", start, alloy, static))
        if number in relaxed:
            result = relaxed[number]
            rows.append(_energy_row(potential.key, case, SYSTEMS[case.set].quantity, result.atoms, result, relaxed_ends))
        if "forces" in case.reference:
            volume = case.structures["alloy"].get_volume() / len(case.structures["alloy"])
            values, references = np.round(alloy.forces, 4), np.round(case.reference["forces"], 4)
            rows += force_rows(potential.key, case, values, references, alloy.error, volume_a3_per_atom=volume)
    return table(rows)


def _ends(case: Case) -> dict[str, ase.Atoms]:
    return {role: case.structures[role] for role in ("first", "second")}


def _built(case: Case) -> bool:
    return case.info["geometry"] == "built"


def _relaxes(case: Case) -> bool:
    """Tell whether a set's quantity is that of alloys which the model has relaxed."""
    return not SYSTEMS[case.set].quantity.endswith("static")


def _at_own_lattice(case: Case, relaxed: Mapping[bytes, engine.Relaxed]) -> ase.Atoms:
    """Return a built ordering with its lattice parameter interpolated between those of the model's end members (Vegard's rule)."""
    alloy = case.structures["alloy"].copy()
    ends = [relaxed[structures.content(end)] for end in _ends(case).values()]
    if any(end.error is not None for end in ends):
        return alloy
    # Lengths per atom: the cells hold different numbers of atoms.
    first, second = ((end.atoms.get_volume() / len(end.atoms)) ** (1 / 3) for end in ends)
    now = (alloy.get_volume() / len(alloy)) ** (1 / 3)
    x = case.info["x"]
    alloy.set_cell(alloy.cell.array * ((1 - x) * first + x * second) / now, scale_atoms=True)
    return alloy


def _energy_row(
    model: str,
    case: Case,
    name: str,
    atoms: ase.Atoms,
    alloy: Prediction | engine.Relaxed,
    known: Mapping[bytes, Prediction | engine.Relaxed],
) -> dict[str, Any]:
    """Return the row of one energy; atoms is the geometry that it belongs to, known holds the end members' results."""
    system = SYSTEMS[case.set]
    value, error, per_unit = np.nan, alloy.error, []
    for pure in _ends(case).values():
        end = known[structures.content(pure)]
        if end.error is not None:
            error = error or f"{pure.get_chemical_formula(empirical=True)}: {end.error}"
        per_unit.append(end.energy * system.atoms_per_unit / len(pure))
    if error is None:
        value = mixing_energy(alloy.energy, len(atoms) / system.atoms_per_unit, case.info["x"], *per_unit)
    extra = {"volume_a3_per_atom": atoms.get_volume() / len(atoms), "atom": np.nan, "component": np.nan}
    return row(model, case, name, value, float(case.reference["energy"]), system.unit, error=error, **extra)


# ---- Curves and thermodynamics --------------------------------------------------------------------


def _points(table: pd.DataFrame, quantity: str | None) -> pd.DataFrame:
    """Return the energies that curves are made of, of models and DFT; of the metals, those at the geometry that was relaxed in DFT."""
    wanted = table["set"].map({name: quantity or system.quantity for name, system in SYSTEMS.items()})
    chosen = table[(table["property"] == wanted) & ((table["geometry"] == "built") | table["relaxed_in_dft"])]
    dft = chosen[np.isfinite(chosen["reference"])].drop_duplicates("case")
    parts = [chosen.assign(energy=chosen["value"]), dft.assign(energy=dft["reference"], model="DFT", status="ok")]
    columns = ["model", "set", "case", "x", "weight", "energy", "status"]
    return pd.concat(parts, ignore_index=True).rename(columns={"multiplicity": "weight"})[columns]


def paper_orderings() -> pd.DataFrame:
    """Return the points of the paper's Fig. 2c (digitised): columns ``model, set, case, x, value``.

    ``model`` is a key of the catalogue, or ``DFT``; ``case`` tells which points of the models and of DFT belong to one ordering (which one
    is not known); ``x`` is the fraction of Ca, ``value`` in eV per formula unit.
    """
    keys = {label: entry.key for label, entry in potentials.papers("2c").items()} | {"DFT": "DFT"}
    digitised = pd.read_csv(registry.data_dir() / "paper" / "fig2c_digitised.csv")
    # All compositions of the figure are sixteenths.
    x = (digitised["x_Ca"] * 16).round().abs() / 16
    case = [f"paper/{number:03d}" for number in digitised.index]
    parts = [
        pd.DataFrame({"model": keys[column.split("_")[1]], "set": "ca-mg-o", "case": case, "x": x, "value": digitised[column]})
        for column in digitised.columns.drop("x_Ca")
    ]
    return pd.concat(parts, ignore_index=True)


def _paper_points() -> pd.DataFrame:
    """Return the paper's orderings as :func:`_points` does; each counts once."""
    return paper_orderings().rename(columns={"value": "energy"}).assign(weight=1.0, status="ok")


def mixing_curve(table: pd.DataFrame, quantity: str | None = None) -> pd.DataFrame:
    """Return how the energies of each composition are distributed.

    The quantity is a property of the table, by default that of :data:`SYSTEMS`. Of the metals, only the frames relaxed in DFT are taken.

    One row per model, set and composition, and as model ``DFT`` where there is a reference: ``x``, ``n`` (orderings),
    ``n_failed``, ``mean`` and ``std`` (of the random alloy: orderings weighted by multiplicity; NaN in ``sic-aln``, whose cells
    do not define one) and ``minimum``, in the units of :data:`SYSTEMS`. Failed orderings are left out of the mean.
    """
    return _curves(_points(table, quantity))


def paper_curves() -> pd.DataFrame:
    """Return the same as :func:`mixing_curve` for DFT and the three models of the paper (Fig. 2c, digitised).

    The paper's orderings were drawn at random and each counts once, so that some compositions hold one or two points.
    """
    return _curves(_paper_points())


def _curves(points: pd.DataFrame) -> pd.DataFrame:
    records = []
    for (model, name, x), group in points.groupby(["model", "set", "x"], sort=True):
        good = group[group["status"] == "ok"]
        record = {"model": model, "set": name, "x": x, "n": len(good), "n_failed": len(group) - len(good)}
        if len(good):
            mean = np.average(good["energy"], weights=good["weight"])
            spread = np.sqrt(np.average((good["energy"] - mean) ** 2, weights=good["weight"]))
            record |= {"mean": mean, "minimum": good["energy"].min(), "std": spread}
        records.append(record)
    return pd.DataFrame(records, columns=["model", "set", "x", "n", "n_failed", "mean", "minimum", "std"])


def regular_solution(x: ArrayLike, h: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """Return the least-squares Ω of h = Ω x(1 − x), the regular solution, in units of h.

    ``x`` is the fraction of the second species, shape (n,), ``h`` the mixing energy per exchangeable site, shape (..., n) (the energies of
    ``ca-mg-o`` and ``sic-aln`` are for two), weighted squared residuals count. ValueError if no composition lies between the end members.
    """
    return _least_squares(x, h, weights, n_terms=1)[..., 0]


def sub_regular(x: ArrayLike, h: ArrayLike, weights: ArrayLike | None = None) -> np.ndarray:
    """Return the least-squares Ω0 and Ω1 of h = x(1 − x)[Ω0 + Ω1(1 − 2x)], the sub-regular solution.

    Its gap is not symmetric about x = 1/2 (Hardy, Acta Metall. 1, 202 (1953)). Arguments are those of :func:`regular_solution`, the result
    has shape (..., 2), and two compositions must lie between the end members.
    """
    return _least_squares(x, h, weights, n_terms=2)


def _least_squares(x: ArrayLike, h: ArrayLike, weights: ArrayLike | None, n_terms: int) -> np.ndarray:
    x, h = np.asarray(x, dtype=float), np.asarray(h, dtype=float)
    inside = len(np.unique(x[(x > 0) & (x < 1)]))
    if inside < n_terms:
        raise ValueError(f"{n_terms} parameter(s) need as many compositions between the end members; there are {inside}")
    root = np.sqrt(np.ones_like(x) if weights is None else np.asarray(weights, dtype=float))
    terms = (x * (1 - x))[:, None] * (1 - 2 * x)[:, None] ** np.arange(n_terms)
    return h * root @ np.linalg.pinv(root[:, None] * terms).T


def consolute_temperature(omega: ArrayLike, asymmetry: ArrayLike = 0.0) -> np.ndarray:
    """Return the temperature above which a (sub-)regular solution is stable at every composition, in K; NaN if there is never a gap.

    It is the maximum of the spinodal kT = −x(1 − x) h″(x) = x(1 − x)[2 Ω0 + 6 Ω1(1 − 2x)]; for Ω1 = 0, Ω/2k. Ω0 (``omega``) and Ω1
    (``asymmetry``), of equal shapes, are in eV per exchangeable site, and the assumptions those of :func:`binodal`.
    """
    omega, asymmetry = np.broadcast_arrays(np.asarray(omega, dtype=float), np.asarray(asymmetry, dtype=float))
    x = np.linspace(0, 1, 1001)
    spinodal = x * (1 - x) * (2 * omega[..., None] + 6 * asymmetry[..., None] * (1 - 2 * x)) / units.kB
    highest = spinodal.max(axis=-1)
    return np.where(highest > 0, highest, np.nan)


def binodal(temperatures_k: ArrayLike, omega: float, asymmetry: float = 0.0) -> pd.DataFrame:
    """Return the miscibility gap of a (sub-)regular solution: the compositions of the two phases that coexist.

    They are the ends of the longest straight piece of the lower convex hull (the common tangent) of

        Δg(x, T) = x(1 − x)[Ω0 + Ω1(1 − 2x)] + kT [x ln x + (1 − x) ln(1 − x)].

    The model assumes that the entropy is the ideal one of sites occupied at random, without short-range order and without vibrations, and
    that the mixing energy at 0 K holds at all temperatures. So it puts the gap too high, commonly by hundreds of kelvin.
    Source: Porter, Easterling and Sherif, Phase Transformations in Metals and Alloys (CRC Press, 3rd ed. 2009), ch. 1.

    Temperatures are in K, Ω0 (``omega``) and Ω1 (``asymmetry``) in eV per exchangeable site. Columns ``temperature_k, x_low, x_high``, to a
    resolution of 5e-4; NaN where the solution is stable at every composition.
    """
    n_grid = 2001
    x = np.linspace(0, 1, n_grid)
    energy = x * (1 - x) * (omega + asymmetry * (1 - 2 * x))
    entropy = -(special.entr(x) + special.entr(1 - x))
    records = []
    for temperature in np.atleast_1d(np.asarray(temperatures_k, dtype=float)):
        hull = ConvexHull(np.column_stack([x, energy + units.kB * temperature * entropy])).vertices
        # Anticlockwise from x = 0 to x = 1 is the lower side.
        hull = np.roll(hull, -int(np.flatnonzero(hull == 0)[0]))
        lower = hull[: int(np.flatnonzero(hull == n_grid - 1)[0]) + 1]
        widest = int(np.diff(lower).argmax())
        low, high = lower[widest], lower[widest + 1]
        gap = (x[low], x[high]) if high - low > 2 else (np.nan, np.nan)
        records.append({"temperature_k": temperature, "x_low": gap[0], "x_high": gap[1]})
    return pd.DataFrame(records)


_PARAMETERS = ("omega", "t_c_k", "omega_0", "omega_1", "t_c_sub_regular_k")


def miscibility(table: pd.DataFrame, n_resamples: int = 2000) -> pd.DataFrame:
    """Return interaction parameters and consolute temperatures of models, of DFT, and of the paper's Fig. 2c.

    Where the orderings are all those of a cell (and for the paper's random ones), Ω is fitted to the mean energy of each composition,
    every composition counting alike. The small cells of ``sic-aln`` define no random alloy: there Ω is fitted
    to all orderings, each counting once, and says which model is too weak, not where the gap lies.

    The intervals (95 %) are quantiles over resampled orderings, drawn with replacement within each composition. Of an enumeration
    nothing was left out, so for those sets they are no error bars: they show how much depends on which orderings a
    sample of this size happens to hold.

    One row per model and set: ``source`` (``ours`` or ``paper``; of ours, DFT is the reference), ``model``, ``set``,
    ``n`` (orderings between the end members), and with ``_low`` and ``_high`` each: ``omega`` (regular), ``omega_0`` and ``omega_1``
    (sub-regular), eV per exchangeable site, ``t_c_k`` = Ω/2k and ``t_c_sub_regular_k``, K, NaN where there is no gap. A
    value for species that order means only that the fitted curve is asymmetric: their ordered phases lie lower.
    """
    sources = [("ours", _points(table, None))]
    if (table["set"] == "ca-mg-o").any():
        sources.append(("paper", _paper_points()))
    records = []
    for source, points in sources:
        good = points[(points["status"] == "ok") & (points["x"] > 0) & (points["x"] < 1)]
        for (model, name), group in good.groupby(["model", "set"], sort=False):
            if group["x"].nunique() < 2:
                continue
            record = {"source": source, "model": model, "set": name, "n": len(group)}
            records.append(record | _thermodynamics(group, SYSTEMS[name], n_resamples))
    parameters = [f"{name}{end}" for name in _PARAMETERS for end in ("", "_low", "_high")]
    return pd.DataFrame(records, columns=["source", "model", "set", "n", *parameters])


def _thermodynamics(points: pd.DataFrame, system: System, n_resamples: int) -> dict[str, float]:
    """Return the parameters of a solution with their intervals."""
    rng = np.random.default_rng(0)
    groups = [group for _, group in points.groupby("x", sort=True)]
    x = np.array([group["x"].iloc[0] for group in groups])
    # First the sample itself, then its resamples.
    means = np.empty((n_resamples + 1, len(groups)))
    for number, group in enumerate(groups):
        energy = group["energy"].to_numpy(dtype=float) / system.sites_per_unit
        weight = group["weight"].to_numpy(dtype=float) if system.enumerated else np.ones(len(group))
        draws = np.vstack([np.arange(len(group)), rng.integers(0, len(group), size=(n_resamples, len(group)))])
        means[:, number] = (weight[draws] * energy[draws]).sum(axis=1) / weight[draws].sum(axis=1)
    # The sum over orderings of squared residuals is that over the means, weighted by number, up to a constant.
    weights = np.ones(len(groups)) if system.enumerated else np.array([len(group) for group in groups])
    omega, both = regular_solution(x, means, weights), sub_regular(x, means, weights)
    found = (omega, consolute_temperature(omega), *both.T, consolute_temperature(*both.T))
    record = {}
    for name, values in zip(_PARAMETERS, found, strict=True):
        low, high = np.quantile(values[1:], [0.025, 0.975])
        record |= {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
    return record


def miscibility_gaps(fits: pd.DataFrame, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the outlines of miscibility gaps of a set for drawing, from the sub-regular solutions of :func:`miscibility`.

    These are lines, two points for each of 60 temperatures, and tops, one consolute point per model, both with columns
    ``model, source, x, temperature_k`` (``source`` is ``DFT`` for DFT). Solutions that order have no gap and are left out.
    """
    lines, tops = [], []
    x = np.linspace(0, 1, 1001)
    for entry in fits[(fits["set"] == name) & fits["t_c_sub_regular_k"].notna()].itertuples():
        tags = {"model": entry.model, "source": "DFT" if entry.model == "DFT" else entry.source}
        gap = binodal(np.linspace(0.02, 0.999, 60) * entry.t_c_sub_regular_k, entry.omega_0, entry.omega_1).dropna()
        outline = pd.concat([gap.rename(columns={"x_low": "x"}), gap[::-1].rename(columns={"x_high": "x"})])
        lines.append(outline[["x", "temperature_k"]].assign(**tags))
        top = x[np.argmax(x * (1 - x) * (2 * entry.omega_0 + 6 * entry.omega_1 * (1 - 2 * x)))]
        tops.append({**tags, "x": top, "temperature_k": entry.t_c_sub_regular_k})
    return pd.concat(lines, ignore_index=True), pd.DataFrame(tops)


def against_paper(table: pd.DataFrame) -> dict[str, float]:
    """Compare one model's formation energies of Ca-Mg-O with the DFT points of the paper's Fig. 2c.

    ``n`` (orderings); ``slope`` through the origin of the model's mean energy at each composition on the mean of the paper's DFT points,
    with ``slope_low`` and ``slope_high`` (95 %, from resampling compositions); ``lowest_ratio``, the model's lowest energy at x = 1/2 over
    that of the paper's DFT. ValueError if the table holds several models or no formation energies.
    """
    curves = mixing_curve(table[table["set"] == "ca-mg-o"])
    _check_one_model(curves, "of ca-mg-o")
    paper = paper_curves()
    dft = paper[paper["model"] == "DFT"]
    both = curves[curves["x"].between(0, 1, inclusive="neither")].merge(dft, on="x", suffixes=("", "_dft"))
    summary = softening.scalar_summary(both["mean"], both["mean_dft"])
    half = both[both["x"] == 0.5].iloc[0]
    found = {"n": int(curves["n"].sum()), "lowest_ratio": float(half["minimum"] / half["minimum_dft"])}
    return found | {name: summary[name] for name in ("slope", "slope_low", "slope_high")}


def _check_one_model(found: pd.DataFrame, what: str) -> None:
    models = sorted(set(found["model"]))
    if len(models) != 1:
        raise ValueError(f"one model with formation energies {what} is needed; the table has {', '.join(models) or 'none'}")


def example_orderings(table: pd.DataFrame, n_ca: int) -> dict[str, Case]:
    """Return the orderings with n_ca of 16 cations, on ideal sites, that have one model's ``lowest`` and ``highest`` formation energy.

    ValueError if the table holds several models, or no formation energy at this composition.
    """
    chosen = table[(table["property"] == "formation_energy") & (table["status"] == "ok") & np.isclose(table["x"], n_ca / 16)]
    _check_one_model(chosen, f"at {n_ca} Ca atoms")
    known = {case.name: case for case in cases(sets=["ca-mg-o"])}
    ends = {"lowest": chosen["value"].idxmin(), "highest": chosen["value"].idxmax()}
    return {name: known[chosen.loc[index, "case"]] for name, index in ends.items()}


# ---- Summary --------------------------------------------------------------------------------------


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers that the chapter quotes, one row per model, set and property other than ``force``.

    Columns ``model, set, property, relaxed_in_dft, n, n_failed``; for sets with a reference those of
    :func:`helpers.softening.scalar_summary`, without the end members, where value and reference are zero by construction (``n`` counts
    the values compared); for ``formation_energy`` those of :func:`miscibility`. What does not exist is NaN.

    Intervals come from resampling compositions, not orderings: the errors at one composition have a common part (the model's
    error in the mean), so that orderings are no independent evidence.
    """
    energies = table[table["property"] != "force"]
    fitted = miscibility(table)
    records = []
    for key, group in energies.groupby(["model", "set", "property", "relaxed_in_dft"], sort=False):
        record = dict(zip(["model", "set", "property", "relaxed_in_dft"], key, strict=True))
        good = group[group["status"] == "ok"]
        record |= {"n": len(good), "n_failed": len(group) - len(good)}
        compared = good[np.isfinite(good["reference"]) & (good["x"] > 0) & (good["x"] < 1)]
        if len(compared) >= 2:
            record |= softening.scalar_summary(compared["value"], compared["reference"], clusters=compared["x"])
        if record["property"] == "formation_energy":
            own = fitted[(fitted["source"] == "ours") & (fitted["model"] == record["model"]) & (fitted["set"] == record["set"])]
            record |= {} if own.empty else own.iloc[0].drop(["source", "n"]).to_dict()
        records.append(record)
    return pd.DataFrame(records)


# ---- As softness ----------------------------------------------------------------------------------


def usable(cases: Sequence[Case]) -> list[Case]:
    """Return the cases that a sample is drawn from: no end members, whose mixing energy is zero by definition."""
    return [case for case in cases if 0 < case.info["x"] < 1]


def _carbide_nitride(table: pd.DataFrame) -> pd.DataFrame:
    found = beside(table[table["set"] == "sic-aln"], "mixing_energy", "mixing_energy_static")
    found = found[found["x"].between(0, 1, inclusive="neither")]
    # Errors at one composition have a common part: compositions are resampled, as in the summary.
    return found.assign(formula=found["material"], material=found["x"].round(6).astype(str))


def _bcc_alloys(table: pd.DataFrame) -> pd.DataFrame:
    chosen = of(("nb-mo", "ta-w"), "mixing_energy_static")(table)
    chosen = chosen[chosen["x"].between(0, 1, inclusive="neither")]
    return chosen.assign(formula=chosen["material"], material=chosen["set"].astype(str) + chosen["x"].round(6).astype(str))


FAMILIES = (
    Family("sic-aln", "mixing: SiC–AlN", "solid_solutions", "energy", _carbide_nitride, "cell and atoms of DFT"),
    Family("bcc-alloys", "mixing: Nb–Mo, Ta–W", "solid_solutions", "energy", _bcc_alloys),
    Family("live-mixing", "mixing: Ca–Mg–O", "solid_solutions", "energy", of(LIVE, "formation_energy"), role="stand-in"),
)
