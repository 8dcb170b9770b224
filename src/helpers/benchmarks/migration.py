"""Ion migration barriers (Deng et al., npj Comput. Mater. 11, 9 (2025), Fig. 3).

A migration barrier is how far the energy rises as an ion moves from one site to the next:
E_m = (highest image of the path) − (lower end point). The path is a row of images of the crystal, each with the ion a little
further along. The four reference sets are

``livpo4f``
    One ApproxNEB path of Li in VPO4F: seven images, relaxed with DFT, and their energies (Materials Project). The only set with a DFT
    geometry, so it has static values besides relaxed ones. The file does not name the functional. The workflow's input set
    (atomate2, ``ApproxNEBSetGenerator``) switches +U off, whereas the models learned V with O or F from DFT+U.
``elements``
    Vacancy migration in metals whose ground state is fcc (one hop) or hcp (one in the basal plane, one out of it), PBE: Angsten et
    al., New J. Phys. 16, 015018 (2014). One functional, one group, one kind of hop: the clean control.
``hops``
    Hops of Li, Na, K, Mg, Ca, Sr, Zn and Al in battery materials, barriers from the literature: Devi et al., arXiv 2508.06459. Only
    those from a GGA without +U whose geometry makes sense (:func:`left_out` lists the others): of these all hops of Mg, as in the
    paper, and a sample of the others, in cells of up to 100 atoms. In many of the compounds the models learned the transition
    metal from DFT+U (column ``has_u_metal_with_o_or_f``): another functional.
``fcc-metals``
    Al and Cu in a small supercell, without a DFT value: what the book recomputes while it builds.

**Paths of ions** (``livpo4f``, ``hops``) follow ApproxNEB: Rong et al., J. Chem. Phys. 145, 074112 (2016). The cell is fixed. End points
relax freely. In an image between them the ion stays where it is, and so does the atom furthest from it: with the ion alone held
the whole crystal could slide until the ion is back in its site, and there would be no barrier. All images of all paths relax at once.

The images of ``hops`` lie on the straight line between two sites of the unrelaxed crystal, at 0, ¼, ½, ¾ and 1, whereas the
published barriers belong to paths that were free to bend (NEB). So there are two values. ``barrier``, with the ion held, is too high
where the path bends. ``barrier_bent`` starts from there, and the ion may move sideways but not along the hop; then an image is put
between each two, and relaxed in the same way. It lies below the barrier as far as its images miss the top of the path.

**Vacancy hops in metals** are symmetric: the second half of the path mirrors the first, so the images 0, ¼ and ½ suffice. The model's own
relaxed crystal is used, and its cell is fixed. In an image the ion may move sideways but not along the hop, and the furthest atom does
not move along the hop either: so at ½ the path may bend within the mirror plane, as it does in hcp. The image ¼ is there because ½
need not be the top: in hcp Ti it is a shallow minimum between two saddle points (Shang et al., Phys. Rev. B 83, 224104 (2011)).
Where ¼ is higher the barrier is a lower bound (column ``highest_image``).

The table of hcp metals does not say which column belongs to which hop: :mod:`helpers.sources.angsten`.

The files behind ``hops`` do not say whether a barrier counts from the first or from the lower end point. Here it is the lower one
throughout, and ``end_difference_ev`` tells what that choice is worth. The kinetically resolved barrier, from the mean of the
end points, is E_m − |``end_difference_ev``|/2.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import ase
import ase.build
import numpy as np
import pandas as pd
from ase.geometry import find_mic

from helpers import engine, registry, softening, structures
from helpers.benchmarks import NO_U, Case, Family, Rows, Sample, beside, chosen_sets, of, row, table, without
from helpers.potentials import papers
from helpers.potentials.base import Potential, Prediction
from helpers.sources import angsten, devi

_LIVPO4F = "materialsproject/emmet/test_files/mobility/test_match_npr_doc.json.gz"
# Its other hop is marked as failed.
_LIVPO4F_HOP = "0+1"

# Path coordinate of the images of a symmetric hop; the second half is the mirror image.
_HALF_PATH = (0.0, 0.25, 0.5)

SETS: dict[str, tuple[str, ...]] = {
    "livpo4f": (_LIVPO4F,),
    "elements": tuple(angsten.TABLES.values()),
    "hops": (*devi.PATHS, devi.SHEET),
    "fcc-metals": (),
}
# Of many papers; the Materials Project's labels are with +U where such a metal stands beside O or F.
FUNCTIONALS = {"hops": "GGA without +U"}
LIVE = "fcc-metals"
KEYS = ("image",)
QUICK = {"elements": Sample(3), "hops": Sample(3, 250)}
STAND_IN = Sample(2)
ATOMS_PER_SHARD = 600  # images are relaxed, some of them twice

# Properties of a path: its barrier and its images.
_PROPERTIES = {
    "relaxed": ("barrier", "image_energy_relaxed"),
    "bent": ("barrier_bent", "image_energy_bent"),
    "static": ("barrier_static", "image_energy_static"),
}
_LIVE_METALS = ("Al", "Cu")
_LIVE_SITES = 32

# How far a recomputed value (eV) may lie from the committed one: for statics the rounding of about a hundred energies per atom, for relaxed
# images also which step is the first below the force threshold.
TOLERANCES = {
    "image_energy_static": 2e-3,
    "barrier_static": 2e-3,
    "image_energy_relaxed": 1e-2,
    "barrier": 1e-2,
    "image_energy_bent": 2e-2,
    "barrier_bent": 2e-2,
    "vacancy_energy": 1e-2,
}

# What makes a hop of Devi et al. a case.
_FUNCTIONAL = "GGA"
_MAX_ATOMS = 150

_MAX_HOP_A = 6.0
_MIN_DISTANCE_A = 1.3
_BARRIERS_EV = (0.05, 4.0)


@dataclass(frozen=True)
class Protocol:
    """Settings of the migration benchmark."""

    fmax_ev_per_a: float = 0.05  # largest force at convergence of a relaxation, eV/Å, on coordinates that are free
    max_steps: int = 500  # FIRE steps after which a relaxation counts as failed
    # Sites of the supercells of set ``elements``; see :func:`helpers.structures.supercell`.
    fcc_sites: int = 64
    hcp_sites: int = 64
    # Hops of Mg, and of all other ions, in set ``hops``. More than there are means all.
    n_mg_hops: int = 100
    n_other_hops: int = 12
    # Largest cell in set ``hops``. The cells of more than 100 atoms, dense silicates and phosphates most of them, cost ten times as much as
    # the others.
    max_atoms: int = 100
    seed: int = 0  # Decides which hops are drawn. For one seed a larger number of hops keeps those of a smaller one and adds to them.
    # Whether straight paths are relaxed a second time, with the ion free to move sideways. Without it there are no ``barrier_bent`` rows.
    bend: bool = True


def barrier(energies: Sequence[float] | np.ndarray) -> float:
    """Return the migration barrier of the images of a path, eV: the highest above the lower end point, zero if that is an end point."""
    return float(max(energies) - min(energies[0], energies[-1]))


def furthest_atom(atoms: ase.Atoms, ion: int) -> int:
    """Return the index of the atom furthest from another one, which ApproxNEB holds together with the ion."""
    return int(np.argmax(atoms.get_distances(ion, range(len(atoms)), mic=True)))


def moving_ion(images: Sequence[ase.Atoms]) -> int:
    """Return the index of the atom that moves furthest from the first image to the last."""
    return int(np.argmax(np.linalg.norm(structures.displacements(images[0], images[-1]), axis=1)))


def way(images: Sequence[ase.Atoms], ion: int) -> np.ndarray:
    """Return how far an ion has come at each image, along the path, shape (n_images,), Å; between images it goes the shortest way."""
    steps = [np.linalg.norm(structures.displacements(before, after)[ion]) for before, after in pairwise(images)]
    return np.concatenate([[0.0], np.cumsum(steps)])


# ---- Reference cases ------------------------------------------------------------------------------


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return the reference cases; the protocol decides on the supercells, and on which hops are drawn.

    Structures ``image-0``, ``image-1``, … in the order of the path, all with the same order of atoms; for the vacancy hops these are
    the first half of the path, on the lattice that the relaxation of ``host`` starts from. Reference ``barrier`` (eV), in
    ``livpo4f`` also ``energies`` (eV above the first image, one per image), and in ``elements`` ``vacancy_energy`` (eV, once
    per element). What was left out, and why, is listed by :func:`left_out`.
    """
    makers = {"livpo4f": lambda _: [_livpo4f()], "elements": _elements, "hops": _hops, "fcc-metals": _fcc_metals}
    return [case for name in chosen_sets(SETS, sets) for case in makers[name](protocol or Protocol())]


