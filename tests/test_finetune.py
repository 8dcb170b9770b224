"""The factor and fine-tuning, on labels whose answer is known."""

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.stress import full_3x3_to_voigt_6_stress
from conftest import RUNNABLE

from helpers import potentials
from helpers.potentials import PotentialError, StructureError
from helpers.potentials.ase import ASEPotential
from helpers.training import fine_tune
from helpers.training.fine_tune import Label, Recipe


@pytest.fixture(scope="module")
def chgnet():
    return potentials.load("chgnet-0.3.0", "cpu")


@pytest.fixture(scope="module")
def labels(chgnet):
    """Labels from a teacher that is the same potential made 25 % stiffer."""
    rng = np.random.default_rng(0)
    frames = [bulk("MgO", "rocksalt", a=4.21) for _ in range(5)]
    for atoms in frames:
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    teacher = chgnet.scaled(1.25).evaluate(frames, stress=True)
    return [Label(atoms, p.energy, p.forces, p.stress) for atoms, p in zip(frames, teacher, strict=True)]


@pytest.mark.parametrize("method", ["inverse_slope", "least_squares"])
@pytest.mark.parametrize("n_labels", [1, 5])
def test_linear_correction_finds_the_constant(chgnet, labels, method, n_labels):
    scaled = fine_tune.linear_correction(chgnet, labels[:n_labels], method)
    assert scaled.scale == pytest.approx(1.25, rel=1e-5)
    assert chgnet.scale == 1.0
    assert scaled.evaluate([labels[4].atoms])[0].forces == pytest.approx(labels[4].forces, abs=1e-5)


@pytest.mark.slow
def test_linear_correction_is_the_limit_of_gradient_descent(chgnet):
    """Training one scalar on a mean squared error ends at the least-squares constant, not at 1/s."""
    rng = np.random.default_rng(1)
    atoms = bulk("MgO", "rocksalt", a=4.21)
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    model = chgnet.evaluate([atoms])[0].forces
    truth = 1.2 * model + rng.normal(0, 0.3 * np.abs(model).mean(), model.shape)
    label = Label(atoms, 0.0, truth)
    c = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([c], lr=0.02)
    for _ in range(600):
        optimiser.zero_grad()
        torch.mean((c * torch.as_tensor(model) - torch.as_tensor(truth)) ** 2).backward()
        optimiser.step()
    closed = fine_tune.linear_correction(chgnet, [label], "least_squares").scale
    assert closed == pytest.approx(float(c.detach()), rel=1e-4)
    # With noise, the constant that turns the cloud onto the diagonal is the larger of the two.
    assert fine_tune.linear_correction(chgnet, [label], "inverse_slope").scale != pytest.approx(closed, rel=1e-4)


def test_linear_correction_names_the_bad_label(chgnet, labels):
    broken = labels[0].atoms.copy()
    broken.positions[0] = np.nan
    with pytest.raises(StructureError, match="MgO"):
        fine_tune.linear_correction(chgnet, [Label(broken, 0.0, labels[0].forces)])


