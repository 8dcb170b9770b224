"""Check a potential on one crystal before any DFT: its expected scale, property by property, from slopes against stiffer potentials.

::

    from helpers.reports import check
    found = check.check("my.cif", "chgnet-0.3.0", "my-check")
    found.recommendation, found.reasons

Probes are made from the crystal and evaluated with the potential and with stiff ones, by the benchmarks themselves, since each answer has
to be the observable that its family was calibrated with (:mod:`helpers.calibration`): forces on frames that all share, and numbers at
each potential's own relaxed cell. Frames, tables and ``report.json`` lie in the folder; the same call takes up what is done.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pandas as pd
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from pymatgen.core import Composition, Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
from tqdm.auto import tqdm

from helpers import calibration, engine, explanations, figures, potentials, registry, results, runner, structures
from helpers.benchmarks import Case, elasticity, module, off_equilibrium, phonons
from helpers.potentials import Potential, fixes
from helpers.potentials.neighbours import check_structure
from helpers.reports import check_page
from helpers.reports.check_page import Check
from helpers.runner.worker import potential_here

STIFF = (*calibration.STIFF, "m3gnet-matpes-pbe-2025.1")
"""The calibration's; the last one steps in where one of these has no table of a family, or an environment of its own."""
AT_ONCE = 2  # stiff potentials that are asked about a property
STAND_IN = "chgnet-0.3.0"  # whose tables calibrate the slopes of a potential that has none

# Per property: its benchmark, its families with the columns of their tables, what is too small if it is soft, and what follows.
PROPERTIES: dict[str, tuple[str, dict[str, str], str, str]] = {
    "md": ("off_equilibrium", {"forces-tp": "force"}, "forces away from equilibrium", "atoms move too far"),
    "phonons": ("phonons", {"phonons-pbe": "omega_max"}, "frequencies", "too much entropy and heat capacity"),
    "elasticity": ("elasticity", {"bulk-modulus": "bulk_modulus", "shear-modulus": "shear_modulus"}, "the modulus", "it yields too easily"),
    "surfaces": ("surfaces", {"surfaces-built": "gamma_relaxed"}, "surface energies", "surfaces form too easily"),
    "vacancy": ("defects", {"defects": "relaxed"}, "energies of vacancies", "there are too many"),
}
NAMES = {"forces-tp": "forces, hot crystal", "phonons-pbe": "highest frequency", "surfaces-built": "surface energy"}
LABELS = {"md": "hot", "phonons": "displaced", "elasticity": "strained", "surfaces": "slab", "vacancy": "vacancy"}  # kinds of frames
DEFAULT = ("md", "phonons", "elasticity")

CLOSE = 0.1  # a scale that is so near to one needs no correction
FAR = 5.0  # on Pettifor's scale
WORTH = 0.9  # of the error on tested materials: what is recommended leaves less
MINUTES, EVALUATIONS = 3.0, 4000  # that probes are planned for, on two cores; atoms that a potential evaluates in one for a property
RATTLES_A = (0.03, 0.1, 0.2)  # standard deviations of displacements, for two frames each
TEMPERATURES_K, SNAPSHOTS, LONGEST_FS, LEAST_FS = (300.0, 1000.0), 3, 150, 60  # of the hot frames
LEAST_ATOMS, LEAST_GAP_A = 16, 6.0  # of a cell that is rattled; empty space that makes a layer or a molecule
SUPERCELLS_A = (10.0, 8.0, 6.0, 4.0, 0.0)  # least heights of supercells for phonons: the first that can be afforded
RECORD, FRAMES = "report.json", "frames.extxyz"

RULES = (
    f"Use it: everything that was asked is known and lies within {CLOSE:.0%} of one.",
    "Multiply by: one factor on the energy lies in all intervals, not all of which hold 1, and leaves the least error on tested "
    "materials, less than before in every property; something near was tested.",
    "Use another: a stiff potential leaves the least error there, less than before in every property.",
    f"Label these frames: most of what was asked is not known, or nothing leaves less than {WORTH:.0%} of the error.",
)