def _fcc_metals(_: Protocol) -> list[Case]:
    return [_metal_case("fcc-metals", "own", ase.build.bulk(metal), "fcc", "fcc", _LIVE_SITES, {}) for metal in _LIVE_METALS]


def left_out() -> pd.DataFrame:
    """Return the barriers of the sources that no protocol makes a case, with the reason: columns ``set, material, case, reason``."""
    rows = [("livpo4f", "LiVPO4F", "2+1", "the calculation is marked as failed")]
    rows += [
        ("elements", vacancy.element, hop, "no barrier in the table")
        for vacancy in _vacancies()
        for hop, energy in vacancy.barriers.items()
        if energy is None
    ]
    rows += [("hops", hop.formula, hop.name, reason) for hop in devi.hops() if (reason := _unusable(hop))]
    return pd.DataFrame(rows, columns=["set", "material", "case", "reason"])


def _info(images: Sequence[ase.Atoms], **known: object) -> dict[str, Any]:
    """Return the columns of a case; every set has the same ones."""
    ion = moving_ion(images)
    info = {
        "mobile_ion": images[0].symbols[ion],
        "formula": images[0].get_chemical_formula(empirical=True),
        "n_atoms": len(images[0]),
        "hop": "",
        "hop_length_a": float(way(images, ion)[-1]),
        "family": "",
        "source": "",
        "functional": "PBE",
        "has_u_metal_with_o_or_f": structures.has_u_metal_with_o_or_f(images[0].get_chemical_symbols()),
        "authors_mace": np.nan,
    }
    return {**info, **known}


