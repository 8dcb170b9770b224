"""The methods of training: curvature, replay and elastic weight consolidation, on answers that are known."""

from dataclasses import replace

import numpy as np
import pandas as pd
import phonopy
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from conftest import GRAPH_MODELS
from phonopy.file_IO import write_FORCE_CONSTANTS, write_FORCE_SETS
from phonopy.interface.vasp import write_vasp
from phonopy.structure.atoms import PhonopyAtoms
from typer.testing import CliRunner

from helpers import cli, figures, potentials, results, structures
from helpers.experiments import tournament
from helpers.potentials.base import GraphPotential, PotentialError
from helpers.reports import fix
from helpers.training import fine_tune, labels, trial
from helpers.training.fine_tune import Label, Recipe


@pytest.fixture(scope="module")
def chgnet():
    return potentials.load("chgnet-0.3.0", "cpu")


@pytest.fixture(scope="module")
def stiff(chgnet):
    """Rattled MgO with the answers of a teacher a quarter stiffer."""
    frames = trial.rattled([bulk("MgO", "rocksalt", a=4.21)] * 5, 0.1, np.random.default_rng(0))
    return trial.labelled(trial.stiffer(chgnet), frames, stress=True)


# ---- Curvature ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", GRAPH_MODELS)
def test_curvature_is_the_derivative_of_forces(load_model, key):
    """H·v by differentiating twice, against forces on both sides, and so for what the weights learn from it."""
    potential = load_model(key, torch.float64).smooth()
    crystal = bulk("Si")
    crystal.numbers[0] = 8
    crystal.rattle(0.1, seed=1)
    graph = potential.collate([potential.system(crystal)])
    direction = torch.randn(len(crystal), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = potential.hessian_vector(graph, direction)
    ends = [potential.compute(replace(graph, positions=graph.positions + sign * 1e-5 * direction))[1] for sign in (1, -1)]
    assert exact == pytest.approx((ends[1] - ends[0]) / 2e-5, abs=1e-4 * float(exact.abs().max()))
    weights = [weight for name, weight in potential.network.named_parameters() if not name.startswith(potential.untrained)]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        found = potential.hessian_vector(graph, direction, training=True).pow(2).sum()
        slopes = [s for s in torch.autograd.grad(found, weights, allow_unused=True) if s is not None]
        assert slopes
        assert all(torch.isfinite(slope).all() for slope in slopes)
        assert any(slope.abs().max() > 0 for slope in slopes)
    finally:
        potential.network.requires_grad_(False)


class Springs(GraphPotential):
    """Springs k/2 |r − r0|² between near neighbours, with k the one weight; r0 is their distance in the crystal."""

    def __init__(self, k: float, length: float) -> None:
        network = torch.nn.ParameterDict({"k": torch.nn.Parameter(torch.tensor(k, dtype=torch.float64))})
        self.length = length
        kind = {"family": "springs", "weights_sha256": "", "training_set": ""}
        super().__init__(
            "springs", network, cutoff=1.2 * length, bytes_per_edge=1e3, device=torch.device("cpu"),
            elements=frozenset(range(1, 90)), description=kind,
        )  # fmt: skip

    def energies(self, graph):
        stretched = torch.linalg.norm(graph.vectors, dim=1) - self.length
        each = 0.25 * self.network["k"] * stretched**2  # every pair is there twice
        return each.new_zeros(graph.n_systems).index_add(0, graph.edge_system, each)


def of_springs(k):
    """Return a crystal of springs as phonopy has it, with the forces on its displaced supercell."""
    cell = bulk("Al", cubic=True)
    model = Springs(k, cell.get_distance(0, 1))
    unit = PhonopyAtoms(cell.get_chemical_symbols(), cell=cell.cell.array, scaled_positions=cell.get_scaled_positions())
    phonons = phonopy.Phonopy(unit, np.diag([2, 2, 2]), primitive_matrix="F")
    phonons.generate_displacements(distance=0.01)
    made = [one.positions for one in phonons.supercells_with_displacements]
    crystal = make_supercell(cell, np.diag([2, 2, 2]))
    crystal.set_chemical_symbols(phonons.supercell.symbols)
    frames = []
    for positions in made:
        crystal.positions = positions
        frames.append(crystal.copy())
    phonons.forces = np.array([answer.forces for answer in model.evaluate(frames)])
    phonons.produce_force_constants()
    return model, phonons


@pytest.fixture
def folder(tmp_path):
    """All that phonopy writes of a crystal of springs of 3 eV/Å²."""
    _, phonons = of_springs(3.0)
    write_FORCE_SETS(phonons.dataset, tmp_path / "FORCE_SETS")
    write_FORCE_CONSTANTS(phonons.force_constants, filename=tmp_path / "FORCE_CONSTANTS")
    phonons.save(tmp_path / "phonopy_params.yaml", settings={"force_sets": True})
    phonons.save(tmp_path / "phonopy_disp.yaml", settings={"force_sets": False, "displacements": True, "force_constants": False})
    write_vasp(tmp_path / "SPOSCAR", phonons.supercell)
    return tmp_path


@pytest.mark.parametrize("name", ["FORCE_SETS", "FORCE_CONSTANTS", "phonopy_params.yaml", "SPOSCAR"])
def test_phonopy_files_are_labels(folder, name):
    """Whatever the file, the force constants are those of the springs: Φ·u is minus the force on what is displaced by u."""
    if name == "SPOSCAR":  # which alone tells the crystal of FORCE_SETS
        for other in ("phonopy_params.yaml", "phonopy_disp.yaml"):
            (folder / other).unlink()
        name = "FORCE_SETS"
    (frame,) = labels.read(folder / name)
    label = frame.label()
    n = len(label.atoms)
    assert label.force_constants.shape == (3 * n, 3 * n)
    displaced = (label.atoms.positions - label.crystal.positions).ravel()
    assert -(label.force_constants @ displaced).reshape(n, 3) == pytest.approx(label.forces, abs=1e-3)
    move = np.random.default_rng(0).normal(0, 1e-3, (n, 3))
    there = label.crystal.copy()
    there.positions += move
    model, _ = of_springs(3.0)
    assert -(label.force_constants @ move.ravel()) == pytest.approx(model.evaluate([there])[0].forces.ravel(), abs=1e-4)


def test_phonopy_files_that_cannot_be_labels(folder):
    for path in folder.glob("phonopy*"):
        if "disp" not in path.name:
            path.unlink()
    with pytest.raises(labels.LabelError, match=r"phonopy_disp.yaml holds neither forces nor force constants"):
        labels.read(folder / "phonopy_disp.yaml")
    for name in ("phonopy_disp.yaml", "SPOSCAR"):
        (folder / name).unlink()
    with pytest.raises(labels.LabelError, match=r"FORCE_SETS tells no crystal; put phonopy's .* or SPOSCAR beside it"):
        labels.read(folder / "FORCE_SETS")
    (folder / "phonopy.yaml").write_text("phonopy:\n  calculator: qe\n")
    with pytest.raises(labels.LabelError, match=r"cannot be read by phonopy"):
        labels.read(folder / "FORCE_SETS")


def test_a_harmonic_crystal_learns_its_spring_constant(folder):
    (frame,) = labels.read(folder / "FORCE_SETS")
    model, _ = of_springs(2.0)
    recipe = Recipe(epochs=80, learning_rate=0.05, force_weight=0.0, validation_fraction=0, keep="last")
    outcome = fine_tune.fine_tune(model, [frame.label()], fine_tune.recipe_of("curvature", model, recipe))
    assert float(outcome.potential.network["k"]) == pytest.approx(3.0, rel=0.01)
    assert float(model.network["k"]) == 2.0
    with pytest.raises(ValueError, match="training on curvature needs labels with force constants"):
        fine_tune.fine_tune(model, [replace(frame.label(), force_constants=None)], fine_tune.recipe_of("curvature", model, recipe))


@pytest.mark.slow
def test_the_command_takes_force_constants(folder, tmp_path):
    params = phonopy.load(folder / "phonopy_params.yaml", log_level=0)
    crystals = [Atoms(one.symbols, one.positions, cell=one.cell, pbc=True) for one in params.supercells_with_displacements]
    params.forces = [answer.forces for answer in potentials.load("chgnet-0.3.0", "cpu").scaled(1.25).evaluate(crystals)]
    write_FORCE_SETS(params.dataset, folder / "FORCE_SETS")
    result = CliRunner().invoke(
        cli.app,
        [
            "fix",
            "-m",
            "chgnet-0.3.0",
            "-l",
            str(folder / "FORCE_SETS"),
            "--method",
            "curvature",
            "--epochs",
            "1",
            "-o",
            str(tmp_path / "out"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "Nothing was tested" in result.output
    with pytest.raises(labels.LabelError, match="the method curvature needs force constants"):
        fix.fix(
            "chgnet-0.3.0",
            trial.labelled(potentials.load("chgnet-0.3.0"), [bulk("MgO", "rocksalt", a=4.3)]),
            method="curvature",
            out=tmp_path / "no",
        )


def test_frames_with_the_same_force_constants_stay_together():
    made = [replace(labels.Frame(file, k, bulk("Si"), None, np.ones((2, 3)))) for file in "abc" for k in range(3)]
    fitted, tested = fix.split(made, 0.3, 0, whole=True)
    assert not {made[k].file for k in fitted} & {made[k].file for k in tested}
    assert len(tested) == 3


# ---- What is remembered ---------------------------------------------------------------------------


def test_the_sample_is_spread_over_elements():
    crystals = structures.spread(range(1, 41), 32, 0)
    there = [z for crystal in crystals for z in set(crystal.numbers.tolist())]
    assert len(set(there)) == 40
    assert max(there.count(z) for z in set(there)) <= 2
    assert sum(len(set(crystal.numbers)) == 1 for crystal in crystals) == 8
    again, other = structures.spread(range(1, 41), 32, 0), structures.spread(range(1, 41), 32, 1)
    assert [structures.content(a) for a in crystals] == [structures.content(a) for a in again]
    assert [structures.content(a) for a in crystals] != [structures.content(a) for a in other]


def trained(potential, frames, method, **settings):
    common = {"epochs": 20, "validation_fraction": 0, "keep": "last", "sample": 16, "energy_weight": 0.0}
    return fine_tune.fine_tune(potential, frames, fine_tune.recipe_of(method, potential, Recipe(**common | settings)))


@pytest.mark.slow
def test_replay_and_consolidation_forget_less(chgnet):
    """On MgO whose teacher is so stiff that much is forgotten."""
    frames = trial.rattled([bulk("MgO", "rocksalt", a=4.21)] * 2, 0.1, np.random.default_rng(0))
    frames, lost = trial.labelled(chgnet.scaled(1.6), frames), {}
    for method, settings in {"full": {}, "replay": {"replay_weight": 10.0}, "consolidation": {"consolidation": 1e4}}.items():
        outcome = trained(chgnet, frames, method, epochs=8, sample=8, learning_rate=3e-3, **settings)
        assert outcome.history[-1]["train_force_mae"] < 0.6 * outcome.history[0]["train_force_mae"]
        lost[method] = fine_tune.forgetting(chgnet, outcome.potential, {8, 12}, number=8)
        assert lost[method]["n"] == 8
    for method in ("replay", "consolidation"):
        assert lost[method]["forces"] < 0.85 * lost["full"]["forces"]
        assert lost[method]["energy"] < 0.7 * lost["full"]["energy"]


@pytest.mark.slow
def test_the_penalty_of_consolidation_is_zero_at_the_start(chgnet, stiff):
    (plain,), (held,) = (trained(chgnet, stiff[:1], method, epochs=1).history for method in ("full", "consolidation"))
    assert held["loss"] == pytest.approx(plain["loss"], rel=1e-6)


def test_the_stronger_the_consolidation_the_nearer_the_weights_stay():
    """One weight, whose labels ask for 3 where it begins at 2."""
    model, _ = of_springs(2.0)
    crystal = bulk("Al", cubic=True)
    crystal.rattle(0.05, seed=0)
    frames = trial.labelled(model.scaled(1.5), [crystal])
    found = []
    for strength in (1e-9, 0.01, 1.0, 100.0):
        settings = {"epochs": 150, "learning_rate": 0.05, "sample": 8, "consolidation": strength}
        found.append(float(trained(model, frames, "consolidation", **settings).potential.network["k"]))
    assert found[0] == pytest.approx(3.0, rel=0.01)
    assert found == sorted(found, reverse=True)
    assert 2.0 < found[-1] < 2.1


@pytest.mark.slow
def test_a_killed_training_goes_on(chgnet, stiff, tmp_path, killed_after):
    """With replay and consolidation at once."""
    recipe = fine_tune.recipe_of("replay", chgnet, Recipe(epochs=4, learning_rate=3e-4, sample=4, consolidation=100.0))
    whole = fine_tune.fine_tune(chgnet, stiff[:3], recipe)
    with killed_after(2):
        fine_tune.fine_tune(chgnet, stiff[:3], recipe, checkpoint=tmp_path / "training.pt")
    resumed = fine_tune.fine_tune(chgnet, stiff[:3], recipe, checkpoint=tmp_path / "training.pt")
    assert [epoch["loss"] for epoch in resumed.history] == pytest.approx([epoch["loss"] for epoch in whole.history], rel=1e-3)


def test_a_training_on_curvature_goes_on(folder, tmp_path, killed_after):
    (frame,) = labels.read(folder / "FORCE_SETS")
    model, _ = of_springs(2.0)
    recipe = fine_tune.recipe_of("curvature", model, Recipe(epochs=6, learning_rate=0.05))
    whole = fine_tune.fine_tune(model, [frame.label()], recipe)
    with killed_after(3):
        fine_tune.fine_tune(model, [frame.label()], recipe, checkpoint=tmp_path / "training.pt")
    resumed = fine_tune.fine_tune(model, [frame.label()], recipe, checkpoint=tmp_path / "training.pt")
    assert resumed.history == whole.history


def test_methods_set_what_the_recipe_leaves_open(chgnet):
    assert fine_tune.recipe_of("full", chgnet, Recipe()) == Recipe()
    assert fine_tune.recipe_of("low-rank", chgnet, Recipe(learning_rate=3e-3)).learning_rate == 3e-3
    assert fine_tune.recipe_of("low-rank", chgnet, Recipe()).rank == 4
    assert fine_tune.recipe_of("partial", chgnet, Recipe()).trained == fine_tune.part(chgnet, "last-layer")
    assert fine_tune.recipe_of("full", chgnet, Recipe(trained=("readout",))).trained == fine_tune.part(chgnet, "readout")
    assert fine_tune.recipe_of("partial", chgnet, Recipe(trained=("mlp.",))).trained == ("mlp.",)
    used = set(fine_tune.recipe_of("replay", chgnet, Recipe()).record()) - set(Recipe().record())
    assert used == {"replay_weight", "sample", "sample_energy_weight"}
    with pytest.raises(ValueError, match="unknown method 'magic'; there are: linear, full, partial"):
        fine_tune.recipe_of("magic", chgnet, Recipe())


def test_what_knows_no_other_element_cannot_remember(folder):
    (frame,) = labels.read(folder / "FORCE_SETS")
    model, _ = of_springs(2.0)
    model.elements = frozenset({13})
    with pytest.raises(PotentialError, match="knows no element that the labels do not have"):
        fine_tune.fine_tune(model, [frame.label()], fine_tune.recipe_of("replay", model, Recipe(epochs=1)))


# ---- fix judges itself ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_fix_that_makes_it_worse_keeps_the_model(tmp_path, chgnet, stiff):
    """A learning rate that ruins the weights."""
    recipe = Recipe(epochs=2, learning_rate=0.3, final_learning_rate=0.3)
    fixed = fix.fix("chgnet-0.3.0", stiff, method="full", recipe=recipe, out=tmp_path / "fix", device="cpu")
    assert "The model was kept as it was: full makes its force MAE worse" in fixed.advice[0]
    assert fixed.potential.evaluate([stiff[0].atoms])[0].forces == pytest.approx(chgnet.evaluate([stiff[0].atoms])[0].forces, abs=1e-6)
    assert not (tmp_path / "fix" / "weights.pt").exists()
    untested = fix.fix("chgnet-0.3.0", stiff[:1], method="full", recipe=recipe, out=tmp_path / "untested", device="cpu")
    assert "on the fitted frames" in untested.advice[0]


@pytest.mark.slow
def test_a_fix_tells_what_it_forgot_and_how_sure_its_factor_is(tmp_path, stiff):
    noisy = [Label(one.atoms, None, (0.8 + 0.1 * k) * one.forces) for k, one in enumerate(stiff)]
    fixed = fix.fix("chgnet-0.3.0", noisy, out=tmp_path / "linear", device="cpu", test_fraction=0)
    (said,) = (line for line in fixed.advice if "95 % interval" in line)
    low, high = (float(said.split("interval ")[1].split()[k]) for k in (0, 2))
    assert low < fixed.potential.scale < high
    assert "over 5 fitted frames" in said
    assert not any("Forgetting" in line for line in fixed.advice)
    alone = fix.fix("chgnet-0.3.0", noisy[:1], out=tmp_path / "one", device="cpu")
    assert any("no interval: one frame gives none" in line for line in alone.advice)
    recipe = Recipe(epochs=2, learning_rate=3e-4, sample=4)
    full = fix.fix("chgnet-0.3.0", stiff[:3], method="replay", recipe=recipe, out=tmp_path / "replay", device="cpu")
    (said,) = (line for line in full.advice if line.startswith("Forgetting"))
    assert "on 24 crystals of" in said
    assert "elements that no label has" in said
    assert said in (tmp_path / "replay" / "report.md").read_text()


# ---- The tournament -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tournament_knows_the_teacher(chgnet):
    """One factor is the whole truth: it mends everything, and moves everything else by a quarter."""
    found = tournament.cases(sets=["teacher"])
    assert [case.info["method"] for case in found] == ["none", *tournament.METHODS]
    chosen = [case for case in found if case.info["method"] in ("none", "linear")]
    keys = ["method", "property", "held_out"]
    made = tournament.run(chgnet, chosen).set_index(keys)["value"]
    committed = results.read("tournament", "chgnet-0.3.0").query("set == 'teacher'").set_index(keys)["value"]
    assert made.to_numpy() == pytest.approx(committed.loc[made.index].to_numpy(), abs=0.01, nan_ok=True)
    assert made["none", "slope", "all"] == pytest.approx(0.8, rel=1e-3)
    assert made["linear", "slope", "all"] == pytest.approx(1, rel=1e-3)
    assert made["linear", "force_mae", "other-chemistry"] < 1e-4 < made["none", "force_mae", "other-chemistry"]
    size = np.mean([np.abs(p.forces).mean() for p in fine_tune.sample_of(chgnet, {8, 12}, 24, 2**31)[1]])
    assert made["linear", "force_change", "forgotten"] == pytest.approx(size / 4, rel=1e-2)


def test_the_front_is_what_nothing_beats():
    rows = [("full", 1.5, 0.4), ("replay", 1.2, 0.5), ("partial", 1.6, 0.6), ("linear", 1.1, 0.9)]
    points = pd.DataFrame(rows, columns=["method", "x", "y"]).assign(material="Si", x_low=1.0, x_high=2.0, y_low=0.3, y_high=1.0)
    methods = {method: method for method, *_ in rows}
    axis = figures.pareto(points, ["Si"], methods, "lost", "left").axes[0]
    (front,) = (line for line in axis.lines if line.get_drawstyle() == "steps-post")
    assert front.get_xydata().tolist() == [[1.1, 0.9], [1.2, 0.5], [1.5, 0.4]]
    with pytest.raises(ValueError, match="nothing to draw for Mo"):
        figures.pareto(points, ["Mo"], methods, "lost", "left")