def read(path: Path | str) -> ase.Atoms:
    """Read a crystal from a file that pymatgen or ASE reads, of several the last.

    ValueError if nobody can read it, sites are shared or partly empty, there is no cell, or atoms overlap.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen's remarks about rounding
        try:
            given: Any = Structure.from_file(path)
        except Exception as first:  # noqa: BLE001  (readers fail in every way)
            try:
                given = ase.io.read(path)
            except Exception as second:  # noqa: BLE001
                why = " ".join(f"pymatgen: {first}; ASE: {str(second) or type(second).__name__}".split())
                raise ValueError(f"{path} cannot be read as a structure ({why[:200]})") from None
    occupied = getattr(given, "info", {}).get("occupancy", {}).values()
    if not getattr(given, "is_ordered", True) or any(len(site) > 1 or min(site.values()) < 1 for site in occupied):
        raise ValueError(f"{path} is disordered: sites are shared or partly empty; give an ordered model of it")
    (atoms,) = map(structures.enter, structures.many(given))
    if atoms.cell.rank < 3:
        raise ValueError(f"{path} has no cell; give a crystal, or a molecule in a box with vacuum around it")
    atoms.pbc = True
    first, second, apart = neighbor_list("ijd", atoms, 2.5)
    close = apart / (covalent_radii[atoms.numbers[first]] + covalent_radii[atoms.numbers[second]])
    if len(close) and close.min() < 0.5:
        names = [f"{atoms.symbols[k[close.argmin()]]} (atom {k[close.argmin()]})" for k in (first, second)]
        raise ValueError(f"{path}: {' and '.join(names)} are {apart[close.argmin()]:.2f} Å apart, they overlap; correct the structure")
    return atoms


def primitive(atoms: ase.Atoms) -> ase.Atoms:
    """Return the primitive cell of a crystal, which costs least; the crystal itself if its symmetry is not found."""
    with suppress(Exception), warnings.catch_warnings():  # spglib and pymatgen fail in several ways
        warnings.simplefilter("ignore")
        found = SpacegroupAnalyzer(AseAtomsAdaptor.get_structure(atoms), symprec=0.01).get_primitive_standard_structure()
        if len(atoms) % len(found) == 0:
            return structures.plain(found)
    return ase.Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)


def gap(atoms: ase.Atoms) -> float:
    """Return the widest empty slice across a lattice vector, Å."""
    places = np.sort(atoms.get_scaled_positions(), axis=0)
    return float((np.diff(places, axis=0, append=places[:1] + 1).max(axis=0) / atoms.cell.reciprocal().lengths()).max())


def uncalibrated(atoms: ase.Atoms, key: str = "") -> str:
    """Return why no tested material is like this one, for a property or for any; empty if there is no such reason."""
    symbols = set(atoms.get_chemical_symbols())
    if structures.has_u_metal_with_o_or_f(symbols):
        return "the Materials Project computes such compounds with +U, another DFT than that of the tests"
    if magnetic := ", ".join(sorted(symbols & structures.OPEN_SHELL)):
        return f"open d or f shell ({magnetic}): magnetic order is no input, and few such crystals were tested"
    layer = key in ("elasticity", "surfaces", "vacancy") and gap(atoms) > LEAST_GAP_A
    return f"{gap(atoms):.0f} Å of empty space: a layer or molecule was never tested" if layer else ""


def frames(potential: Potential, crystal: ase.Atoms, affordable: float) -> list[ase.Atoms]:
    """Return rattled and hot frames of a crystal at the potential's own cell, with their ``kind`` in the info.

    Hot ones come from molecular dynamics that evaluates no more than the ``affordable`` number of atoms.
    """
    (rest,) = engine.relax(potential, [crystal], cell="fixed" if gap(crystal) > LEAST_GAP_A else "full", max_steps=200)
    cell = ase.Atoms(crystal.symbols, rest.atoms.positions, cell=rest.atoms.cell, pbc=True)
    while len(cell) < LEAST_ATOMS:
        cell = cell.repeat(np.where(np.arange(3) == cell.cell.reciprocal().lengths().argmax(), 2, 1))
    rng, moved = np.random.default_rng(0), []
    for size in np.repeat(RATTLES_A, 2):
        moved.append((f"rattled {size:g} Å", cell.positions + rng.normal(scale=size, size=cell.positions.shape)))
    every = int(min(LONGEST_FS, affordable / (len(cell) * len(TEMPERATURES_K))) // SNAPSHOTS)
    if every * SNAPSHOTS >= LEAST_FS:
        hot = engine.move(potential, [cell] * 2, TEMPERATURES_K, steps=every * SNAPSHOTS, every=every, friction_per_ps=10.0)
        for shot in list(hot)[1:]:
            moved += [(f"{TEMPERATURES_K[number]:.0f} K", positions) for number, positions in shot.positions.items()]
    return [ase.Atoms(cell.symbols, positions, cell=cell.cell, pbc=True, info={"kind": kind}) for kind, positions in moved]


def probes(crystal: ase.Atoms, key: str, shaken: Sequence[ase.Atoms], affordable: float) -> tuple[list[Case], object]:
    """Return the cases of a property, and the benchmark's protocol; ValueError, which says why, if there are none."""
    sort, name, cost = module(PROPERTIES[key][0]), crystal.get_chemical_formula(), 0.0
    protocol, per_length = sort.Protocol(), crystal.cell.reciprocal().lengths()

    def case(number: object, roles: dict[str, ase.Atoms], **info: object) -> Case:
        return Case(f"{name}/{number}", sort.LIVE, name, roles, info=info)

    if key == "md":
        cases = [case(k, {"frame": one}, **off_equilibrium.INFO | {"group": one.info["kind"]}) for k, one in enumerate(shaken)]
    elif key == "phonons":
        moves = phonons.own(crystal, 1, name=sort.LIVE).info["n_displacements"]
        for length in SUPERCELLS_A:
            repeats = np.maximum(1, np.ceil(length * per_length)).astype(int)
            cost = 0.5 * moves * len(crystal) * repeats.prod()  # large batches take half the time
            if cost <= affordable:
                break
        cases = [phonons.own(crystal, repeats if cost <= affordable else 1, name=sort.LIVE)]
    elif key == "elasticity":
        protocol = elasticity.Protocol(ranges={"": elasticity.RANGES[""]})
        cases, cost = [case("moduli", {"crystal": crystal})], len(crystal) * (200 + 6 * len(crystal))
    elif key == "surfaces":
        cases = [case(miller, {"bulk": crystal}, miller=miller) for miller in ("1 0 0", "1 1 0", "1 1 1")]
    else:
        cell, counts = crystal * np.ceil(protocol.min_length_a * per_length).astype(int), Composition(name).reduced_composition
        combination = " + ".join(f"{count:.0f} vac_{element}" for element, count in counts.items())
        vacant = {f"vac_{one}": cell[np.arange(len(cell)) != list(cell.symbols).index(one.symbol)] for one in counts}
        cases = [case("vacancies", {"host": crystal, **vacant}, combination=combination, lattice="model")]
    if reason := uncalibrated(crystal, key):
        raise ValueError(reason)
    if cost > affordable:
        minutes = math.ceil(cost / EVALUATIONS)
        raise ValueError(f"about {cost:,.0f} evaluations of an atom by each potential are needed: --budget {minutes} affords them")
    return cases, protocol