def _roles(images: Sequence[ase.Atoms]) -> dict[str, ase.Atoms]:
    return {f"image-{number}": image for number, image in enumerate(images)}


def _images(case: Case) -> list[ase.Atoms]:
    roles = [f"image-{number}" for number in range(len(case.structures) - ("host" in case.structures))]
    if len(roles) < 2 or not set(roles) <= set(case.structures):
        raise ValueError(f"case {case.name!r} has {', '.join(case.structures) or 'no structures'}; a path needs image-0, image-1, …")
    return [case.structures[role] for role in roles]


def _livpo4f() -> Case:
    with gzip.open(registry.fetch(_LIVPO4F)) as handle:
        hop = json.load(handle)["hops"][_LIVPO4F_HOP]
    images = [structures.from_dict(image) for image in hop["images"]]
    energies = np.array(hop["energies"]) - hop["energies"][0]
    reference = {"energies": energies, "barrier": barrier(energies)}
    info = _info(images, source="Materials Project", family="tavorite")
    return Case("emmet/LiVPO4F", "livpo4f", "LiVPO4F", _roles(images), reference, info)


def _vacancies() -> list[angsten.Vacancy]:
    return [vacancy for vacancy in angsten.vacancies() if vacancy.ground_state]


def _elements(protocol: Protocol) -> list[Case]:
    found = []
    sites = {"fcc": protocol.fcc_sites, "hcp": protocol.hcp_sites}
    for metal in _vacancies():
        # Once per element: the vacancy is the same for every hop.
        energy = {"vacancy_energy": metal.energy}
        for hop, known in metal.barriers.items():
            if known is not None:
                reference = {"barrier": known, **energy}
                found.append(_metal_case("elements", "angsten2014", metal.host, metal.structure, hop, sites[metal.structure], reference))
                energy = {}
    return found


def vacancy_hop(host: ase.Atoms, structure: str, hop: str, n_sites: int) -> list[ase.Atoms]:
    """Return the first half of the path of an atom that hops into a vacancy next to it, none of it relaxed: images at 0, ¼ and ½.

    ``host`` is a primitive cell, with lattice vectors as :func:`ase.build.bulk` orients them; ``hop`` says which of the nearest neighbours
    hops: ``fcc`` in an fcc metal, ``in-plane`` or ``out-of-plane`` in an hcp metal. For ``n_sites`` of the supercell see
    :func:`helpers.structures.supercell`.
    """
    vector = host.positions[1] - host.positions[0] if hop == "out-of-plane" else host.cell.array[0]
    # The vacant site is that of the unit cell's last atom: in hcp the neighbours of the other one lie the other way.
    vacant = host.positions[-1]
    start = structures.supercell(host, structure, n_sites)
    del start[_atom_at(start, vacant)]
    ion = _atom_at(start, vacant - vector)
    images = [start.copy() for _ in _HALF_PATH]
    for image, fraction in zip(images, _HALF_PATH, strict=True):
        image.positions[ion] += fraction * vector
    return images


def _metal_case(name: str, source: str, host: ase.Atoms, structure: str, hop: str, n_sites: int, reference: Mapping[str, object]) -> Case:
    images = vacancy_hop(host, structure, hop, n_sites)
    info = _info(images, hop=hop, family=structure, source=source)
    info["hop_length_a"] *= 2
    return Case(f"{source}/{host.symbols[0]}/{hop}", name, host.symbols[0], {"host": host, **_roles(images)}, dict(reference), info)


