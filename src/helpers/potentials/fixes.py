"""Mended potentials on disk: a folder with a small JSON file and, after fine-tuning, the weights.

``mended.json`` names the potential that was mended and the SHA-256 of its weights, the factor c, and where all of it came from.
``weights.pt`` holds a state dict, which loads without unpickling code. ``base.model`` is a copy of the model file that was mended, if it
was a file of the user's own; a MACE file is code, so such a folder needs the same trust as that file.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from helpers import potentials, registry, results
from helpers.potentials.base import GraphPotential, Potential, PotentialError

FORMAT = 1
RECORD, WEIGHTS, BASE, REQUEST = "mended.json", "weights.pt", "base.model", "request.json"

NEEDED = {"format": int, "base": dict, "scale": float, "weights_sha256": (str, type(None)), "method": str, "n_labels": int}


def record(folder: Path) -> dict[str, Any]:
    """Read the JSON of a mended potential.

    Raises
    ------
    PotentialError
        If the folder holds none, or one that this version cannot read.
    """
    path = Path(folder) / RECORD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PotentialError(
            f"cannot read the model file {folder}: it is a folder without {RECORD}. Was 'softening fix' interrupted? Run it again."
        ) from None
    except (OSError, ValueError) as error:
        raise PotentialError(f"{path} cannot be read ({error}). Mend the potential again, into a new folder.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PotentialError(f"{path} has not the format {FORMAT}, the only one that this version reads.")
    wrong = [name for name, kind in NEEDED.items() if not isinstance(content.get(name), kind)]
    wrong += ["scale"] * ("scale" not in wrong and not (content["scale"] > 0 and math.isfinite(content["scale"])))
    if wrong or not {"key", "weights_sha256", "is_file"} <= set(content["base"]):
        raise PotentialError(
            f"{path} is damaged: {', '.join(wrong) or 'base'} missing or of the wrong kind. Mend the potential again, into a new folder."
        )
    return content


def save(folder: Path, potential: Potential, base_key: str, about: Mapping[str, Any]) -> None:
    """Write a mended potential.

    Parameters
    ----------
    folder : Path
        Exists. Files of these names in it are replaced.
    potential : Potential
        The mended one.
    base_key : str
        Key of the potential it was made from. If that was itself a mended one, the new folder stands on the same first base,
        and remembers the steps.
    about : mapping
        Goes into the JSON: at least ``method``, ``n_labels`` and ``trained`` (whether weights changed).
    """
    folder = Path(folder)
    base = folder_of(base_key)
    earlier = record(base) if base else None
    content: dict[str, Any] = {**about, "format": FORMAT, "scale": potential.scale, "weights_sha256": None, "earlier": []}
    if earlier:
        steps = {name: value for name, value in earlier.items() if name not in ("earlier", "base")}
        content["base"] = earlier["base"]
        content["earlier"] = [*earlier.get("earlier", []), steps]
    else:
        is_file = base_key.startswith("file:")
        key = Path(base_key).name if is_file else base_key
        content["base"] = {"key": key, "weights_sha256": about["base_sha256"], "is_file": is_file}
    if content["base"]["is_file"]:
        source = base / BASE if base else Path(base_key.removeprefix("file:"))
        results.write_bytes(source.read_bytes(), folder / BASE)
    if about["trained"] or (earlier and earlier["weights_sha256"]):
        buffer = io.BytesIO()
        torch.save(potential.network.state_dict(), buffer)
        content["weights_sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
        results.write_bytes(buffer.getvalue(), folder / WEIGHTS)
    # Last: it vouches for the rest.
    results.write_json(content, folder / RECORD, sort_keys=False)


def claim(out: Path, request: dict[str, Any], what: str = "check") -> None:
    """Make the folder and write down what it is for; PotentialError if it is for something else."""
    request = json.loads(json.dumps(request))
    before = results.read_json(out / REQUEST) if (out / REQUEST).is_file() else request
    if (out.exists() and not out.is_dir()) or (out.is_dir() and any(out.iterdir()) and not (out / REQUEST).is_file()):
        raise PotentialError(f"{out} holds something else; choose a new folder for --out.")
    if other := [name for name in request if before.get(name) != request[name]]:
        raise PotentialError(f"{out} holds another {what} (different: {', '.join(other)}); choose a new folder for --out.")
    out.mkdir(parents=True, exist_ok=True)
    results.write_json(request, out / REQUEST)


def folder_of(key: str) -> Path | None:
    """Return the folder that a key names, or None if it names something else."""
    path = Path(key.removeprefix("file:"))
    return path if key.startswith("file:") and path.is_dir() else None


def is_code(key: str) -> bool:
    """Tell whether a potential that is mended from this one asks for trust: a file of the user's own, or an ASE calculator."""
    folder = folder_of(key)
    base = record(folder)["base"] if folder else {"key": key, "is_file": key.startswith("file:")}
    return bool(base["is_file"]) or str(base["key"]).startswith("ase:")


