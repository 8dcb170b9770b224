"""Molecular dynamics of elements, against the frames of DFT's own.

A surface that is softer by one factor, cE, has at the temperature T the configurations that E has at T/c: a uniformly soft potential runs
hot. What is measured of a trajectory are the mean square displacement from the lattice sites, ⟨u²⟩, the radial distribution function,
the temperature that positions and forces tell, and the density of vibrational states.

Sets
----
``silicon``
    64 atoms at 300, 843 and 1518 K, PBE (Zuo et al., J. Phys. Chem. A 124, 731 (2020)).
``metals``
    Mo and Li, from the same source; of lithium's three volumes the middle one. The frames were not drawn from the surface that labels them,
    so that a trajectory has the temperature that their forces tell, not the nominal one. Of crystalline Cu and Ni there are three frames
    each, too few for a comparison.
``melts``
    Those, Cu and Ni where atoms have left their sites: only radial distribution functions are compared, at the nominal temperature.
``again``
    The crystals of ``silicon`` and ``metals`` with other seeds.
``ladder``
    Silicon at temperatures between, without DFT: at which of them does a potential have DFT's displacements?
``aluminium``
    A short run without DFT: what the book recomputes.

A trajectory is NVT (Langevin) first, for all averages, then NVE with velocities drawn anew, for the density of states and the drift.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import ase
import numpy as np
import pandas as pd
from ase import units
from ase.build import bulk
from scipy import stats
from tqdm.auto import tqdm
from vesin import NeighborList

from helpers import engine
from helpers.benchmarks import Case, Family, Sample, chosen_sets, phonons, row, table
from helpers.benchmarks.off_equilibrium import displacements, single_element_keys
from helpers.engine import Snapshot
from helpers.potentials.base import Potential
from helpers.sources import Frame, snap

_ELEMENTS = {"silicon": ("Si",), "metals": ("Mo", "Li"), "melts": ("Si", "Mo", "Li", "Cu", "Ni"), "again": ("Si", "Mo", "Li")}

SETS: dict[str, tuple[str, ...]] = {
    **{name: tuple(key for element in elements for key in single_element_keys(element)) for name, elements in _ELEMENTS.items()},
    "ladder": single_element_keys("Si"),
    "aluminium": (),
}
LIVE = "aluminium"
KEYS = ("distance_a", "frequency_thz")
QUICK: dict[str, Sample] = {}  # on no card: a run takes minutes
FAMILIES: tuple[Family, ...] = ()  # what the displacements ask for is no slope
# Unit, digits in the table, and largest accepted difference from the committed value.
_PROPERTIES = {
    "u2": ("Å²", 6, 1e-4),
    "u2_harmonic": ("Å²", 6, 1e-3),
    "temperature": ("K", 2, 5.0),
    "kinetic_temperature": ("K", 2, 1.0),
    "energy_per_atom": ("eV/atom", 6, 1e-4),
    "drift": ("meV/atom/ps", 4, 0.5),
    "rdf": ("", 3, 0.1),
    "dos": ("1/THz", 4, 0.02),
}
TOLERANCES = {name: tolerance for name, (_, _, tolerance) in _PROPERTIES.items()}
ATOMS_PER_SHARD = 1  # a trajectory each


@dataclass(frozen=True)
class Protocol:
    """Settings."""

    time_step_fs: float = 2.0
    steps: int = 2250  # NVT; of which ``equilibration``, a share, counts for nothing
    equilibration: float = 1 / 9
    nve_steps: int = 750
    friction_per_ps: float = 10.0  # below critical damping of all but the softest modes, which then forget fastest
    every: int = 10  # steps between two looks
    seeds: tuple[int, ...] = (0, 1, 2)  # of the trajectories of a crystal; all but the first are set ``again``
    ladder_k: tuple[float, ...] = (100.0, 150.0, 200.0, 450.0, 600.0, 1150.0)
    blocks: int = 8  # of a trajectory, for standard errors
    rdf_to_a: float = 6.0
    rdf_step_a: float = 0.05
    dos_to_thz: float = 20.0
    dos_step_thz: float = 0.5
    dos_width_thz: float = 0.5  # standard deviation of the Gaussian that broadens, measured and harmonic alike
    displacement_a: float = 0.01  # of the harmonic crystal, as for phonons; atoms move ten times as far, where a surface may be another
    live_steps: int = 150  # NVT and
    live_nve_steps: int = 60  # NVE of ``aluminium``


def cases(protocol: Protocol | None = None, sets: Iterable[str] | None = None) -> list[Case]:
    """Return one case per trajectory.

    Structure ``start``. Reference, but for aluminium: ``rdf`` and, of crystals, ``u2`` (Å²) and ``temperature`` (K), each mean over the
    frames with a standard error (``u2_error``, …) that counts frames as independent. Info ``temperature_k``, ``nominal_k``, ``seed``,
    ``n_frames``.
    """
    protocol = protocol or Protocol()
    wanted = chosen_sets(SETS, sets)
    found = [case for name in wanted for element in _ELEMENTS.get(name, ()) for case in _published(name, element, protocol)]
    if "ladder" in wanted:
        first = next(_published("silicon", "Si", protocol))
        for kelvin in protocol.ladder_k:
            info = first.info | {"temperature_k": kelvin, "nominal_k": kelvin, "n_frames": 0}
            found.append(replace(first, name=f"ladder/Si-{kelvin:.0f}K/{info['seed']}", set="ladder", reference={}, info=info))
    if LIVE in wanted:
        info = {"temperature_k": 300.0, "nominal_k": 300.0, "seed": 0, "n_frames": 0}
        found.append(Case("aluminium/300K/0", LIVE, "Al", {"start": bulk("Al", cubic=True, a=4.05).repeat(2)}, {}, info))
    return found


def _published(name: str, element: str, protocol: Protocol) -> Iterator[Case]:
    frames = [one for one in snap.frames(single_element_keys(element), "AIMD-NVT") if np.isfinite(one.info["temperature_k"])]
    volumes = np.array([round(frame.atoms.get_volume() / len(frame.atoms), 1) for frame in frames])
    groups: dict[float, list[Frame]] = {}
    for frame, volume in zip(frames, volumes, strict=True):
        if volume == np.median(np.unique(volumes)):
            groups.setdefault(frame.info["temperature_k"], []).append(frame)
    for nominal, members in sorted(groups.items()):
        first, temperature = members[0].atoms, nominal
        reference: dict[str, object] = {"rdf": np.mean([_rdf(frame.atoms, protocol) for frame in members], axis=0)}
        try:
            away = [displacements(frame.atoms) for frame in members]
        except ValueError:
            away = []
        if bool(away) == (name == "melts"):
            continue
        if away:
            looks = pd.DataFrame([_of_sites(moved, frame.forces) for moved, frame in zip(away, members, strict=True)])
            reference |= {**looks.mean(), **looks.sem().add_suffix("_error")}
            temperature = nominal if element == "Si" else round(looks["temperature"].mean())
            unit = bulk(element, cubic=True)
            sites = unit.repeat(round((len(first) / len(unit)) ** (1 / 3))).get_scaled_positions()
            first = ase.Atoms(first.numbers, scaled_positions=sites, cell=first.cell, pbc=True)
        for seed in protocol.seeds[1:] if name == "again" else protocol.seeds[:1]:
            info = {"temperature_k": float(temperature), "nominal_k": nominal, "seed": seed, "n_frames": len(members)}
            yield Case(f"{name}/{element}-{temperature:.0f}K/{seed}", name, element, {"start": first}, reference, info)


def _of_sites(moved: np.ndarray, forces: np.ndarray) -> dict[str, float]:
    """Return u² and −Σu·F/3(N−1)k, whose mean over a canonical sample is the temperature (Tolman, Phys. Rev. 11, 261 (1918))."""
    return {"u2": np.square(moved).sum() / len(moved), "temperature": -np.sum(moved * forces) / (3 * (len(moved) - 1) * units.kB)}


def _rdf(atoms: ase.Atoms, protocol: Protocol) -> np.ndarray:
    """Return the radial distribution function, 1 for an ideal gas, in bins of the protocol."""
    edges = _grid(protocol.rdf_to_a, protocol.rdf_step_a)
    (apart,) = NeighborList(cutoff=protocol.rdf_to_a, full_list=True).compute(atoms.positions, atoms.cell.array, True, "d")
    found, _ = np.histogram(apart, edges)
    return found / (len(atoms) ** 2 / atoms.get_volume() * 4 / 3 * np.pi * np.diff(edges**3))


def curvatures(potential: Potential, crystal: ase.Atoms, displacement_a: float) -> np.ndarray:
    """Return the eigenvalues, ascending, of the force constants of a periodic cell, eV/Å², shape (3 n_atoms,): three are translations.

    Raises
    ------
    ValueError
        If the potential cannot evaluate it, or the crystal is no minimum.
    """
    # The whole cell counts as primitive: its force constants are complete, and symmetry still leaves few displacements.
    lattice = phonons.dynamics(phonons.to_phonopy(crystal), np.eye(3), np.eye(3))
    lattice.generate_displacements(distance=displacement_a)
    moves = [(first["number"], first["displacement"]) for first in lattice.dataset["first_atoms"]]
    rest, *moved = potential.smooth().evaluate([crystal, *phonons.displaced(phonons.to_ase(lattice.supercell), moves)])
    if error := next((one.error for one in (rest, *moved) if one.error), None):
        raise ValueError(error)
    phonons.add_forces(lattice, moves, np.array([one.forces - rest.forces for one in moved]))
    found = np.linalg.eigvalsh(lattice.force_constants.transpose(0, 2, 1, 3).reshape(3 * len(crystal), -1))
    order = np.argsort(np.abs(found))
    if (found[order[3:]] < 1e-6).any():
        raise ValueError(f"no harmonic crystal: {int((found[order[3:]] < 1e-6).sum())} modes without a positive curvature")
    return np.sort(found)


def harmonic_u2(found: np.ndarray, temperature_k: float) -> float:
    """Return the classical ⟨u²⟩ of an atom, kT/N times the sum of the inverse curvatures (Å²): the masses do not matter."""
    return float(units.kB * temperature_k * (1 / found[3:]).sum() / (len(found) / 3))


def _grid(end: float, step: float) -> np.ndarray:
    return np.linspace(0, end, round(end / step) + 1)


def _harmonic_dos(found: np.ndarray, mass: float, protocol: Protocol) -> np.ndarray:
    omega = np.sqrt(found[3:] / mass) / (2 * np.pi) * 1000 * units.fs  # THz
    # Broadened at negative frequencies, too, as the transform of a correlation is.
    nu = _grid(protocol.dos_to_thz, protocol.dos_step_thz)[:, None]
    return sum(stats.norm.pdf(nu, sign * omega, protocol.dos_width_thz) for sign in (1, -1)).mean(axis=1)


def density_of_states(correlation: np.ndarray, interval_ps: float, protocol: Protocol) -> np.ndarray:
    """Return the density of states, of integral one, at the protocol's frequencies, from an autocorrelation of velocities.

    Its cosine transform (Dickey & Paskin, Phys. Rev. 188, 1407 (1969)) under a Gaussian window, which broadens by ``dos_width_thz``.
    """
    times = interval_ps * np.arange(len(correlation))
    weighted = correlation / correlation[0] * np.exp(-2 * (np.pi * protocol.dos_width_thz * times) ** 2)
    weighted[0] /= 2
    return 4 * interval_ps * np.cos(2 * np.pi * np.outer(_grid(protocol.dos_to_thz, protocol.dos_step_thz), times)) @ weighted


@dataclass
class _Seen:
    """What is kept of a trajectory as it passes: some numbers for each look."""

    series: dict[str, list[float]] = field(default_factory=dict)
    rdf: list[np.ndarray] = field(default_factory=list)
    correlation: np.ndarray = field(default_factory=lambda: np.zeros(0))
    reasons: dict[str, str] = field(default_factory=dict)  # why a property cannot be told


def run(potential: Potential, cases: Sequence[Case], protocol: Protocol | None = None, progress: bool = False) -> pd.DataFrame:
    """Run the trajectories, one by one, so that none depends on the others.

    Returns
    -------
    pandas.DataFrame
        One row per case each of ``u2``, ``u2_harmonic`` (Å², of the same cell), ``temperature`` (−⟨Σu·F⟩/3(N−1)k), ``kinetic_temperature``
        (K), ``energy_per_atom`` and ``drift`` (of the NVE energy); of ``rdf`` per ``distance_a``, and of ``dos`` per ``frequency_thz``,
        with the ``harmonic`` one. ``standard_error`` is from block averages, ``reference_error`` from DFT's frames. What an explosion
        or an atom that left its site takes away is a failed row with the step and the reason.
    """
    chosen = tqdm(cases, disable=not progress, unit="run")
    return table(line for case in chosen for line in _rows(potential, case, protocol or Protocol()))


def _rows(potential: Potential, case: Case, protocol: Protocol) -> Iterator[dict]:
    start, crystal = case.structures["start"], case.set != "melts"
    if case.set == LIVE:
        protocol = replace(protocol, steps=protocol.live_steps, nve_steps=protocol.live_nve_steps)
    curved, (first,) = None, potential.evaluate([start])
    names = [name for name in _PROPERTIES if crystal or name not in ("u2", "u2_harmonic", "temperature")]
    seen = _Seen(reasons=dict.fromkeys(names, first.error)) if first.error else _trajectory(potential, case, protocol)
    if crystal and not first.error:
        try:
            curved = curvatures(potential, start, protocol.displacement_a)
            seen.series["u2_harmonic"] = [harmonic_u2(curved, case.info["temperature_k"])]
        except ValueError as error:
            seen.reasons["u2_harmonic"] = str(error)
    for name in names:
        record = partial(_record, potential.key, case, name)
        if name in seen.reasons:
            yield record(np.nan, error=seen.reasons[name])
        elif name == "rdf":
            found = np.mean(seen.rdf, axis=0)
            reference = case.reference.get("rdf", np.full(len(found), np.nan))
            middles = protocol.rdf_step_a * (np.arange(len(found)) + 0.5)
            yield from (record(g, float(known), distance_a=round(r, 4)) for r, g, known in zip(middles, found, reference, strict=True))
        elif name == "dos":
            at = _grid(protocol.dos_to_thz, protocol.dos_step_thz)
            lone = np.full(len(at), np.nan) if curved is None else _harmonic_dos(curved, start.get_masses()[0], protocol)
            found = density_of_states(seen.correlation, protocol.time_step_fs * protocol.every / 1000, protocol)
            yield from (record(d, frequency_thz=float(nu), harmonic=round(h, 4)) for nu, d, h in zip(at, found, lone, strict=True))
        else:
            values = np.array(seen.series[name])
            means = [part.mean() for part in np.array_split(values, protocol.blocks)] if len(values) >= protocol.blocks else [np.nan]
            yield record(values.mean(), case.reference.get(name, np.nan), standard_error=float(stats.sem(means)))


def _record(model, case, name, value, reference=np.nan, *, error=None, **extra) -> dict:
    columns = dict.fromkeys(("standard_error", "distance_a", "frequency_thz", "harmonic"), np.nan) | extra
    columns["reference_error"] = case.reference.get(f"{name}_error", np.nan)
    unit, digits, _ = _PROPERTIES[name]
    return row(model, case, name, round(float(value), digits), reference, unit, error=error, **columns)


def _trajectory(potential: Potential, case: Case, protocol: Protocol) -> _Seen:
    start, seed, temperature = case.structures["start"], case.info["seed"], case.info["temperature_k"]
    move = partial(engine.move, potential, temperatures_k=temperature, time_step_fs=protocol.time_step_fs, every=protocol.every)
    seen = _Seen()
    nvt = move(start, steps=protocol.steps, friction_per_ps=protocol.friction_per_ps, seed=2 * seed)
    last = _averages(seen, nvt, start, case.set != "melts", protocol)
    if last is not None:
        _vibrations(seen, move(last, steps=protocol.nve_steps, friction_per_ps=None, seed=2 * seed + 1), len(start), protocol)
    return seen


def _averages(seen: _Seen, shots: Iterable[Snapshot], start: ase.Atoms, crystal: bool, protocol: Protocol) -> ase.Atoms | None:
    """Take the averages of a canonical trajectory; return where it ends, None if it exploded."""
    now = start.copy()
    for shot in shots:
        if shot.ended:
            seen.reasons = dict.fromkeys((name for name in _PROPERTIES if name != "u2_harmonic"), shot.ended[0])
            return None
        if shot.step <= protocol.equilibration * protocol.steps:
            continue
        now.positions = shot.positions[0]
        values = {"kinetic_temperature": shot.temperatures[0], "energy_per_atom": shot.energies[0] / len(now)}
        if crystal and "u2" not in seen.reasons:
            try:
                values |= _of_sites(displacements(now), shot.forces[0])
            except ValueError as error:
                seen.reasons |= dict.fromkeys(("u2", "temperature"), f"{error} by step {shot.step}")
        for name, value in values.items():
            seen.series.setdefault(name, []).append(value)
        seen.rdf.append(_rdf(now, protocol))
    return now


def _vibrations(seen: _Seen, shots: Iterable[Snapshot], n_atoms: int, protocol: Protocol) -> None:
    """Take correlation of velocities and drift of the energy of a trajectory after Newton."""
    interval = protocol.time_step_fs * protocol.every / 1000
    # Beyond three standard deviations of the window nothing counts.
    lags = 1 + min(round(3 / (2 * np.pi * protocol.dos_width_thz) / interval), protocol.nve_steps // protocol.every)
    past: deque[np.ndarray] = deque(maxlen=lags)
    sums, counts, energies = np.zeros(lags), np.zeros(lags), []
    for shot in shots:
        if shot.ended:
            seen.reasons |= dict.fromkeys(("drift", "dos"), f"NVE: {shot.ended[0]}")
            return
        past.appendleft(shot.velocities[0])
        sums[: len(past)] += [np.sum(old * past[0]) for old in past]
        counts[: len(past)] += 1
        energies.append(shot.energies[0] + 1.5 * (n_atoms - 1) * units.kB * shot.temperatures[0])
    seen.correlation = sums / counts
    seen.series["drift"] = [1000 * np.polyfit(interval * np.arange(len(energies)), energies, 1)[0] / n_atoms]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per model, element and temperature, over the seeds.

    ``nominal_k``, ``n_runs``, ``n_frames``; ``u2``, ``u2_dft`` and ``u2_harmonic`` (Å²), with the standard errors ``u2_error`` and
    ``u2_dft_error``; ``u2_ratio`` (u2 over that of DFT; ``_low``, ``_high``: 95 %, Student's t of the frames, the smaller sample);
    ``temperature`` (K; ``temperature_dft``) and the largest ``drift`` (meV/atom/ps). The error of u2 is the larger one of two: from the
    blocks of all trajectories, and from the scatter of the seeds.
    """
    by = ["model", "material", "temperature_k"]
    ok = table[table["status"] == "ok"]
    found = table.groupby(by, observed=True).agg(nominal_k=("nominal_k", "first"), n_runs=("seed", "nunique"), n_frames=("n_frames", "max"))
    of = {name: ok[ok["property"] == name].groupby(by, observed=True) for name in ("u2", "u2_harmonic", "temperature", "drift")}
    u2 = of["u2"]
    found[["u2", "u2_dft", "u2_dft_error"]] = u2[["value", "reference", "reference_error"]].mean()
    blocks = u2["standard_error"].agg(lambda each: np.sqrt(each.pow(2).sum()) / len(each))
    found["u2_error"] = np.fmax(blocks, u2["value"].std() / np.sqrt(u2.size()))
    found["u2_harmonic"] = of["u2_harmonic"]["value"].mean()
    found["u2_ratio"] = found["u2"] / found["u2_dft"]
    relative = np.hypot(found["u2_error"] / found["u2"], found["u2_dft_error"] / found["u2_dft"])
    half = stats.t.ppf(0.975, found["n_frames"] - 1) * relative * found["u2_ratio"]
    found["u2_ratio_low"], found["u2_ratio_high"] = found["u2_ratio"] - half, found["u2_ratio"] + half
    found[["temperature", "temperature_dft"]] = of["temperature"][["value", "reference"]].mean()
    found["drift"] = of["drift"]["value"].agg(lambda each: each.abs().max())
    return found.reset_index()