def _atom_at(crystal: ase.Atoms, position: np.ndarray) -> int:
    return int(np.argmin(np.linalg.norm(find_mic(crystal.positions - position, crystal.cell, pbc=True)[0], axis=1)))


def _hops(protocol: Protocol) -> list[Case]:
    """Return a sample of the hops; the order in which they are drawn does not depend on how many are drawn."""
    hops = sorted((hop for hop in devi.hops() if not _unusable(hop)), key=lambda hop: hop.name)
    order = np.random.default_rng(protocol.seed).permutation(len(hops))
    drawn = [hops[number] for number in order if len(hops[number].images[0]) <= protocol.max_atoms]
    magnesium = [hop for hop in drawn if hop.ion == "Mg"][: protocol.n_mg_hops]
    others = [hop for hop in drawn if hop.ion != "Mg"][: protocol.n_other_hops]
    return [_devi_case(hop) for hop in (*magnesium, *others)]


def _devi_case(hop: devi.Hop) -> Case:
    known = {"family": hop.family.lower(), "functional": hop.functional, "authors_mace": hop.authors_mace}
    info = _info(hop.images, source="arXiv 2508.06459", **known)
    return Case(f"devi2025/{hop.name}", "hops", hop.formula, _roles(hop.images), {"barrier": hop.barrier}, info)


def _unusable(hop: devi.Hop) -> str:
    """Return why a hop of Devi et al. is no case, or ''."""
    images = hop.images
    low, high = _BARRIERS_EV
    length = way(images, 0)[-1]
    nearest = float(images[2].get_distances(0, range(1, len(images[2])), mic=True).min())
    if hop.functional != _FUNCTIONAL:
        return f"functional {hop.functional}"
    if len(images[0]) > _MAX_ATOMS:
        return f"{len(images[0])} atoms, more than {_MAX_ATOMS}"
    if length >= _MAX_HOP_A:
        return f"a hop of {length:.2f} Å, not below {_MAX_HOP_A:g} Å"
    if nearest <= _MIN_DISTANCE_A:
        return f"half-way the ion is {nearest:.2f} Å from an atom, not more than {_MIN_DISTANCE_A:g} Å"
    if not low <= hop.barrier <= high:
        return f"a barrier of {hop.barrier:g} eV, outside {low:g} to {high:g} eV"
    return ""


# ---- Predictions ----------------------------------------------------------------------------------


@dataclass
class _Plan:
    """What one case needs relaxed, or why it cannot be."""

    ion: int
    half: bool
    hop_length: float = np.nan
    images: list[ase.Atoms] = field(default_factory=list)
    held: list[np.ndarray | None] = field(default_factory=list)
    error: str | None = None


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol, progress: bool = False) -> pd.DataFrame:
    """Predict migration barriers.

    Perfect metals are relaxed together. Then the images of all paths are relaxed together, each distinct one once, and
    the DFT images are evaluated as they are. Cases of your own have ``image-0``, ``image-1``, … in the order of the path and with the same
    order of atoms. With a ``host`` they are the first half of a symmetric vacancy hop, from the end point to half-way.

    All values in eV. Properties, relaxed unless they say otherwise:

    ``barrier``
        One row per case, with ``highest_image`` (path coordinate of the highest image, 0 to 1), ``end_difference_ev`` (last end
        point − first) and ``ion_shift_a`` (how far the ion moved from its place on the path in any image, end points included, Å).
        A path that the ion has left by more than half of the hop counts as failed.
    ``image_energy_relaxed``
        One row per image, above the first image, with ``image`` (its number) and ``path_coordinate`` (0 to 1, at the ion's initial
        positions). The reference is NaN where there is none.
    ``barrier_bent``, ``image_energy_bent``
        The same with the ion free to move sideways, and twice as many images, for straight paths.
    ``barrier_static``, ``image_energy_static``
        The same at the DFT geometry, where there is one.
    ``vacancy_energy``
        Formation energy of the vacancy, once per metal of set ``elements``.
    """
    hosts = relaxed_hosts(potential, cases, protocol, progress)
    plans = [planned(case, hosts) for case in cases]
    pool: dict[bytes, tuple[ase.Atoms, np.ndarray | None]] = {}
    for plan in plans:
        pool |= {_key(image, held): (image, held) for image, held in zip(plan.images, plan.held, strict=True)}
    outcomes = dict(zip(pool, _relax(potential, pool.values(), protocol, progress), strict=True))
    paths = [[outcomes[_key(image, held)] for image, held in zip(plan.images, plan.held, strict=True)] for plan in plans]
    with_dft = [number for number, case in enumerate(cases) if "energies" in case.reference]
    straight = [number for number, plan in enumerate(plans) if not plan.half and plan.error is None and number not in with_dft]
    bent = _bent(potential, plans, paths, straight, protocol, progress) if protocol.bend else {}
    evaluated = iter(potential.evaluate([image for number in with_dft for image in _images(cases[number])], progress=progress))
    static = {number: [next(evaluated) for _ in _images(cases[number])] for number in with_dft}

    rows: Rows = []
    for number, (case, plan) in enumerate(zip(cases, plans, strict=True)):
        rows += _path_rows(potential.key, case, plan, paths[number], "relaxed")
        if number in bent:
            rows += _path_rows(potential.key, case, plan, bent[number], "bent")
        if number in static:
            rows += _path_rows(potential.key, case, plan, static[number], "static")
        if "vacancy_energy" in case.reference:
            rows.append(_vacancy_row(potential.key, case, plan, paths[number], hosts))
    return table(rows)


