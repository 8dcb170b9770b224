"""Calculators of potentials with environments of their own: ``--model ase:examples/potentials.py:NAME``.

``environments`` has the packages. *Models with an environment of their own* in the book says which of these were tried.
"""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _sevennet(name, modal=None):
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator(name, modal=modal, device=DEVICE)


def sevennet_may():
    """Return SevenNet-0 of May 2024."""
    return _sevennet("7net-0_22May2024")


def sevennet_l3i5():
    """Return SevenNet-l3i5, a larger network."""
    return _sevennet("7net-l3i5")


def sevennet_mf_pbe():
    """Return SevenNet-MF-0 as it learned PBE."""
    return _sevennet("7net-mf-0", "PBE")


def sevennet_mf_r2scan():
    """Return SevenNet-MF-0 as it learned r2SCAN: nearly every reference of the book has another functional."""
    return _sevennet("7net-mf-0", "R2SCAN")


def orb():
    """Return ORB v3, forces as derivatives, trained on OMat24."""
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.calculator import ORBCalculator

    return ORBCalculator(pretrained.orb_v3_conservative_inf_omat(device=DEVICE), device=DEVICE)


def mattersim():
    """Return MatterSim-v1.0.0 with 5 million parameters."""
    from mattersim.forcefield import MatterSimCalculator

    return MatterSimCalculator(load_path="MatterSim-v1.0.0-5M.pth", device=DEVICE)


def uma():
    """Return UMA, small, for inorganic crystals."""
    from fairchem.core import FAIRChemCalculator, pretrained_mlip

    return FAIRChemCalculator(pretrained_mlip.get_predict_unit("uma-s-1p2", device=DEVICE), task_name="omat")


def grace():
    """Return GRACE with two layers, trained on OMat24, then on sAlex and MPtrj."""
    from tensorpotential.calculator.foundation_models import grace_fm

    return grace_fm("GRACE-2L-OAM")


def pet():
    """Return PET-MAD, small."""
    from upet.ase import UPETCalculator

    return UPETCalculator(model="pet-mad-s", device=DEVICE)