@pytest.mark.slow
def test_fine_tuning_learns_and_leaves_the_original_alone(chgnet, labels):
    before = {name: value.clone() for name, value in chgnet.network.state_dict().items()}
    untouched = chgnet.evaluate([labels[0].atoms])[0].forces
    outcome = fine_tune.fine_tune(chgnet, labels, Recipe(epochs=12, learning_rate=3e-4, validation_fraction=0.2))
    first, best = outcome.history[0], outcome.history[outcome.best_epoch]
    assert best["validation_force_mae"] == min(epoch["validation_force_mae"] for epoch in outcome.history)
    assert best["validation_force_mae"] < 0.5 * np.abs(labels[0].forces - untouched).mean()
    assert outcome.history[-1]["loss"] < first["loss"]
    assert set(outcome.train) & set(outcome.validation) == set()
    assert sorted(outcome.train + outcome.validation) == list(range(5))
    # The kept weights are those of the best epoch, and the composition model was not trained.
    held = [labels[index] for index in outcome.validation]
    answers = outcome.potential.evaluate([label.atoms for label in held])
    error = np.mean([np.abs(answer.forces - label.forces).mean() for answer, label in zip(answers, held, strict=True)])
    assert error == pytest.approx(best["validation_force_mae"], rel=1e-3)
    after = outcome.potential.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(name.startswith("composition_model") for name in changed)
    assert all(torch.equal(value, chgnet.network.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("loss", fine_tune.LOSSES)
def test_the_loss_is_the_one_that_is_asked_for(chgnet, labels, loss):
    """The loss of the first epoch, before any step, against NumPy: of forces and of the energy per atom."""
    (answer,) = chgnet.evaluate([labels[0].atoms])
    errors = {"force": np.array([[0.03, -0.07, 0.2], [0.0, -0.5, 0.09]]), "energy": np.array([-0.4])}
    label = Label(labels[0].atoms, answer.energy - 2 * errors["energy"][0], answer.forces - errors["force"])
    expected = {
        "squared": lambda e: np.mean(e**2),
        "absolute": lambda e: np.mean(np.abs(e)),
        "huber": lambda e: np.mean(np.where(np.abs(e) < 0.1, e**2 / 2, 0.1 * (np.abs(e) - 0.05))),
    }[loss]
    for kind, error in errors.items():
        weights = {"energy_weight": 0.0, "force_weight": 0.0, "stress_weight": 0.0} | {f"{kind}_weight": 3.0}
        recipe = Recipe(epochs=1, validation_fraction=0, keep="last", loss=loss, **weights)
        (first,) = fine_tune.fine_tune(chgnet, [label], recipe).history
        assert first["loss"] == pytest.approx(3 * expected(error), rel=1e-3)


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="unknown loss 'l3'; there are: squared, huber, absolute"):
        Recipe(loss="l3")


def test_records_of_the_squared_loss_are_those_from_before_there_were_others():
    old = {
        "epochs": 7,
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-5,
        "energy_weight": 0.1,
        "force_weight": 100.0,
        "stress_weight": 0.1,
        "batch_size": 1,
        "max_gradient_norm": None,
        "validation_fraction": 0.1,
        "keep": "best",
        "seed": 3,
        "trained": (),
        "rank": 0,
    }
    assert Recipe(epochs=7, seed=3).record() == old
    assert Recipe(epochs=7, seed=3, loss="huber").record() == old | {"loss": "huber", "huber_delta": 0.1}


@pytest.mark.slow
def test_training_is_reproducible_and_resumes(chgnet, labels, tmp_path, killed_after):
    recipe = Recipe(epochs=4, learning_rate=3e-4)
    whole = fine_tune.fine_tune(chgnet, labels[:3], recipe)
    with killed_after(2):
        fine_tune.fine_tune(chgnet, labels[:3], recipe, checkpoint=tmp_path / "run" / "training.pt")
    resumed = fine_tune.fine_tune(chgnet, labels[:3], recipe, checkpoint=tmp_path / "run" / "training.pt")
    assert [epoch["epoch"] for epoch in resumed.history] == [0, 1, 2, 3]
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert one["validation_force_mae"] == pytest.approx(other["validation_force_mae"], rel=1e-3)
    with pytest.raises(PotentialError, match="another recipe"):
        fine_tune.fine_tune(chgnet, labels[:3], Recipe(epochs=5), checkpoint=tmp_path / "run" / "training.pt")
    # The same recipe, but other labels, or the same labels and other weights: its weights would be returned as if trained on these.
    for model, others in ((chgnet, labels[1:4]), (whole.potential, labels[:3])):
        with pytest.raises(PotentialError, match="other labels or other weights; delete it or use the same"):
            fine_tune.fine_tune(model, others, recipe, checkpoint=tmp_path / "run" / "training.pt")


class Bomb:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "foreign", "pickle"])
def test_a_damaged_checkpoint_is_named(chgnet, labels, tmp_path, kind):
    checkpoint, recipe = tmp_path / "training.pt", Recipe(epochs=1)
    fine_tune.fine_tune(chgnet, labels[:1], recipe, checkpoint=checkpoint)
    content = {"truncated": checkpoint.read_bytes()[:5000], "empty": b"", "text": b"years of work"}
    if kind in content:
        checkpoint.write_bytes(content[kind])
    else:
        torch.save({"weights": torch.ones(3)} if kind == "foreign" else Bomb(str(tmp_path / "mark")), checkpoint)
    with pytest.raises(PotentialError, match=r"training.pt is damaged or no checkpoint of a training; delete it"):
        fine_tune.fine_tune(chgnet, labels[:1], recipe, checkpoint=checkpoint)
    assert not (tmp_path / "mark").exists()