def matching_temperatures(summary: pd.DataFrame) -> pd.DataFrame:
    """Return at which temperature a potential moves its atoms as far as DFT does, one row per model, element and temperature of DFT.

    ``match_k`` (K) by interpolation of ln ⟨u²⟩ in ln T between the potential's trajectories (:func:`summarise`), and ``share``, which is
    ``match_k`` over DFT's temperature: the factor that displacements ask for (``_low``, ``_high``: 95 %, errors of both, Student's t of
    the frames). NaN where DFT's displacement lies outside the range of the trajectories.
    """
    rows = []
    for (model, element), part in summary[summary["u2"].notna()].groupby(["model", "material"], observed=True):
        part = part.sort_values("temperature_k")
        moved, kelvin = np.log(part["u2"].to_numpy()), np.log(part["temperature_k"].to_numpy())
        for case in part[part["u2_dft"].notna()].itertuples():
            half = (case.u2_ratio_high - case.u2_ratio) / case.u2_ratio
            ends = np.log(case.u2_dft) + np.array([0, -half, half])
            match, low, high = np.exp(np.interp(ends, moved, kelvin, left=np.nan, right=np.nan)) if len(part) > 1 else [np.nan] * 3
            found = {"share": match / case.temperature_k, "share_low": low / case.temperature_k, "share_high": high / case.temperature_k}
            rows.append({"model": model, "material": element, "temperature_k": case.temperature_k, "match_k": match, **found})
    return pd.DataFrame(rows)
