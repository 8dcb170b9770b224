"""The catalogue of potentials, and the one function that loads them.

>>> from ase.build import bulk
>>> from helpers import potentials
>>> potential = potentials.load("chgnet-0.3.0", "cpu")
>>> found = potential.evaluate([bulk("Cu"), bulk("Al")])
>>> [round(one.energy, 1) for one in found]
[-4.1, -3.7]

Each family is a module with a function ``load(key, paths, device, dtype, *, trust)``: the catalogue's key, the verified files of weights
(without this argument and the last one where the package carries them), a device, and the precision of the network. ``trust`` lets it open
a file of unknown checksum that can run code.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from helpers import OTHER_LABELS, registry
from helpers.potentials.base import OutOfTimeError, Potential, PotentialError, Prediction, StructureError

__all__ = [
    "CATALOGUE",
    "Entry",
    "OutOfTimeError",
    "Potential",
    "PotentialError",
    "Prediction",
    "StructureError",
    "at_home",
    "canonical",
    "check",
    "installed",
    "load",
    "papers",
    "runnable",
]

# Training sets whose DFT is not that of the Materials Project, which most reference sets share: newer pseudopotentials.
NEWER_DFT = ("OMat24",)
_NEQUIX = "atomicarchitects/nequix/models"
_MATGL = "materialsvirtuallab/matgl/pretrained_models"
_M3GNET = "materialsvirtuallab/m3gnet/pretrained/MP-2021.2.8-EFS"


@dataclass(frozen=True)
class Entry:
    """A catalogue line."""

    key: str  # model and version: the same in code, files, tables, colours and prose
    label: str  # name for figures and text; a sign (:data:`helpers.NOTES`) joins it if the training set is one of NEWER_DFT
    short: str  # name for the numbers of a chapter's text: letters, digits, underscores
    # In figures: hexadecimal, and matplotlib's. Models of one architecture have related hues.
    colour: str
    marker: str
    family: str  # module of :mod:`helpers.potentials` that loads it
    training_set: str
    weights: tuple[str, ...] = ()  # registry keys of the files it needs; empty when its package carries them
    paper_label: str | None = None  # its name in Deng et al. (2025), if it is one of the paper's models
    paper_figures: tuple[str, ...] = ()  # the paper's figures that show these weights, where it gives two sets of weights one name
    package: str | None = None  # the module that must be importable, if it is not called like the family
    environment: str | None = None  # that has it, for a model whose package clashes with another's; ``make env-NAME`` makes it
    guest: bool = False  # shown where a page asks for it, not in every chapter

    def __post_init__(self) -> None:
        if self.training_set in NEWER_DFT:
            object.__setattr__(self, "label", f"{self.label}\u00a0{OTHER_LABELS}")


def _matgl_files(folder: str) -> tuple[str, ...]:
    return tuple(f"{_MATGL}/{folder}/{name}" for name in ("model.json", "model.pt", "state.pt"))


# Okabe and Ito's colours (jfly.uni-koeln.de/color, 2008) and Tol's olive and wine.
CATALOGUE: dict[str, Entry] = {
    entry.key: entry
    for entry in (
        Entry("chgnet-0.3.0", "CHGNet 0.3.0", "chgnet", "#0072B2", "o", "chgnet", "MPtrj", paper_label="CHGNet"),
        Entry("chgnet-0.2.0", "CHGNet 0.2.0", "chgnet_02", "#56B4E9", "h", "chgnet", "MPtrj"),
        Entry(
            "m3gnet-mp-2021.2.8",
            "M3GNet 2021.2.8",
            "m3gnet",
            "#D55E00",
            "s",
            "matgl",
            "MPF",
            _matgl_files("M3GNet-MP-2021.2.8-PES"),
            paper_label="M3GNet",
        ),
        Entry(
            "m3gnet-tf-2021.2.8",
            "M3GNet TF",
            "m3gnet_tf",
            "#8C3D00",
            "$◣$",
            "m3gnet_tf",
            "MPF",
            tuple(f"{_M3GNET}/m3gnet.{name}" for name in ("index", "data-00000-of-00001", "json")),
            paper_label="M3GNet",
            paper_figures=("2a", "2c"),
            package="matgl",
            guest=True,
        ),
        *(
            Entry(key, label, short, colour, marker, "matgl", "MatPES-PBE", _matgl_files(folder))
            for key, label, short, colour, marker, folder in (
                ("m3gnet-matpes-pbe-2025.1", "M3GNet MatPES", "m3matpes", "#E69F00", "D", "M3GNet-MatPES-PBE-v2025.1-PES"),
                ("tensornet-matpes-pbe-2025.1", "TensorNet MatPES", "tensornet", "#CC79A7", "P", "TensorNet-MatPES-PBE-v2025.1-PES"),
            )
        ),
        *(
            Entry(key, label, short, colour, marker, "mace", diet, (f"ACEsuit/mace-mp/{file}.model",), paper_label=paper)
            for key, label, short, colour, marker, diet, file, paper in (
                ("mace-mp-0-medium", "MACE-MP-0", "mace", "#009E73", "^", "MPtrj", "2023-12-03-mace-128-L1_epoch-199", "MACE"),
                ("mace-mpa-0-medium", "MACE-MPA-0", "mpa", "#999933", "v", "MPtrj + sAlex", "mace-mpa-0-medium", None),
            )
        ),
        *(
            Entry(key, label, short, colour, marker, "nequix", diet, (f"{_NEQUIX}/{key}.nqx",), package="e3nn", guest=True)
            for key, label, short, colour, marker, diet in (
                ("nequix-mp-1", "Nequix MP", "nequix_mp", "#332288", "$◤$", "MPtrj"),
                ("nequix-mp-1-pft", "Nequix MP + Hessians", "nequix_mp_h", "#5E4FA2", ">", "MPtrj + Hessians"),
                ("nequix-mp-1-pft-nocotrain", "Nequix MP, then Hessians", "nequix_mp_then_h", "#8D7CC3", "8", "MPtrj, then Hessians"),
                ("nequix-omat-1", "Nequix OMat", "nequix_omat", "#0B5D3B", "d", "OMat24"),
                ("nequix-oam-1", "Nequix OAM", "nequix_oam", "#44AA99", "H", "OMat24 + sAlex + MPtrj"),
                ("nequix-oam-1-pft", "Nequix OAM + Hessians", "nequix_oam_h", "#7FC8B5", "$◢$", "OMat24 + sAlex + MPtrj + Hessians"),
            )
        ),
        Entry("sevennet-0", "SevenNet-0", "sevennet", "#882255", "p", "sevennet", "MPtrj", package="sevenn", environment="sevennet"),
    )
}


# What others call the same weights, in small letters: MatGL, matcalc 0.7 and matbench-discovery.
ALIASES = {
    "m3gnet-mp-2021.2.8-pes": "m3gnet-mp-2021.2.8",
    "m3gnet-matpes-pbe-v2025.1-pes": "m3gnet-matpes-pbe-2025.1",
    "tensornet-matpes-pbe-v2025.1-pes": "tensornet-matpes-pbe-2025.1",
    "mace-mp-0": "mace-mp-0-medium",
    "mace-mptrj-0a-medium": "mace-mp-0-medium",
    "mace-mpa-0": "mace-mpa-0-medium",
    "sevennet-mptrj-0": "sevennet-0",
    "7net-0": "sevennet-0",
}


def canonical(key: str) -> str:
    """Return the catalogue's key for another package's name of the same weights, in large or small letters; anything else as it is."""
    small = key.lower()
    return small if small in CATALOGUE else ALIASES.get(small, key)


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn ``auto`` into the best device there is, a CUDA GPU, else the CPU; PotentialError, which lists those here, if it is not here."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    name = ("cuda" if gpus else "cpu") if str(device) == "auto" else str(device)
    if name.startswith("cuda") and not gpus:
        raise PotentialError(f"device {name!r} was asked for, but PyTorch sees no CUDA GPU here; use --device cpu or auto.")
    if name not in ("cpu", "cuda", *gpus):
        raise PotentialError(f"device {name!r} is none of auto, cpu, cuda, cuda:0, …; here there are: {', '.join(('auto', 'cpu', *gpus))}.")
    return torch.device(name)


def load(
    key: str | Path,
    device: str | torch.device = "auto",
    *,
    dtype: torch.dtype = torch.float32,
    trust: bool = False,
    compiled: bool = False,
) -> Potential:
    """Load a potential.

    ``key``: a key of :data:`CATALOGUE`, or what MatGL, matcalc or matbench-discovery call these weights; ``ase:module.factory`` for any ASE
        calculator; ``file:PATH`` for a MACE model file or the folder of a mended potential (:mod:`helpers.potentials.fixes`); a Path is
        that file or folder.
    ``device``: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …; that of an ASE calculator is the calculator's own affair.
    ``dtype``: precision of the network.
    ``trust``: allow unpickling a model file whose checksum the project does not know. Such a file can run any code.
    ``compiled``: compile the network (:meth:`helpers.potentials.base.GraphPotential.compiled`).

    PotentialError if the key is unknown, the device is missing, the file must not be trusted, the model needs another environment or cannot
    be compiled; :class:`helpers.registry.RegistryError` if a weight file cannot be had: it says where it comes from and where to put it.
    """
    potential = _load(f"file:{key}" if isinstance(key, Path) else key, device, dtype, trust)
    return potential.compiled() if compiled else potential


def _load(key: str, device: str | torch.device, dtype: torch.dtype, trust: bool) -> Potential:
    key = check(key)
    if key.startswith("ase:"):
        # A resolved device comes from a potential that stands on this one.
        if isinstance(device, str) and device not in ("auto", "cpu"):
            raise PotentialError(f"{key}: the device belongs to the calculator; let its factory choose {device}, and leave --device out.")
        return import_module("helpers.potentials.ase").load(key)
    target = resolve_device(device)
    if key.startswith("file:"):
        path = Path(key.removeprefix("file:"))
        if path.is_dir():
            return import_module("helpers.potentials.fixes").load(key, path, target, dtype, trust=trust)
        return import_module("helpers.potentials.mace").load_file(key, path, target, dtype, trust=trust)
    entry = CATALOGUE[key]
    if not installed(key):
        where = f"; make env-{entry.environment}, then .venv-{entry.environment}/bin/softening …" if entry.environment else ""
        raise PotentialError(f"{key} needs the package {entry.package or entry.family}, which this environment does not have{where}")
    family = import_module(f"helpers.potentials.{entry.family}")
    if not entry.weights:
        return family.load(key, target, dtype)
    loaded = family.load(key, [registry.fetch(name) for name in entry.weights], target, dtype, trust=trust)
    loaded.description.setdefault("training_set", entry.training_set)
    return loaded


def check(key: str) -> str:
    """Return the :func:`canonical` name of a potential; PotentialError, with those there are, if it names nothing that can be loaded."""
    key = canonical(key)
    if key not in CATALOGUE and not re.match("(ase|file):.", key):
        near = f" Write file:{key} for that file or folder." if key and Path(key).exists() else registry.nearest(key, CATALOGUE)
        # Which weights a bare name means, others disagree about.
        if key and len(several := [name for name in CATALOGUE if name.startswith(f"{key.lower()}-")]) > 1:
            near = f" {key} may be {', '.join(several[:-1])} or {several[-1]}: name one."
        raise PotentialError(f"unknown model {key!r}. Known: {', '.join(CATALOGUE)}, ase:module.factory, file:PATH.{near}")
    return key


def installed(key: str) -> bool:
    """Tell whether this environment has the package of a catalogue model; some have an environment of their own."""
    return find_spec(CATALOGUE[key].package or CATALOGUE[key].family) is not None


def at_home(models: Iterable[str], guests: Collection[str] = ()) -> list[str]:
    """Return those of some models that every chapter shows (all but the catalogue's guests), and the guests that are asked for.

    PotentialError if a guest is unknown.
    """
    for guest in guests:
        check(guest)
    return [key for key in models if key in guests or key not in CATALOGUE or not CATALOGUE[key].guest]


def papers(figure: str = "") -> dict[str, Entry]:
    """Return the three models of Deng et al. (2025) by their names there, with the weights that a figure (``2a``) shows.

    Its M3GNet is MatGL's in Fig. 4 and the first release in Figs. 2a and 2c: single values tell. Where none do, MatGL's is taken.
    """
    known = [entry for entry in CATALOGUE.values() if entry.paper_label and (not entry.paper_figures or figure in entry.paper_figures)]
    return {label: [entry for entry in known if entry.paper_label == label][-1] for label in ("M3GNet", "CHGNet", "MACE")}


def runnable(key: str) -> bool:
    """Tell whether a catalogue model can be loaded here and now, without a download."""
    return installed(key) and registry.available(CATALOGUE[key].weights)
