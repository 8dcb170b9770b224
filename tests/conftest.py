"""What the tests share: the models that can run here, a small MACE, and small structures."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import warnings
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from helpers import potentials, registry, results
from helpers.potentials.ase import ASEPotential
from helpers.potentials.mace import contained

# One thread: the networks are small, and test processes may run side by side.
torch.set_num_threads(1)


BOOK = Path(__file__).resolve().parents[1] / "book"


def book_script(name):
    """Return a script of the book as a module, anew each time; it finds its neighbours as when it is run."""
    if str(BOOK) not in sys.path:
        sys.path.insert(0, str(BOOK))
    spec = importlib.util.spec_from_file_location(name, BOOK / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EMT_KEY = "ase:ase.calculators.emt.EMT"
EMT_METALS = frozenset({13, 28, 29, 46, 47, 78, 79})

needs_mirror = pytest.mark.skipif(registry.mirror_dir() is None, reason="needs the data mirror (SOFTENING_MIRROR)")


def emt() -> ASEPotential:
    """Return EMT, which says that it knows its seven metals only."""
    return ASEPotential("emt", EMT(), elements=EMT_METALS)


def _can_run(key: str) -> bool:
    """Whether a catalogue model needs neither a download nor trust in an unknown file."""
    known = all(registry.lookup(name).sha256 for name in potentials.CATALOGUE[key].weights)
    return known and potentials.runnable(key)


RUNNABLE = [key for key in potentials.CATALOGUE if _can_run(key)]
# The six Nequix are one network; test_nequix.py has them all.
GRAPH_MODELS = [*(key for key in RUNNABLE if not key.startswith("nequix-") or key == "nequix-mp-1"), "mace-small"]


def build_mace(*, scale_shift: bool = True, heads: list[str] | None = None, seed: int = 0, **settings: object) -> torch.nn.Module:
    """Return a MACE for O, Si and Fe with few channels and random weights, in double precision."""
    with contained(), warnings.catch_warnings():
        # TorchScript comments on e3nn's annotations once per block.
        warnings.filterwarnings("ignore", message="The TorchScript type system")
        from e3nn import o3
        from mace import modules

        n_heads = len(heads or ["Default"])
        atomic_energies = np.linspace(-4.0, -2.0, 3 * n_heads).reshape(n_heads, 3)
        scale = np.linspace(15.0, 20.0, n_heads)
        shift = np.linspace(0.1, 0.3, n_heads)
        extra = {"atomic_inter_scale": scale, "atomic_inter_shift": shift} if scale_shift else {}
        residual = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            torch.manual_seed(seed)
            return (modules.ScaleShiftMACE if scale_shift else modules.MACE)(
                r_max=4.5,
                num_bessel=6,
                num_polynomial_cutoff=5,
                max_ell=2,
                interaction_cls=residual,
                interaction_cls_first=residual,
                num_interactions=2,
                num_elements=3,
                hidden_irreps=o3.Irreps("8x0e+8x1o"),
                MLP_irreps=o3.Irreps("8x0e"),
                atomic_energies=atomic_energies if n_heads > 1 else atomic_energies[0],
                avg_num_neighbors=20.0,
                atomic_numbers=[8, 14, 26],
                correlation=2,
                gate=torch.nn.functional.silu,
                radial_MLP=[16, 16],
                heads=heads,
                **extra,
                **settings,
            )
        finally:
            torch.set_default_dtype(default)


@pytest.fixture(scope="session")
def mace_file(tmp_path_factory):
    """File of a small ScaleShiftMACE for O, Si and Fe with random weights."""
    path = tmp_path_factory.mktemp("mace") / "small.model"
    torch.save(build_mace(), path)
    return path


@pytest.fixture(scope="session")
def load_model(mace_file):
    """Load a model of these tests by name, once per precision: a catalogue key, ``mace-small`` or ``emt``."""

    @functools.cache
    def load(name: str, dtype: torch.dtype = torch.float32) -> potentials.Potential:
        if name == "emt":
            return ASEPotential("ase:EMT", EMT())
        key = f"file:{mace_file}" if name == "mace-small" else name
        return potentials.load(key, "cpu", dtype=dtype, trust=name == "mace-small")

    return load


@pytest.fixture(scope="session")
def board():
    """Return the whole scoreboard."""
    from helpers import scoreboard  # which imports every experiment

    return scoreboard.table()


@pytest.fixture(scope="session", params=GRAPH_MODELS)
def network64(request, load_model):
    """Every graph network that can run here, in double precision and as a smooth function.

    Legacy M3GNet weights, as they were trained, have an energy that depends a little on the order of the
    neighbours and so jumps by some 1e-5 eV (:mod:`helpers.potentials.matgl`); derivatives are checked without that.
    """
    return load_model(request.param, torch.float64).smooth()


def tolerance(potential: potentials.Potential) -> dict[str, float]:
    """Return how closely a potential keeps symmetries: eV/atom and eV/Å. Legacy M3GNet depends on the order of neighbours."""
    depends_on_order = getattr(getattr(potential, "convention", None), "stand_ins", False)
    return {"energy_per_atom": 3e-5, "force": 1e-3} if depends_on_order else {"energy_per_atom": 1e-5, "force": 1e-4}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A private data folder with the project's reference values and no results, so that no test writes into the project's."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("registry.csv", "reference", "paper"):
        (folder / name).symlink_to(registry.data_dir() / name)
    monkeypatch.setenv(registry.DATA_VARIABLE, str(folder))
    return folder


@pytest.fixture
def killed_after(monkeypatch):
    """Within ``with killed_after(n) as kept:`` a training dies once it has kept its state n times, in the files ``kept``."""

    @contextlib.contextmanager
    def killed(n: int):
        write, kept = results.write_bytes, []

        def write_and_die(content, path):
            write(content, path)
            kept.extend([path] if path.suffix == ".pt" else [])
            if len(kept) == n:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(results, "write_bytes", write_and_die)
            with pytest.raises(KeyboardInterrupt):
                yield kept

    return killed


@pytest.fixture(scope="session", params=GRAPH_MODELS)
def network(request, load_model):
    """Every graph network that can run here, in the precision that users get."""
    return load_model(request.param)


@pytest.fixture(scope="session", params=[*GRAPH_MODELS, "emt"])
def potential(request, load_model):
    """Every potential that can run here, EMT through ASE among them."""
    return load_model(request.param)


def frames_of_copper(n: int = 6, scale: float = 1.2, seed: int = 0) -> list[ase.Atoms]:
    """Return displaced copper with the answers of EMT made stiffer, as results of a calculator."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        atoms.calc = EMT()
        energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, energy=scale * energy, forces=scale * forces, stress=scale * stress)
        found.append(atoms)
    return found


def distorted(metal: str, partner: str, a_compound: float) -> dict[str, ase.Atoms]:
    """Return four small, distorted structures, always the same ones: a rocksalt compound, and the metal in three forms."""
    rng = np.random.default_rng(7)
    vacancy = bulk(metal, "fcc", a=3.6, cubic=True) * (2, 1, 1)
    del vacancy[3]
    skewed = bulk(metal, "fcc", a=3.7)
    skewed.set_cell(skewed.cell.array @ (np.eye(3) + rng.normal(0, 0.08, (3, 3))), scale_atoms=True)
    slab = fcc111(metal, (1, 1, 4), a=3.6, vacuum=5.0)
    slab.pbc = True
    chosen = {"compound": bulk(metal + partner, "rocksalt", a=a_compound, cubic=True), "vacancy": vacancy, "skewed": skewed, "slab": slab}
    for atoms in chosen.values():
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
    return chosen


def structures_for(potential: potentials.Potential) -> dict[str, ase.Atoms]:
    """Return :func:`distorted` structures of elements that the potential knows."""
    return distorted("Cu", "Au", 5.2) if potential.key.startswith("ase:") else distorted("Fe", "O", 4.3)