def _probe(benchmark: str, key: str, where: tuple, cases: list[Case], protocol: object, deadline: float | None, out: Path) -> Any:
    """Compute the probes of one property with one potential, here or in another process, or find them done; None if there is no time."""
    limits = runner.Limits(deadline, keep_going=True)
    made = runner.run_cases(benchmark, potential_here(key, *where, False), cases, protocol, limits=limits, base=out, progress=False)
    return None if made.missing else made.table


def _values(tables: dict[str, pd.DataFrame], column: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the values of the potentials that have any, one column each, on what these share; and why the others have none."""
    found, failed = {}, {}
    for key, table in tables.items():
        part = table[table["property"].astype(str) == column]
        # Surfaces and defects call a row failed that has no DFT value.
        good = part[np.isfinite(part["value"]) & ((part["status"] == "ok") | part["reason"].astype(str).str.startswith("no DFT"))]
        places = ["case", *(("group", "atom", "component") if column == "force" else ())]
        if len(good):
            found[key] = good.astype(dict.fromkeys(places, str)).set_index(places)["value"].astype(float)
        else:
            failed[key] = next(filter(None, (part if len(part) else table)["reason"].astype(str)), "no value")
    return pd.concat(found, axis=1, join="inner") if found else pd.DataFrame(), failed


def error_left(rows: pd.DataFrame, source: str, scale: pd.Series | None = None) -> dict[str, float]:
    """Return the mean absolute error that each stiff potential, and values over their material's ``scale``, leave; of the source: 1."""
    by = {model: part.set_index(["material", *explanations.places(part)]) for model, part in rows.groupby("model")}
    values = {model: part["value"] for model, part in by.items()}
    if scale is not None:
        values["factor"] = values[source] / values[source].index.get_level_values("material").map(scale)
    both = pd.concat(values | {"reference": by[source]["reference"]}, axis=1, join="inner").dropna()
    error = both.drop(columns="reference").sub(both["reference"], axis="index").abs().mean()
    return (error / error[source]).drop(source).to_dict()


def _advisers(family: str, source: str, stiff: Sequence[str]) -> dict[str, float]:
    """Return the error that each stiff potential with a table of a family leaves on tested materials, if the source's is 1."""
    kind = calibration.FAMILIES[family]
    rows = explanations.rows(kind, results.read(kind.benchmark, [source, *stiff])) if stiff else pd.DataFrame({"model": []})
    pairs = {one: rows[rows["model"].isin([source, one])] for one in stiff if one in set(rows["model"])}
    return {one: error_left(pair, source)[one] for one, pair in pairs.items()}


def one_factor(known: Sequence[dict[str, Any]]) -> tuple[float, str]:
    """Return the factor on the energy that fits all answers, or NaN and why there is none."""
    # On the energy, of which a frequency is the square root.
    middle, low, high = (np.array([line[end] ** (1 / line["power"]) for line in known]) for end in ("scale", "low", "high"))
    if low.max() > high.min():
        return np.nan, "No factor lies in all intervals: softness differs between the properties."
    if low.max() <= 1 <= high.min():
        return np.nan, "All intervals hold 1: no factor is called for."
    return 1 / float(np.clip(np.exp(np.log(middle).mean()), low.max(), high.min())), ""


def vacancies_name(crystal: ase.Atoms) -> str:
    """Return the name of the one number that vacancies have: the energy to take a formula unit out, atom by atom."""
    counts = Composition(crystal.get_chemical_formula()).reduced_composition.items()
    shown = " + ".join(f"{count:.0f} {element}" if count > 1 else f"{element}" for element, count in counts)
    return f"vacancies, {shown} together" if len(counts) > 1 else f"vacancy of {shown}"


def expect(key: str, family: str, model: str, crystal: ase.Atoms, tables: dict, why: str, stiff: Sequence[str]) -> dict[str, Any]:
    """Return what is known of one family. ``why`` says why there are no probes."""
    benchmark, columns, what, then = PROPERTIES[key]
    kind, own = calibration.FAMILIES[family], model in results.models(benchmark)
    source = model if own else STAND_IN
    shares = _advisers(family, source, [one for one in stiff if one in results.models(benchmark)])
    stiff = [one for one in stiff if shares.get(one, 0.0) < 1]
    tables = {one: table for one, table in tables.items() if one == model or one in stiff}
    values, failed = _values(tables, columns[family])
    used = [one for one in stiff if one in values] if model in values else []
    # Where none was asked: those that could be.
    could = [one for one in STIFF if one != source and potentials.installed(one) and one in results.models(benchmark)][:AT_ONCE]
    rows = explanations.rows(kind, results.read(benchmark, [source, *(used or could)]))
    scales = calibration.materials(rows, source, used or could)
    known = calibration.calibrate({family: scales}, family, slopes=bool(used))
    found: dict[str, Any] = {
        "property": key,
        "family": family,
        "name": vacancies_name(crystal) if family == "defects" else NAMES.get(family, kind.name),
        "power": kind.power,
        "calibrated_with": source,
    }
    found |= {"slope": 1.0, "spread": 0.0, "n": 0, "each": {}, "kinds": {}, "dft": "", "left": {}}
    found["dropped"] = {one: share for one, share in shares.items() if one not in stiff}
    if used:
        if "group" in values.index.names:
            codes, names = pd.factorize(values.index.get_level_values("group"))
            slopes, _ = calibration.against(values[model].to_numpy(), values[used].to_numpy(), codes)
            found["kinds"] = dict(zip(names, slopes.tolist(), strict=True))
            # The family holds molecular dynamics: rattled frames answer only where there is none.
            hot = values.index.get_level_values("group").str.endswith(" K")
            values = values[hot] if hot.any() else values
        y, k = values[model].to_numpy(), values[used].to_numpy()
        (found["slope"],), (found["spread"],) = calibration.against(y, k)
        found |= {"n": len(values), "each": {one: float(values[one] @ y / (values[one] @ values[one])) for one in used}}
    answer = calibration.predict(known, found["slope"], found["spread"])
    reason = uncalibrated(crystal, key) or (f"{model} itself failed: {failed[model]}" if model in failed else "")
    if not own and known.status == "constant":
        reason = reason or f"{known.reason}; a table is needed: softening run {benchmark} --model {model}"
    near = calibration.nearest({family: scales}, family, set(crystal.get_chemical_symbols())).to_dict("records") if own else []
    for one in near[:1]:
        known_too = answer.status != "not known" and one["distance"] == 0
        if known_too and not answer.low <= one["measured"] <= answer.high and not reason:
            reason = f"{one['material']}, of the same elements, has {one['measured']:.2f}, and slopes say {answer.scale:.2f}"
    if reason:
        answer = calibration.Answer(np.nan, np.nan, np.nan, "not known", reason)
    elif not used:
        why = why or "; ".join(f"{one}: {text}" for one, text in failed.items())
        answer = answer._replace(reason="; ".join(filter(None, (answer.reason, why))))
    found |= answer._asdict() | {"nearest": near}
    if answer.status != "not known":
        told = f"{what} {abs(1 - answer.scale):.0%} too {'small' if answer.scale < 1 else 'large'}"
        found["errs"] = f"{told}: {then}" if answer.high < 1 else told
        if answer.low <= 1 <= answer.high:
            found["errs"] = f"{what} between {1 - answer.low:.0%} too small and {answer.high - 1:.0%} too large"
        if used:
            told = scales[scales["status"] == "ok"].set_index("material")["slope"] ** (known.status == "predicted")
            found["tested"] = rows, source, told * known.factor
        if len(values) == 1:
            unit = tables[model].loc[tables[model]["property"].astype(str) == columns[family], "unit"].iloc[0]
            dft = [float(y[0] / divisor) for divisor in (answer.scale, answer.high, answer.low)]
            found["dft"] = "{:.3g} → {:.3g} [{:.3g}, {:.3g}] {}".format(y[0], *dft, unit)
    if not used and (best := calibration.calibrate({family: scales}, family)).status == "predicted":
        found["would_add"] = f"{found['name']} with an error of {best.error:.2f} instead of {known.error:.2f}"
    return found


def advise(answers: Sequence[dict[str, Any]], model: str, structure: str) -> tuple[str, str, list[str]]:
    """Return a recommendation by the :data:`RULES`, the command or line of code that follows it, and reasons."""
    known = [line for line in answers if line["status"] != "not known"]
    far = [line["name"] for line in known if line.get("far")]
    files = f"{shlex.quote(structure)} --model"
    kinds = ",".join(dict.fromkeys(LABELS[line["property"]] for line in answers))
    label = "label these frames", f"softening ask {files} {shlex.quote(model)} -n 5 --kinds {kinds} --code vasp --out labels"
    if 2 * len(known) < len(answers):
        return *label, [f"{len(answers) - len(known)} of {len(answers)} answers are not known before DFT."]
    if len(known) == len(answers) and all(abs(line["scale"] - 1) <= CLOSE for line in known) and not far:
        widest = max(known, key=lambda line: line["high"] / line["low"])
        return (
            "use it",
            "",
            [f"Every scale lies within {CLOSE:.0%} of one; the widest interval is {widest['low']:.2f} to {widest['high']:.2f}."],
        )
    factor, why = one_factor(known)
    reasons = [why] if why else []
    compared = [line for line in known if line["left"]]
    shares = pd.DataFrame([line["left"] for line in compared], index=[line["name"] for line in compared])
    shares = shares.drop(columns=["factor"] if why else [], errors="ignore")
    # Of those that were asked about all of them.
    left = shares.dropna(axis="columns").mean().sort_values()
    if len(partly := [figures.label(str(one)) for one in shares.columns[shares.isna().any()]]):
        reasons.append(f"Not compared, since a table of one of the properties is missing: {', '.join(partly)}.")
    said = {one: f"a factor of {factor:.2f}" if one == "factor" else figures.label(str(one)) for one in left.index}
    if len(left):
        told = ", ".join(f"{said[one]}: {x:.2f}" for one, x in left.items())
        reasons.append(f"Error left on the tested materials, if it is 1.00 as it is: {told}.")
        if len(compared) < len(known):
            reasons.append(f"Compared in {', '.join(shares.index)} alone; in the others no stiff potential was asked.")
    for one, words in said.items():
        if len(worse := shares.loc[shares[one] >= 1, one]):
            left = left.drop(one)
            reasons.append(f"Not {words}: more error on tested materials in {', '.join(f'{k} ({x:.2f})' for k, x in worse.items())}.")
    if far:
        left = left.drop("factor", errors="ignore")
        reasons.append(f"It cannot be told whether it can be used as it is or with a factor: nothing near was tested ({', '.join(far)}).")
    # With intervals alone nothing is known of the scatter.
    if left.empty or left.iloc[0] > WORTH:
        none = "No slope against a stiffer potential is known." if shares.empty else "Nothing known without DFT mends much of the error."
        return *label, [*reasons, none]
    if (best := str(left.index[0])) != "factor":
        return f"use another: {figures.label(best)}", f"softening check {files} {best} --out other", reasons
    return f"multiply the energy by {factor:.2f}", f'potentials.load("{model}").scaled({factor:.3f})', reasons


def check(
    structure: Path | str,
    model: str,
    out: Path | str,
    *,
    against: Sequence[str] = (),
    asked: Sequence[str] = DEFAULT,
    budget_minutes: float | None = None,
    device: str = "auto",
    processes: int | None = None,
    trust: bool = False,
    progress: bool = False,
) -> Check:
    """Tell how soft a potential is expected to be for a crystal, and write it into a folder, new or that of a check of the same before.

    Other arguments are those of :func:`read`, :func:`helpers.potentials.load` and :func:`helpers.runner.workers`. ``against`` are stiff
    potentials, fetched if need be, by default those of :data:`STIFF` that are here; without any, tested materials answer. ``asked`` are
    of :data:`PROPERTIES`. Probes are planned for a budget in minutes and end with it; without one they are planned for :data:`MINUTES`
    and end when they are done. ValueError if structure, property or budget is of no use, PotentialError if a potential cannot be loaded
    or the folder holds something else.
    """
    started, out = time.time(), Path(out)
    if unknown := [key for key in asked if key not in PROPERTIES]:
        raise ValueError(f"--for {','.join(unknown)} is not known; there are {', '.join(PROPERTIES)}")
    if budget_minutes is not None and not budget_minutes > 0:
        raise ValueError(f"the budget must be a positive number of minutes, not {budget_minutes}")
    given, potential = read(structure), potentials.load(model, device, trust=trust)
    if {model, potential.key} & set(against):
        raise ValueError(f"--against {model}: a potential cannot be asked about itself; name a stiffer one, or leave it out")
    try:
        check_structure(given.numbers, given.positions, given.cell.array, potential.elements)
    except ValueError as error:
        raise ValueError(f"{structure} with {model}: {error}") from None
    model, crystal, where = potential.key, primitive(given), (str(potential.device), trust)
    fixes.claim(out, {"crystal": hashlib.sha256(structures.content(crystal)).hexdigest(), "potential": potential.describe()})
    # What the folder has answered before is answered again: its probes are done.
    done = results.read_json(out / RECORD)["answers"] if (out / RECORD).is_file() else []
    asked = [key for key in PROPERTIES if key in {*asked, *(line["property"] for line in done)}]
    notes, stiff, affordable = [], [], EVALUATIONS * (budget_minutes or MINUTES)
    for key in against or [key for key in STIFF if key != model and potentials.runnable(key)]:
        if set(crystal.numbers) <= (asking := potentials.load(key, device, trust=trust)).elements:
            stiff.append(asking.key)
        else:
            notes.append(f"{figures.label(key)} is not asked: it does not know all elements.")
    if stiff and "md" in asked and not uncalibrated(crystal) and not (out / FRAMES).is_file():
        ase.io.write(out / f".{FRAMES}", frames(potential_here(stiff[0], *where, False), crystal, affordable), format="extxyz")
        (out / f".{FRAMES}").rename(out / FRAMES)
    shaken = ase.io.read(out / FRAMES, ":") if (out / FRAMES).is_file() else []
    missing, tables, jobs = dict.fromkeys(asked, ""), {key: {} for key in asked}, []
    deadline = started + 60 * budget_minutes if budget_minutes else None
    for key in asked if stiff else ():
        benchmark = PROPERTIES[key][0]
        there = [one for one in stiff if one in results.models(benchmark)]
        source = model if model in results.models(benchmark) else STAND_IN
        shares = [_advisers(family, source, there) for family in PROPERTIES[key][1]]
        able = [one for one in there if any(each.get(one, 0.0) < 1 for each in shares)][: None if against else AT_ONCE]
        try:
            cases = probes(crystal, key, shaken, affordable)
            jobs += [(key, (benchmark, one, where, *cases, deadline, out)) for one in (model, *able)] if able else []
            missing[key] = "" if able else "no stiff potential has a table of this family and errs less on tested materials"
        except ValueError as error:
            missing[key] = str(error)
    jobs.sort(key=lambda job: (job[1][1], job[0]))  # a process keeps the potential that it has
    with runner.workers(potential.device, processes if jobs else 1) as pool:
        waiting = [pool.submit(_probe, *job) for _, job in jobs] if pool else []
        for number, (key, job) in enumerate(bar := tqdm(jobs, disable=not progress, unit="probe")):
            bar.set_description(f"{key} {job[1]}")
            table = waiting[number].result() if pool else _probe(*job)
            if table is None:
                missing[key] = "no time was left: the same command goes on"
            else:
                tables[key][job[1]] = table
    answers = [
        expect(key, family, model, crystal, tables[key], missing[key], stiff)
        for key in tqdm(asked, disable=not progress, unit="property", desc="calibration")
        for family in PROPERTIES[key][1]
    ]
    known = [line for line in answers if line["status"] != "not known"]
    factor, _ = one_factor(known) if known else (np.nan, "")
    for line in answers:
        line["far"] = bool(line["nearest"]) and line["nearest"][0]["distance"] > FAR
        for one, share in line.pop("dropped").items():
            notes.append(f"{figures.label(one)} is not asked about {line['name']}: it leaves {share:.2f} of the error on tested materials.")
        if "tested" in line:  # there the one factor stands to the material's own as it does here
            rows, source, scale = line.pop("tested")
            line["left"] = error_left(rows, source, None if np.isnan(factor) else scale * factor ** -line["power"] / line["scale"])
    if len(crystal) > 100 or (shaken and not any(one.info["kind"].endswith("K") for one in shaken)):
        notes.append(f"There are fewer probes than usual: the primitive cell has {len(crystal)} atoms, and --budget affords no more.")
    if why := uncalibrated(crystal):
        notes.append(f"No calibration for this material: {why}.")
    if far := [line["name"] for line in answers if line["far"]]:
        notes.append(f"Nothing that is near was tested ({', '.join(far)}): the interval assumes that this crystal is like the tested ones.")
    if len(stiff) == 1:
        notes.append("One stiff potential alone was asked: none can disagree with it.")
    if model not in results.models("off_equilibrium"):
        notes.append(f"This potential has no tables: its slopes are calibrated with the errors of {figures.label(STAND_IN)}.")
    absent = [] if against else [key for key in STIFF if potentials.installed(key) and not potentials.runnable(key)]
    if gains := [line.pop("would_add") for line in answers if "would_add" in line and not stiff] or absent:
        size = sum(registry.lookup(name).size for key in absent for name in potentials.CATALOGUE[key].weights) / 1e6
        notes.append(f"softening fetch weights ({size:.0f} MB for {', '.join(absent)}) would add slopes against them: {', '.join(gains)}.")
    about = {"structure": str(structure), "formula": Composition(given.get_chemical_formula()).reduced_formula, "atoms": len(given)}
    about |= {"primitive_atoms": len(crystal), "model": model, "stiff": stiff, "frames": len(shaken), "date": time.strftime("%Y-%m-%d")}
    packages = results.package_versions()
    for key, one in ((key, one) for key, made in tables.items() for one in made):  # another environment has others
        packages |= results.provenance(PROPERTIES[key][0], one, out)["packages"]
    about |= {"device": results.device_name(where[0]), "packages": packages, "minutes": (time.time() - started) / 60}
    found = Check(out, about, answers, *advise(answers, model, str(structure)), notes)
    check_page.write(found, RULES)
    results.write_json(json.loads(pd.Series(vars(found) | {"folder": str(out)}).to_json(double_precision=15)), out / RECORD)
    return found