@pytest.mark.slow
def test_a_full_disk_is_named_and_leaves_the_last_checkpoint(chgnet, labels, tmp_path, monkeypatch):
    checkpoint, recipe = tmp_path / "training.pt", Recipe(epochs=3, learning_rate=3e-4)
    write, calls = Path.write_bytes, []

    def full(path, content):
        calls.append(path)
        if len(calls) == 3:
            write(path, content[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*training.pt'") as caught:
            fine_tune.fine_tune(chgnet, labels[:2], recipe, checkpoint=checkpoint)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    resumed = fine_tune.fine_tune(chgnet, labels[:2], recipe, checkpoint=checkpoint)
    whole = fine_tune.fine_tune(chgnet, labels[:2], recipe)
    assert resumed.history[-1]["validation_force_mae"] == pytest.approx(whole.history[-1]["validation_force_mae"], rel=1e-3)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()]
)
def test_want_of_memory_says_what_to_lower(chgnet, labels, monkeypatch, error):
    def lacking(*_, **__):
        raise error

    monkeypatch.setattr(chgnet, "compute", lacking)
    with pytest.raises(PotentialError, match="memory does not suffice for training: label smaller cells, lower"):
        fine_tune.fine_tune(chgnet, labels, Recipe(epochs=1))
    monkeypatch.setattr(chgnet, "compute", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fine_tune.fine_tune(chgnet, labels, Recipe(epochs=1))


def first_epoch(potential, labels):
    """Loss and error of labels in one batch, as a training finds them before it changes anything."""
    recipe = Recipe(epochs=1, batch_size=len(labels), validation_fraction=0, keep="last")
    return fine_tune.fine_tune(potential, labels, recipe).history[0]


@pytest.fixture(scope="module")
def held(chgnet):
    """Labels of a larger cell whose first half of atoms was held, which do not count; what is not counted differs from label to label."""
    frames = [bulk("MgO", "rocksalt", a=4.21, cubic=True) for _ in range(3)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.1, seed=seed)
    made = []
    for atoms, answer in zip(frames, chgnet.scaled(1.25).evaluate(frames), strict=True):
        forces = answer.forces.copy()
        forces[: 3 + len(made)] = np.nan
        made.append(Label(atoms, None, forces))
    return made


def test_atoms_that_do_not_count_are_left_out_of_the_factor(chgnet, held):
    """Zeros in their place would give 1/s with s the mean of softness and nothing."""
    assert fine_tune.linear_correction(chgnet, held).scale == pytest.approx(1.25, rel=1e-5)
    assert fine_tune.linear_correction(chgnet, held, "least_squares").scale == pytest.approx(1.25, rel=1e-5)
    zeros = [replace(label, forces=np.nan_to_num(label.forces)) for label in held]
    assert fine_tune.linear_correction(chgnet, zeros, "least_squares").scale < 0.9


@pytest.mark.slow
def test_atoms_that_do_not_count_are_left_out_of_the_loss(chgnet, held):
    """Each structure counts once, by the components that it has."""
    begun = first_epoch(chgnet, held)
    off = [p.forces - label.forces for p, label in zip(chgnet.evaluate([label.atoms for label in held]), held, strict=True)]
    assert begun["loss"] == pytest.approx(100 * np.mean([np.nanmean(one**2) for one in off]), rel=1e-4)
    assert begun["train_force_mae"] == pytest.approx(np.mean([np.nanmean(np.abs(one)) for one in off]), rel=1e-4)
    history = fine_tune.fine_tune(chgnet, held, Recipe(epochs=6, learning_rate=3e-4)).history
    assert history[-1]["train_force_mae"] < 0.8 * history[0]["train_force_mae"]


def test_labels_of_lists_and_voigt_stresses_are_taken(chgnet, labels):
    listed = [Label(one.atoms, one.energy, one.forces.tolist(), full_3x3_to_voigt_6_stress(one.stress)) for one in labels]
    for one, other in zip(listed, labels, strict=True):
        assert np.array_equal(one.forces, other.forces)
        assert one.stress == pytest.approx(other.stress, abs=1e-6)
    assert fine_tune.linear_correction(chgnet, listed).scale == fine_tune.linear_correction(chgnet, labels).scale
    for change, words in (({"energy": np.nan}, "label 0 .*energy is not a number"), ({"stress": np.ones(5)}, "label 0 .*stress is not")):
        with pytest.raises(ValueError, match=words):
            fine_tune.fine_tune(chgnet, [replace(labels[0], **change)], Recipe(epochs=1))


@pytest.mark.parametrize(
    ("forces", "words"),
    [
        (np.full((2, 3), np.nan), r"label 1 \(MgO\): no force is a number"),
        (np.full((2, 3), np.inf), r"label 1 \(MgO\): a force is infinite"),
        (np.ones((1, 3)), r"label 1 \(MgO\): forces of shape \(1, 3\), but 2 atom\(s\) need \(2, 3\)"),
        (np.ones((3, 2)), "need"),
        (None, "need"),
    ],
)
def test_labels_without_forces_are_named(chgnet, labels, forces, words):
    for cure in (fine_tune.linear_correction, fine_tune.fine_tune):
        with pytest.raises(ValueError, match=words):
            cure(chgnet, [labels[0], replace(labels[1], forces=forces)])


def test_one_label_is_trained_on_to_the_last_epoch(chgnet, labels):
    outcome = fine_tune.fine_tune(chgnet, labels[:1], Recipe(epochs=2, learning_rate=1e-4, keep="last"))
    assert outcome.train == outcome.validation == [0]
    assert outcome.best_epoch == 1


def test_learning_rate_is_half_a_cosine():
    recipe = Recipe(epochs=101, learning_rate=1e-3, final_learning_rate=1e-5)
    assert fine_tune.learning_rate(0, recipe) == pytest.approx(1e-3)
    assert fine_tune.learning_rate(50, recipe) == pytest.approx((1e-3 + 1e-5) / 2)
    assert fine_tune.learning_rate(100, recipe) == pytest.approx(1e-5)


def test_what_cannot_be_trained_is_refused(labels, chgnet):
    with pytest.raises(PotentialError, match="no weights"):
        fine_tune.fine_tune(ASEPotential("emt", EMT()), labels)
    with pytest.raises(ValueError, match="at least one label"):
        fine_tune.fine_tune(chgnet, [])


def test_a_batch_of_structures_is_the_mean_of_its_members(chgnet, labels):
    """Structures evaluated together give the mean loss of one after the other, however many atoms each has."""
    large = bulk("MgO", "rocksalt", a=4.3, cubic=True)
    large.rattle(0.1, seed=3)
    answer = chgnet.scaled(1.3).evaluate([large])[0]
    members = [replace(labels[0], stress=None), Label(large, answer.energy, answer.forces)]
    together, alone = first_epoch(chgnet, members), [first_epoch(chgnet, [member]) for member in members]
    for name in ("loss", "train_force_mae"):
        assert together[name] == pytest.approx(np.mean([one[name] for one in alone]), rel=1e-4)
    assert alone[0]["loss"] != pytest.approx(alone[1]["loss"], rel=0.1)


@pytest.mark.slow
def test_training_in_batches_learns(chgnet, labels):
    recipe = Recipe(epochs=10, learning_rate=3e-4, batch_size=2, max_gradient_norm=10.0)
    history = fine_tune.fine_tune(chgnet, labels, recipe).history
    assert history[-1]["train_force_mae"] < 0.7 * history[0]["train_force_mae"]


def changes(before, after):
    """Return how each weight of a network has changed."""
    old, new = before.network.state_dict(), after.network.state_dict()
    assert old.keys() == new.keys()
    return {name: new[name] - old[name] for name in old if not torch.equal(old[name], new[name])}


PARTS = {"readout": ("readout_norm.", "mlp."), "last-layer": ("readout_norm.", "mlp.", "atom_conv_layers.3.")}


@pytest.mark.parametrize(("name", "beginnings"), PARTS.items(), ids=list(PARTS))
def test_only_a_part_is_trained(chgnet, labels, name, beginnings):
    recipe = Recipe(epochs=3, learning_rate=1e-3, trained=fine_tune.part(chgnet, name))
    outcome = fine_tune.fine_tune(chgnet, labels[:3], recipe)
    changed = changes(chgnet, outcome.potential)
    assert changed
    assert all(key.startswith(beginnings) for key in changed)
    assert {beginning for beginning in beginnings for key in changed if key.startswith(beginning)} == set(beginnings)
    counted = sum(p.numel() for key, p in chgnet.network.named_parameters() if key.startswith(beginnings))
    assert outcome.n_trained == counted
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]