def _relax(
    potential: Potential, images: Collection[tuple[ase.Atoms, np.ndarray | None]], protocol: Protocol, progress: bool
) -> list[engine.Relaxed]:
    """Relax images, each with the coordinates that are held in it."""
    moving, held = ([pair[part] for pair in images] for part in (0, 1))
    return engine.relax(potential, moving, held=held, fmax=protocol.fmax_ev_per_a, max_steps=protocol.max_steps, progress=progress)


def _key(image: ase.Atoms, held: np.ndarray | None) -> bytes:
    return structures.content(image) + (b"" if held is None else held.tobytes())


def relaxed_hosts(potential: Potential, cases: Sequence[Case], protocol: Protocol, progress: bool) -> dict[bytes, engine.Relaxed]:
    """Return the relaxed hosts of cases, each relaxed once, by the content of the structure."""
    hosts = [case.structures["host"] for case in cases if "host" in case.structures]
    settings: dict[str, Any] = {"fmax": protocol.fmax_ev_per_a, "max_steps": protocol.max_steps, "progress": progress}
    return engine.relax_distinct(potential, hosts, cell="full", **settings)


def planned(case: Case, hosts: Mapping[bytes, engine.Relaxed]) -> _Plan:
    """Return the images of a case as their relaxation starts, and the coordinates that are held."""
    images = _images(case)
    try:
        engine.check_path(images)
    except ValueError as error:
        return _Plan(-1, "host" in case.structures, error=str(error))
    plan = _Plan(moving_ion(images), "host" in case.structures)
    if plan.half:
        guess = case.structures["host"]
        host = hosts[structures.content(guess)]
        try:
            if host.error is not None:
                raise ValueError(f"bulk: {host.error}")
            structures.symmetrised(host.atoms, guess)
        except ValueError as error:
            plan.error = str(error)
            return plan
        images = [structures.on_lattice(image, guess, host.atoms) for image in images]
    plan.hop_length = way(images, plan.ion)[-1] * (2 if plan.half else 1)
    if plan.half:
        step = structures.displacements(images[0], images[1])[plan.ion]
        images[1:] = [_turned(image, step) for image in images[1:]]
    for number, image in enumerate(images):
        free = number == 0 or (number == len(images) - 1 and not plan.half)
        plan.images.append(image)
        plan.held.append(None if free else _held(image, plan.ion, along_x=plan.half))
    return plan


def _turned(image: ase.Atoms, step: np.ndarray) -> ase.Atoms:
    """Turn an image so that a step along the hop is along x, and a single coordinate can be held."""
    turned = image.copy()
    turned.rotate(step, "x", rotate_cell=True)
    return turned


def turned_back(image: ase.Atoms, cell: ase.cell.Cell) -> ase.Atoms:
    """Turn an image until its cell is the one given."""
    back = image.copy()
    back.set_cell(cell, scale_atoms=True)
    return back


def _bent(
    potential: Potential,
    plans: Sequence[_Plan],
    paths: Sequence[Sequence[engine.Relaxed]],
    straight: Sequence[int],
    protocol: Protocol,
    progress: bool,
) -> dict[int, list[engine.Relaxed]]:
    """Return, by number, the straight paths with the ion free to move sideways and an image more between each two."""
    bent = {number: list(paths[number]) for number in straight}
    inner = [(number, position) for number in _unbroken(bent) for position in range(1, len(bent[number]) - 1)]
    starts = [(plans[number], bent[number][position].atoms) for number, position in inner]
    for (number, position), result in zip(inner, _relax_sideways(potential, starts, protocol, progress), strict=True):
        bent[number][position] = result
    # Where a path bends its top is often between two images: from an octahedral to a tetrahedral site, for example.
    unbroken = _unbroken(bent)
    starts = [(plans[number], _midpoint(a.atoms, b.atoms)) for number in unbroken for a, b in pairwise(bent[number])]
    between = iter(_relax_sideways(potential, starts, protocol, progress))
    for number in unbroken:
        ends = bent[number]
        bent[number] = [ends[0], *[result for end in ends[1:] for result in (next(between), end)]]
    return bent


