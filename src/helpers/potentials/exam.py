"""An exam of a calculator, before anything is measured with it: whether energy, forces and stress belong together.

Softness is a ratio of energies, forces or stresses, and a mistake in a calculator is one as well: a stress in GPa has the slope 160. No
reference value is needed to find it. On a small crystal, displaced and strained off its symmetry, forces must be −dE/dr and the stress
V⁻¹ dE/dε (central differences, extrapolated from two lengths), a doubled cell must have twice the energy, and the answer must not depend
on the order of the atoms, on a lattice vector added to one of them, or on what was evaluated before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import ase
import numpy as np
from ase import units
from ase.build import bulk
from ase.data import chemical_symbols, covalent_radii
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from helpers.potentials.ase import MALFORMED
from helpers.potentials.base import GraphPotential, Potential, PotentialError

# Directions along which the energy is differentiated, and the longer of two steps, where neither the fifth derivative nor single
# precision counts: of all atoms together (Å), and of the strain. The other is half of it.
_DIRECTIONS, _STEP, _STRAIN = 6, 0.05, 0.005

# What a difference must exceed: a share of the forces or stresses, for a fault and, of smooth energies, for a note; where these are small,
# eV/Å and eV/Å³; rounding, relative to the energy.
_SHARE, _TIGHT, _FLOOR, _ROUNDING = 0.05, 0.01, {"forces": 1e-3, "stress": 5e-5}, 1e-6

# Slopes between which forces that are not the derivative may be predictions of their own.
_ALIKE = (0.67, 1.5)

# Seconds after which no other crystal is tried.
_PATIENCE = 20.0

_UNITS = {
    "forces": {"Hartree/bohr": units.Hartree / units.Bohr, "kcal/mol/Å": units.kcal / units.mol, "kJ/mol/Å": units.kJ / units.mol},
    "stress": {"GPa": units.GPa, "kbar": units.GPa / 10, "bar": units.bar, "Hartree/bohr³": units.Hartree / units.Bohr**3},
}
_ASE = {"forces": ("the forces are", "−dE/dr", "eV/Å"), "stress": ("the stress is", "V⁻¹ dE/dε", "eV/Å³")}

# Orders of the shear components that others use: where each of them stands in ASE's, which is xx, yy, zz, yz, xz, xy.
_ORDERS = {"xy, yz, xz": (5, 3, 4), "xy, xz, yz": (5, 4, 3), "yz, xy, xz": (3, 5, 4), "xz, yz, xy": (4, 3, 5), "xz, xy, yz": (4, 5, 3)}


def examine(potential: Potential) -> list[str]:
    """Examine a calculator, with fifty evaluations of four to sixteen atoms. A graph network has its forces from its energy.

    Returned is what is no fault, but to be known: no stress, forces that are not quite a derivative, nothing that could be examined.
    PotentialError with a line for each fault.
    """
    if isinstance(potential, GraphPotential):
        return []
    start, reasons = time.monotonic(), []
    for name, crystal in _crystals(potential.elements):
        answer = potential.evaluate([crystal], stress=True)[0]
        if answer.ok and (answer.energy or answer.forces.any()):
            notes, faults = [], []
            for is_fault, line in _remarks(potential, crystal):
                (faults if is_fault else notes).append(line)
            if faults:
                raise PotentialError("\n- ".join([f"{potential.key} contradicts itself on a small crystal of {name}:", *faults]))
            return notes
        reasons.append(answer.error or "energy and forces are zero")
        if time.monotonic() > start + _PATIENCE:
            break
    for reason in reasons:
        if reason.startswith(MALFORMED):
            raise PotentialError(f"{potential.key}: {reason}")
    return [f"Not examined (are the forces −dE/dr?): no small crystal could be evaluated ({reasons[0]})."]


def _crystals(elements: frozenset[int]) -> Iterator[tuple[str, ase.Atoms]]:
    """Yield small crystals off their symmetry: compounds, then each element by itself."""
    alloy = bulk("Cu", cubic=True)
    alloy.symbols[0] = "Al"
    found = [alloy, bulk("MgO", "rocksalt", a=4.25, cubic=True), bulk("NaCl", "rocksalt", a=5.7, cubic=True), bulk("Si", cubic=True)]
    found += [bulk(chemical_symbols[z], "fcc", a=2**1.5 * covalent_radii[z], cubic=True) for z in sorted(elements)]
    rng = np.random.default_rng(0)
    for crystal in found:
        if elements.issuperset(crystal.numbers.tolist()):
            strain = np.array([[0.025, 0.02, -0.01], [0.02, -0.02, 0.03], [-0.01, 0.03, 0.01]])
            yield crystal.get_chemical_formula(), _changed(crystal, rng.uniform(-0.12, 0.12, (len(crystal), 3)), strain)


def _changed(crystal: ase.Atoms, shift: np.ndarray | float = 0.0, strain: np.ndarray | float = 0.0) -> ase.Atoms:
    twin = crystal.copy()
    twin.set_cell(crystal.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    twin.positions += shift
    return twin


def _remarks(potential: Potential, crystal: ase.Atoms) -> Iterator[tuple[bool, str]]:
    """Yield what is to be said, and whether it is a fault. After one from which others would follow there is no more."""
    rng, n, order = np.random.default_rng(1), len(crystal), np.arange(len(crystal))[::-1]
    shifts, strains = rng.normal(size=(_DIRECTIONS, n, 3)), rng.normal(size=(_DIRECTIONS, 3, 3))
    shifts, strains = (d / np.linalg.norm(d, axis=(1, 2), keepdims=True) for d in (shifts, strains + strains.transpose(0, 2, 1)))
    hopped = _changed(crystal, np.eye(n, 1) * (crystal.cell.array[0] - crystal.cell.array[1]))
    cells = [crystal, crystal * (2, 1, 1), crystal[order], hopped]
    cells += [_changed(crystal, shift=step * _STEP * shift) for shift in shifts for step in (1, -1, 0.5, -0.5)]
    cells += [_changed(crystal, strain=step * _STRAIN * strain) for strain in strains for step in (1, -1, 0.5, -0.5)]
    answers = potential.evaluate([*cells, crystal], stress=True)
    if len({answer.energy for answer in answers if answer.ok}) == 1:
        yield True, "the energy is the same for every cell, however atoms move: is an earlier answer given again?"
        return
    if failed := [answer.error for answer in answers if not answer.ok]:
        yield True, f"{len(failed)} of {len(answers)} cells of it fail, the first with: {failed[0]}"
        return
    here, double, permuted, shifted = answers[:4]
    energies = np.array([answer.energy for answer in answers[4:-1]]).reshape(2, _DIRECTIONS, 4)
    size, rounding = float(np.sqrt(np.mean(here.forces**2))), _ROUNDING * abs(here.energy)

    noise = float(np.abs(answers[-1].forces - here.forces).max())
    if noise > _SHARE * size + _FLOOR["forces"]:
        yield noise > 0.3 * size, f"the same cell, evaluated twice with others between, has forces that differ by up to {noise:.2g} eV/Å"
        if noise > 0.3 * size:
            return
    if abs(double.energy - 2 * here.energy) > 0.01 * n + 2 * rounding:
        why = "it is an energy per atom" if abs(double.energy - here.energy) < 0.01 * n else "unconverged, or blind to periodic images?"
        yield True, f"a doubled cell has not twice the energy ({here.energy:.6g} eV, doubled {double.energy:.6g} eV): {why}"
        return
    for what, forces, energy in (
        ("if atoms come in another order", permuted.forces[order], permuted.energy),
        ("if an atom moves by a lattice vector", shifted.forces, shifted.energy),
    ):
        change = float(np.abs(forces - here.forces).max())
        if change > _SHARE * size + _FLOOR["forces"] + 3 * noise or abs(energy - here.energy) > 0.002 * n + rounding:
            yield True, f"the answer changes {what}: the energy by {energy - here.energy:.2g} eV, forces by up to {change:.2g} eV/Å"

    volume = crystal.get_volume()
    step = np.array([[_STEP], [_STRAIN]])
    long, short = (energies[..., 0] - energies[..., 1]) / (2 * step), (energies[..., 2] - energies[..., 3]) / step
    slopes, jumps = (4 * short - long) / 3, np.linalg.norm(short - long, axis=1)
    yield from _compared("forces", here.forces, shifts, -slopes[0], rounding / _STEP, jumps[0])
    if here.stress is None:
        yield False, "The calculator gives no stress: cells cannot be relaxed with it."
    else:
        yield from _compared("stress", here.stress, strains, slopes[1] / volume, rounding / _STRAIN / volume, jumps[1] / volume, volume)


def _compared(
    what: str, given: np.ndarray, directions: np.ndarray, wanted: np.ndarray, rounding: float, jumps: float, volume: float = np.nan
) -> Iterator[tuple[bool, str]]:
    """Yield what is to be said of forces or stress if they are not the derivative of the energy along these directions.

    An energy that jumps where an atom crosses a cutoff spoils single directions, forces from a head of their own are off by some per
    cent in all. Neither is a fault. ``jumps`` is by how much differences over two lengths differ.
    """
    found, size = np.tensordot(directions, given, axes=2), float(np.linalg.norm(wanted))
    allowed = _SHARE * np.sqrt(np.mean(wanted**2)) + _FLOOR[what] + rounding
    it_is, derivative, unit = _ASE[what]

    def factor(tensor: np.ndarray) -> float | None:
        """Return by what the tensor is to be divided to fit, if anything."""
        found, large = np.tensordot(directions, tensor, axes=2), np.abs(wanted) > allowed
        ratio = float(np.median(found[large] / wanted[large])) if large.any() else np.nan
        # Close to one only what is exactly proportional has a factor: a soft head for the forces is no mistake of units.
        widths = {1.0: 1.0, ratio: 0.2 if _ALIKE[0] < ratio < _ALIKE[1] else 1.0}
        return next((c for c, width in widths.items() if c and np.mean(np.abs(found / c - wanted) <= width * allowed) > 0.6), None)

    known = {f"in {name}": 1 / value for name, value in _UNITS[what].items()} | {"multiplied by the volume": volume}

    def words(c: float) -> str:
        kind = [f" ({name}; ASE's unit is {unit})" for name, value in known.items() if abs(abs(c) / value - 1) < _SHARE]
        return f"{c:.4g} times {derivative}{(kind or [''])[0]}" + (" (the sign is wrong)" if c < 0 else "")

    c = factor(given)
    if c == 1:
        s, slack = found @ wanted / max(size**2, 1e-300), _TIGHT * size + (0.1 * _FLOOR[what] + rounding) * _DIRECTIONS**0.5
        off, scatter = float(np.linalg.norm(found - wanted)), np.linalg.norm(found - s * wanted) / (_DIRECTIONS - 1) ** 0.5
        if abs(s - 1) * size > slack + 3 * scatter or off > slack + 3 * jumps:
            yield False, f"T{it_is[1:]} {s:.3g} times {derivative} ({off / size:.1%} off): softness of this size is the calculator's own."
        return
    if c is not None:
        yield True, f"{it_is} {words(c)}"
        return
    for name, places in _ORDERS.items() if what == "stress" else ():
        voigt = full_3x3_to_voigt_6_stress(given)
        own = voigt.copy()
        own[list(places)] = voigt[3:]
        if (c := factor(voigt_6_to_full_3x3_stress(own))) is not None:
            yield True, f"the shear stresses come as {name}; ASE's order is yz, xz, xy" + (f", and all are {words(c)}" if c != 1 else "")
            return
    r, s = (found @ wanted / max(norm, 1e-300) for norm in (np.linalg.norm(found) * size, size**2))
    direct = r > 0.8 and _ALIKE[0] < s < _ALIKE[1]
    why = " (noise, or a model that predicts this beside the energy)" if direct else ""
    yield not direct, f"{it_is} not {derivative}: " + (f"correlation {r:.2f}, slope {s:.3g}{why}" if given.any() else "zero")