BEFORE_READOUT = {"m3gnet-mp-2021.2.8": "embedding three_body_interactions graph_layers", "nequix-mp-1": "atom_energies layers"}
BEFORE_READOUT |= {"tensornet-matpes-pbe-2025.1": "tensor_embedding layers"}


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(BEFORE_READOUT))
def test_the_readout_is_what_follows_the_messages(key, load_model):
    if key not in RUNNABLE:
        pytest.skip("needs its weights")
    model = load_model(key)
    readout, last = (fine_tune.part(model, name) for name in ("readout", "last-layer"))
    names = [name for name, _ in model.network.named_parameters()]
    assert {name.split(".")[0] for name in names if not name.startswith(readout)} == set(BEFORE_READOUT[key].split())
    in_lists = [tuple(name.split(".")[:2]) for name in names if name.startswith(last) and not name.startswith(readout)]
    every = [tuple(name.split(".")[:2]) for name in names if name.startswith(in_lists[0][0] + ".")]
    assert set(in_lists) == {max(every, key=lambda one: int(one[1]))}


def test_parts_that_do_not_exist_are_refused(chgnet, labels):
    with pytest.raises(PotentialError, match="unknown part 'middle'; there are: readout, last-layer"):
        fine_tune.part(chgnet, "middle")
    with pytest.raises(PotentialError, match="no parameter to train whose name begins with head"):
        fine_tune.fine_tune(chgnet, labels, Recipe(trained=("head",)))