def _unbroken(paths: Mapping[int, Sequence[engine.Relaxed]]) -> list[int]:
    return [number for number, path in paths.items() if all(result.error is None for result in path)]


def _relax_sideways(
    potential: Potential, starts: Sequence[tuple[_Plan, ase.Atoms]], protocol: Protocol, progress: bool
) -> list[engine.Relaxed]:
    """Relax images with the ion, and the atom furthest from it, held along the hop only."""
    turned = [(plan, _turned(image, structures.displacements(plan.images[0], plan.images[1])[plan.ion])) for plan, image in starts]
    results = _relax(potential, [(image, _held(image, plan.ion, along_x=True)) for plan, image in turned], protocol, progress)
    # The forces stay turned: nothing uses them.
    return [replace(r, atoms=turned_back(r.atoms, plan.images[0].cell)) for r, (plan, _) in zip(results, starts, strict=True)]


def _midpoint(before: ase.Atoms, after: ase.Atoms) -> ase.Atoms:
    middle = before.copy()
    middle.positions += structures.displacements(before, after) / 2
    return middle


def _held(image: ase.Atoms, ion: int, along_x: bool) -> np.ndarray:
    """Return the coordinates held in an image between the end points, shape (n_atoms, 3)."""
    held = np.zeros((len(image), 3), dtype=bool)
    held[[ion, furthest_atom(image, ion)], : 1 if along_x else 3] = True
    return held


def _path_coordinates(case: Case, plan: _Plan, n_images: int) -> np.ndarray:
    """Return the ion's way to each image over that of the whole path, shape (n_images,); more images than given stand between these."""
    ways = way(_images(case), plan.ion)
    given = ways / ways[-1] * (0.5 if plan.half else 1.0)
    return np.interp(np.linspace(0, len(given) - 1, n_images), np.arange(len(given)), given)