def load(key: str, folder: Path, device: torch.device, dtype: torch.dtype = torch.float32, *, trust: bool = False) -> Potential:
    """Load a mended potential.

    Parameters
    ----------
    key : str
        Its name, ``file:FOLDER``.
    folder : Path
    device : torch.device
    dtype : torch.dtype
        Precision of the network.
    trust : bool
        Needed where the base is code: a MACE file of unknown checksum, or an ASE calculator.

    Raises
    ------
    PotentialError
        If a file is missing or is not the one that was written, the base is not the one that was mended, or needs trust.
    """
    folder = Path(folder)
    content = record(folder)
    potential = _base(folder, content["base"], device, dtype, trust)
    description = potential.describe()
    own = content["weights_sha256"]
    if own is not None:
        _load_weights(potential, folder / WEIGHTS, own)
    potential.key = key
    potential.scale = content["scale"]
    training_set = description.get("training_set", "not stated")
    potential.description = {
        **potential.description,
        "weights_sha256": own or description["weights_sha256"],
        "training_set": f"{training_set}; mended ({content['method']}) with {content['n_labels']} label(s)",
        "mended_from": content["base"]["key"],
    }
    return potential


def _base(folder: Path, base: Mapping[str, object], device: torch.device, dtype: torch.dtype, trust: bool) -> Potential:
    """Load the potential that was mended, and make sure that it is still the same."""
    name, expected = str(base["key"]), base["weights_sha256"]
    if base["is_file"]:
        path = folder / BASE
        found = registry.sha256(path) if path.is_file() else "none: the file is missing"
        if found != expected:
            raise PotentialError(f"{path} (a copy of {name}): SHA-256 {found}, expected {expected}. Mend the potential again.")
        return potentials.load(f"file:{path}", device, dtype=dtype, trust=trust)
    if name.startswith("ase:") and not trust:
        raise PotentialError(
            f"{folder} was made from {name}, and loading it imports that module, which can run any code. "
            "If you trust where it comes from, pass trust=True (on the command line: --trust)."
        )
    if not name.startswith("ase:") and name not in potentials.CATALOGUE:
        raise PotentialError(f"{folder} was made from {name!r}, which is not in the catalogue of this version.")
    potential = potentials.load(name, device, dtype=dtype, trust=trust)
    found = potential.describe()["weights_sha256"]
    if found != expected:
        raise PotentialError(f"{folder} was made from {name} with SHA-256 {expected}, but here it has {found}. Mend it again.")
    return potential


def _load_weights(potential: Potential, path: Path, expected: str) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PotentialError(f"cannot read the weights {path}: {error.strerror}") from error
    # The bytes that are checked are the bytes that are loaded.
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise PotentialError(f"{path}: SHA-256 {found}, expected {expected}. The file is damaged or not the one that was written.")
    if not isinstance(potential, GraphPotential):
        raise PotentialError(f"{path}: {potential.key} has no weights.")
    try:
        state = torch.load(io.BytesIO(content), map_location=potential.device, weights_only=True)
    except Exception as error:  # foreign bytes make the reader raise whatever they lead to
        raise PotentialError(f"{path} holds something else than weights; it was not opened.") from error
    try:
        potential.network.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError) as error:
        raise PotentialError(f"{path} does not fit {potential.key}: {error}") from error