@pytest.mark.slow
def test_low_rank_corrections_have_low_rank_and_end_up_in_the_weights(chgnet, labels):
    recipe = Recipe(epochs=8, learning_rate=3e-3, rank=2, validation_fraction=0, keep="last")
    untouched = chgnet.evaluate([labels[0].atoms])[0].forces
    outcome = fine_tune.fine_tune(chgnet, labels[:2], recipe)
    assert type(outcome.potential.network.mlp.layers[0]) is torch.nn.Linear
    # The first epoch begins at the potential as it is: the corrections are zero.
    assert outcome.history[0]["loss"] < 1.2 * np.mean([100 * np.mean((0.2 * label.forces) ** 2) for label in labels[:2]])
    assert outcome.history[-1]["loss"] < 0.8 * outcome.history[0]["loss"]
    assert outcome.potential.evaluate([labels[0].atoms])[0].forces != pytest.approx(untouched, abs=1e-4)
    changed = changes(chgnet, outcome.potential)
    assert all(key.endswith(".weight") for key in changed)
    for key, change in changed.items():
        # Relative to the weights, which hide in their rounding what is smaller.
        noise = 10 * torch.finfo(torch.float32).eps * chgnet.network.state_dict()[key].norm()
        assert int((torch.linalg.svdvals(change) > noise).sum()) <= 2, key
    assert outcome.n_trained < 0.1 * sum(p.numel() for p in chgnet.network.parameters())
    assert all(not p.requires_grad for p in outcome.potential.network.parameters())


def test_low_rank_training_leaves_the_random_numbers_alone(chgnet, labels):
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    fine_tune.fine_tune(chgnet, labels[:1], Recipe(epochs=1, rank=1, keep="last"))
    assert torch.equal(torch.rand(2), wanted)


def test_all_labels_can_be_trained_on(chgnet, labels):
    outcome = fine_tune.fine_tune(chgnet, labels[:2], Recipe(epochs=2, learning_rate=1e-4, validation_fraction=0, keep="last"))
    assert (outcome.train, outcome.validation, outcome.best_epoch) == ([0, 1], [], 1)
    assert np.isnan([epoch["validation_force_mae"] for epoch in outcome.history]).all()
    with pytest.raises(ValueError, match='set keep="last"'):
        fine_tune.fine_tune(chgnet, labels[:2], Recipe(validation_fraction=0))