def _path_rows(model: str, case: Case, plan: _Plan, path: Sequence[Prediction | engine.Relaxed], kind: str) -> Rows:
    """Return the rows of one path: its barrier and its images."""
    n_given = len(_images(case))
    n_images = len(path) or n_given
    coordinates = np.full(n_images, np.nan) if plan.ion < 0 else _path_coordinates(case, plan, n_images)
    errors = [plan.error] * n_images if plan.error else [result.error for result in path]
    energies = np.array([np.nan] * n_images if plan.error else [result.energy if result.error is None else np.nan for result in path])
    reason = plan.error or next((f"image {number}: {error}" for number, error in enumerate(errors) if error), None)
    nowhere = dict.fromkeys(("image", "path_coordinate", "highest_image", "end_difference_ev", "ion_shift_a"), np.nan)

    found, value = {}, np.nan
    if reason is None:
        value = barrier([*energies, energies[0]] if plan.half else energies)
        found["highest_image"] = float(coordinates[np.argmax(energies)])
        found["end_difference_ev"] = 0.0 if plan.half else float(energies[-1] - energies[0])
        # Of the images that were given: between those of a bent path stand others.
        relaxed = [result.atoms for result in path[:: (n_images - 1) // (n_given - 1)] if isinstance(result, engine.Relaxed)]
        if relaxed:
            moved = [structures.displacements(*pair)[plan.ion] for pair in zip(plan.images, relaxed, strict=True)]
            found["ion_shift_a"] = float(np.linalg.norm(moved, axis=1).max())
            if found["ion_shift_a"] > plan.hop_length / 2:
                reason = f"the ion left its place on the path by {found['ion_shift_a']:.2f} Å, more than half of the hop"
                value = np.nan
    barrier_name, image_name = _PROPERTIES[kind]
    rows = [row(model, case, barrier_name, value, float(case.reference.get("barrier", np.nan)), "eV", error=reason, **nowhere | found)]
    dft = case.reference.get("energies", np.full(n_images, np.nan))
    for number in range(n_images):
        place = nowhere | {"image": float(number), "path_coordinate": float(coordinates[number])}
        # Energies count from the first image, so its failure is the failure of all.
        error = errors[number] or (errors[0] and f"image 0: {errors[0]}")
        rows.append(row(model, case, image_name, energies[number] - energies[0], float(dft[number]), "eV", error=error, **place))
    return rows


def _vacancy_row(
    model: str, case: Case, plan: _Plan, outcome: Sequence[engine.Relaxed], hosts: Mapping[bytes, engine.Relaxed]
) -> dict[str, Any]:
    host = hosts[structures.content(case.structures["host"])]
    error = plan.error or (f"image 0: {outcome[0].error}" if outcome[0].error else None)
    value = np.nan if error else outcome[0].energy - len(plan.images[0]) / len(host.atoms) * host.energy
    return row(model, case, "vacancy_energy", value, float(case.reference["vacancy_energy"]), "eV", error=error)


def path_frames(potential: Potential, case: Case, protocol: Protocol) -> list[ase.Atoms]:
    """Return the relaxed images of one path, all of it, to be looked at.

    In the order of the path, in one cell, with the same order of atoms. ``info`` holds ``energy_ev`` (above the first image),
    ``path_coordinate`` (0 to 1) and ``moving_ion``, the ion's index. A straight path is shown bent, if the protocol bends it. ValueError if
    an image, or the perfect crystal, cannot be relaxed.
    """
    plan = planned(case, relaxed_hosts(potential, [case], protocol, progress=False))
    if plan.error is not None:
        raise ValueError(f"{case.name}: {plan.error}")
    starts, held = list(plan.images), list(plan.held)
    coordinates = _path_coordinates(case, plan, len(starts))
    if plan.half:
        for number in range(len(plan.images) - 2, -1, -1):
            starts.append(_mirrored(plan.images[number], plan))
            held.append(_held(starts[-1], plan.ion, along_x=True) if number else None)
        coordinates = np.concatenate([coordinates, 1 - coordinates[-2::-1]])
    results = _relax(potential, list(zip(starts, held, strict=True)), protocol, progress=False)
    if protocol.bend and not plan.half and "energies" not in case.reference:
        results = _bent(potential, [plan], [results], [0], protocol, progress=False)[0]
        coordinates = _path_coordinates(case, plan, len(results))
    frames = []
    for number, (result, coordinate) in enumerate(zip(results, coordinates, strict=True)):
        if result.error is not None:
            raise ValueError(f"{case.name}, image {number}: {result.error}")
        frame = turned_back(result.atoms, plan.images[0].cell)
        energy = result.energy - results[0].energy
        frame.info = {"energy_ev": energy, "path_coordinate": float(coordinate), "moving_ion": plan.ion}
        frames.append(frame)
    return frames


def published_path() -> pd.DataFrame:
    """Return the paper's path of Mg in V2O3(SO4)2, its DFT and its models (Fig. 3a, digitised), in the columns of :func:`run`."""
    wide = pd.read_csv(registry.data_dir() / "paper" / "fig3a_digitised.csv")
    models = {label: entry.key for label, entry in papers("3a").items()}
    rows = wide.melt(["image", "DFT"], list(models), "model", "value").rename(columns={"DFT": "reference"}).astype({"image": float})
    about = {"set": "paper", "material": "Mg in V2O3(SO4)2", "case": "paper/V2O3(SO4)2", "property": "image_energy_relaxed"}
    about |= {"unit": "eV", "status": "ok", "reason": ""}
    return rows.assign(model=rows["model"].map(models), path_coordinate=rows["image"] / rows["image"].max(), **about)


def _mirrored(image: ase.Atoms, plan: _Plan) -> ase.Atoms:
    """Return the image on the other side of half-way, before it relaxes."""
    mirrored = image.copy()
    # In fractions of the cell, because some images are turned.
    scaled, half_way = (atoms.get_scaled_positions(wrap=False) for atoms in (image, plan.images[-1]))
    scaled[plan.ion] = 2 * half_way[plan.ion] - scaled[plan.ion]
    mirrored.set_scaled_positions(scaled)
    return mirrored


# ---- One label ------------------------------------------------------------------------------------


def from_one_image(table: pd.DataFrame) -> pd.DataFrame:
    """Correct a path with the DFT energy of one of its images, for every choice of that image.

    The factor is c = ΔE_DFT / ΔE_model of the labelled image, with ΔE above the first image (there are no DFT forces to take it from).

    Columns of :func:`helpers.softening.one_label_corrections` (``label`` is the number of the image, errors are those of all
    other images but the first) and ``property`` (static or relaxed), ``barrier_before``, ``barrier_after`` and ``barrier_reference``
    (eV). An image that the model puts on the other side of the first one gives no factor.
    """
    parts = []
    for image_name, barrier_name in (("image_energy_relaxed", "barrier"), ("image_energy_static", "barrier_static")):
        # The first image is zero for model and DFT alike.
        images = table[(table["property"] == image_name) & table["reference"].notna() & (table["image"] > 0)]
        if images.empty:
            continue
        factors = softening.one_label_corrections(images.assign(case=images["image"].astype(int)), quantity=image_name)
        barriers = table[(table["property"] == barrier_name) & (table["status"] == "ok")]
        barriers = barriers[["model", "set", "material", "value", "reference"]]
        barriers = barriers.rename(columns={"value": "barrier_before", "reference": "barrier_reference"})
        part = factors.merge(barriers, on=["model", "set", "material"], how="left")
        parts.append(part.assign(property=image_name, barrier_after=part["c"] * part["barrier_before"]))
    return pd.concat(parts, ignore_index=True)


def from_vacancy_energy(table: pd.DataFrame) -> pd.DataFrame:
    """Correct the barriers of each metal with the formation energy of its vacancy.

    The factor is c = E_f(DFT) / E_f(model). One row per model and hop: ``model, material, hop, c, value, corrected, reference`` (eV) and
    ``status, reason`` (a model's formation energy that is not positive gives no factor). Hops of a metal without a formation energy are
    left out.
    """
    good = table[(table["status"] == "ok") & (table["set"] == "elements")]
    labels = good.loc[good["property"] == "vacancy_energy", ["model", "material", "value", "reference"]]
    usable = labels["value"] > 0
    labels = labels.assign(c=(labels["reference"] / labels["value"]).where(usable))[["model", "material", "c"]]
    barriers = good.loc[good["property"] == "barrier", ["model", "material", "hop", "value", "reference"]]
    merged = barriers.merge(labels, on=["model", "material"])
    found = merged["c"].notna()
    return merged.assign(
        corrected=merged["c"] * merged["value"],
        status=np.where(found, "ok", "failed"),
        reason=np.where(found, "", "the model's formation energy is not positive"),
    )


def from_one_element(table: pd.DataFrame) -> pd.DataFrame:
    """Correct the barriers of all metals with those of one, the ``label``, as :func:`helpers.softening.one_label_corrections`."""
    barriers = table[(table["property"] == "barrier") & (table["set"] == "elements")]
    return softening.one_label_corrections(barriers.assign(case=barriers["material"], material="metals"), quantity="barrier")


# ---- Summary --------------------------------------------------------------------------------------


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers that the chapter quotes, one row per model (those of :func:`authors` included), set and property.

    These are :func:`helpers.softening.scalar_summaries` (eV, intervals from resampling materials). Two parts of ``hops`` stand by
    themselves as well: ``hops-Mg``, as the paper's test has Mg only, and ``hops-without-U``, the compounds that the models did not learn
    from DFT+U. Values without a reference, and first images, which are zero by definition, are left out.
    """
    hops = table[table["set"] == "hops"]
    magnesium = hops[hops["mobile_ion"] == "Mg"].assign(set="hops-Mg")
    without_u = hops[~hops["has_u_metal_with_o_or_f"].astype(bool)].assign(set="hops-without-U")
    chosen = pd.concat([table, magnesium, without_u])
    return softening.scalar_summaries(chosen[chosen["reference"].notna() & ~(chosen["image"] == 0)])


def authors(table: pd.DataFrame) -> pd.DataFrame:
    """Return the barriers that Devi et al. computed with MACE for the hops of a table, as rows of a model of their own.

    They are those of column ``MACE-RELAX`` of the source's sheet. Of several models in the table the first decides which hops there are.
    """
    hops = table[(table["set"] == "hops") & (table["property"] == "barrier") & table["authors_mace"].notna()]
    hops = hops[hops["model"] == hops["model"].iloc[0]] if len(hops) else hops
    unknown = dict.fromkeys(("highest_image", "end_difference_ev", "ion_shift_a"), np.nan)
    return hops.assign(model="MACE (Devi et al.)", value=hops["authors_mace"], status="ok", reason="", **unknown)


# ---- As softness ----------------------------------------------------------------------------------


def _hops_without_u(table: pd.DataFrame) -> pd.DataFrame:
    return without(of("hops", "barrier_bent")(table), "has_u_metal_with_o_or_f")


def _path(table: pd.DataFrame) -> pd.DataFrame:
    chosen = table[(table["set"] == "livpo4f") & (table["image"] != 0)]
    return beside(chosen, "image_energy_relaxed", "image_energy_static", ["image"])


FAMILIES = (
    Family("barriers-metals", "barriers: metals", "migration", "barrier", of("elements", "barrier")),
    Family("barriers-ions", "barriers: ions", "migration", "barrier", _hops_without_u, selection=NO_U),
    Family("path-livpo4f", "barrier: path in LiVPO₄F", "migration", "barrier", _path, "images of DFT"),
    Family("live-barriers", "barriers: Al, Cu", "migration", "barrier", of(LIVE, "barrier"), role="stand-in"),
)
