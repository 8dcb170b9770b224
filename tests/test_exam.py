"""Foreign calculators: what enters them, what comes back, whether it belongs together, and where their factories may lie."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import bulk, fcc111
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms, FixCartesian
from pymatgen.io.ase import AseAtomsAdaptor
from typer.testing import CliRunner

from helpers import cli, potentials, results, softening
from helpers.benchmarks import elasticity
from helpers.potentials import PotentialError, exam
from helpers.potentials.ase import ASEPotential, canonical
from helpers.reports import fix
from helpers.training.fine_tune import Label


class Spoilt(EMT):
    """EMT whose results are changed by a function of them and of the atoms."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        results = {name: np.copy(value) if np.ndim(value) else value for name, value in self.results.items()}
        self.results = results | self.change(results, self.atoms)


def foreign(calculator, **options):
    return ASEPotential("ase:mine.make", calculator, **options)


def rattled(symbol="Cu", repeat=(2, 2, 1), seed=0):
    atoms = bulk(symbol, cubic=True) * repeat
    atoms.rattle(0.1, seed=seed)
    return atoms


# ---------------------------------------------------------------------------------------------------
# What enters


def test_constraints_do_not_reach_the_calculator():
    """Labels of 1.25 times EMT: the factor was 2.607 with the lower half of a slab held."""
    slab = fcc111("Cu", (2, 2, 4), vacuum=8.0)
    slab.rattle(0.15, seed=1)
    free = slab.copy()
    free.calc = EMT()
    labels = 1.25 * free.get_forces()
    slab.set_constraint([FixAtoms(mask=slab.positions[:, 2] < slab.positions[:, 2].mean()), FixCartesian(15, (False, False, True))])
    (prediction,) = foreign(EMT()).evaluate([slab])
    assert softening.correction(labels, prediction.forces) == pytest.approx(1.25, abs=1e-12)
    assert len(slab.constraints) == 2, "the caller's atoms stay as they are"


class ReadsState(Calculator):
    """An energy made of what a calculator may read of the atoms."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        own = self.atoms
        energy = own.info["charge"] + 10 * own.info["spin"] + 100 * own.get_initial_magnetic_moments().sum() + 1000 * own.get_tags().sum()
        self.results = {"energy": energy, "forces": np.zeros((len(own), 3))}


def test_charge_spin_moments_and_tags_reach_the_calculator():
    atoms = bulk("Fe")
    atoms.info.update(charge=1, spin=2)
    atoms.set_initial_magnetic_moments([3.0])
    atoms.set_tags([4])
    assert foreign(ReadsState()).evaluate(atoms)[0].energy == 4321


def test_one_structure_a_list_or_pymatgens():
    atoms = rattled()
    potential = foreign(EMT())
    wanted = potential.evaluate([atoms])[0].energy
    for given in (atoms, (atoms,), AseAtomsAdaptor.get_structure(atoms), [AseAtomsAdaptor.get_structure(atoms)]):
        (prediction,) = potential.evaluate(given)
        assert prediction.energy == pytest.approx(wanted)
    with pytest.raises(TypeError, match=r"ase\.Atoms"):
        potential.evaluate("POSCAR")


class Stale(EMT):
    """Never looks at what has changed: the first results are those of every structure until it is reset."""

    def get_property(self, name, atoms=None, allow_calculation=True):
        if not self.results:
            self.atoms = atoms.copy()
            self.calculate(atoms, [name], all_changes)
        return self.results[name]


def test_a_stale_cache_is_emptied_before_each_structure():
    frames = [rattled(seed=seed) for seed in range(5)]
    wanted = [foreign(EMT()).evaluate([atoms])[0].energy for atoms in frames]
    np.testing.assert_allclose([p.energy for p in foreign(Stale()).evaluate(frames, stress=True)], wanted)
    assert len(set(wanted)) == 5


def test_a_calculator_that_moves_atoms_moves_a_copy():
    class Moves(EMT):
        def calculate(self, atoms=None, *args, **kwargs):
            super().calculate(atoms, *args, **kwargs)
            atoms.positions += 0.5
            atoms.info["seen"] = True

    atoms = rattled()
    before = atoms.copy()
    foreign(Moves()).evaluate([atoms], stress=True)
    assert atoms == before
    assert "seen" not in atoms.info


# ---------------------------------------------------------------------------------------------------
# What comes back


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r, a: {"forces": r["forces"].T}, r"forces: of shape \(3, 16\); \(16, 3\) is wanted"),
        (lambda r, a: {"forces": r["forces"][:-1]}, r"forces: of shape \(15, 3\); \(16, 3\) is wanted"),
        (lambda r, a: {"forces": r["forces"].ravel()}, r"forces: of shape \(48,\)"),
        (lambda r, a: {"forces": [[0.0, 0.0]] * 15 + [[0.0]]}, "ValueError"),
        (lambda r, a: {"forces": np.array([[0.0, None, 0.0]] * 16)}, "forces: .*real numbers are wanted"),
        (lambda r, a: {"forces": None}, "forces: None"),
        (lambda r, a: {"forces": r["forces"] * np.nan}, "not numbers"),
        (lambda r, a: {"energy": np.full(len(a), -3.5)}, r"energy: of shape \(16,\); one number is wanted.*each atom"),
        (lambda r, a: {"energy": 1.0 + 0.1j}, "energy: complex"),
        (lambda r, a: {"energy": None}, "energy: None"),
        (lambda r, a: {"energy": np.inf}, "not numbers"),
        (lambda r, a: {"stress": np.zeros((16, 6))}, r"stress: of shape \(16, 6\); \(6,\) is wanted: xx, yy, zz, yz, xz, xy"),
        (lambda r, a: {"stress": np.full(6, np.nan)}, "not numbers"),
    ],
)
def test_answers_of_another_form_are_failed_records(change, words):
    (prediction,) = foreign(Spoilt(change)).evaluate([rattled()], stress=True)
    assert not prediction.ok
    assert re.search(words, prediction.error)
    assert prediction.forces.shape == (16, 3)
    assert "\n" not in prediction.error


@pytest.mark.parametrize(
    "change",
    [
        lambda r, a: {"energy": np.array([r["energy"]])},
        lambda r, a: {"stress": np.array([[r["stress"][k] for k in row] for row in ((0, 5, 4), (5, 1, 3), (4, 3, 2))])},
        lambda r, a: {"stress": np.array([r["stress"][k] for k in (0, 5, 4, 5, 1, 3, 4, 3, 2)])},
        lambda r, a: {"forces": r["forces"].tolist(), "energy": np.float64(r["energy"])},
    ],
)
def test_forms_that_mean_the_same_are_taken(change):
    wanted, found = (foreign(calculator).evaluate([rattled()], stress=True)[0] for calculator in (EMT(), Spoilt(change)))
    assert found.ok
    np.testing.assert_allclose(found.energy, wanted.energy)
    np.testing.assert_allclose(found.forces, wanted.forces)
    np.testing.assert_allclose(found.stress, wanted.stress)


def test_integers_and_negative_zeros_are_numbers():
    (found,) = foreign(Spoilt(lambda r, a: {"energy": 0, "forces": -np.zeros((len(a), 3), int), "stress": -0.0 * r["stress"]})).evaluate(
        [rattled()], stress=True
    )
    assert found.ok
    assert found.forces.dtype == float
    assert found.energy == 0
    assert not found.stress.any()


# ---------------------------------------------------------------------------------------------------
# The exam

VASP_ORDER = [0, 1, 2, 5, 3, 4]


class ById(EMT):
    """Keeps its answers by the identity of the atoms, which the next copy may have again."""

    def __init__(self):
        super().__init__()
        self.memo = {}

    def get_property(self, name, atoms=None, allow_calculation=True):
        if (id(atoms), len(atoms)) not in self.memo:
            inner = EMT()
            found = {"energy": inner.get_potential_energy(atoms), "forces": inner.get_forces(atoms), "stress": inner.get_stress(atoms)}
            self.memo[id(atoms), len(atoms)] = found
        return self.memo[id(atoms), len(atoms)][name]


class FirstForEver(EMT):
    """Gives the first answer to everything, whatever is reset."""

    kept = None

    def get_property(self, name, atoms=None, allow_calculation=True):
        self.kept = self.kept or {n: EMT().get_property(n, atoms) for n in ("energy", "forces", "stress")}
        return self.kept[name]


class Sorts(EMT):
    """Gives the forces in the order of the chemical symbols."""

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results["forces"] = self.results["forces"][np.argsort(self.atoms.symbols, kind="stable")]


class NotPeriodic(EMT):
    """Does not see periodic images of atoms that leave the cell."""

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results["energy"] += (np.abs(self.atoms.get_scaled_positions(wrap=False) - 0.5) > 0.7).sum()


@pytest.mark.parametrize(
    ("calculator", "words"),
    [
        (Spoilt(lambda r, a: {"stress": r["stress"] / units.GPa}), "stress is 160.2 times .*in GPa; ASE's unit is eV/Å³"),
        (Spoilt(lambda r, a: {"stress": 10 * r["stress"] / units.GPa}), "stress is 1602 times .*in kbar"),
        (Spoilt(lambda r, a: {"stress": -10 * r["stress"] / units.GPa}), "stress is -1602 times .*in kbar.*the sign is wrong"),
        (Spoilt(lambda r, a: {"stress": -r["stress"]}), "stress is -1 times .*the sign is wrong"),
        (Spoilt(lambda r, a: {"stress": r["stress"] * a.get_volume()}), "multiplied by the volume"),
        (Spoilt(lambda r, a: {"stress": r["stress"][VASP_ORDER]}), "shear stresses come as xy, yz, xz; ASE's order is yz, xz, xy$"),
        (Spoilt(lambda r, a: {"stress": r["stress"][VASP_ORDER] / units.GPa}), "come as xy, yz, xz; .*160.2 times .*GPa"),
        (Spoilt(lambda r, a: {"stress": 0 * r["stress"]}), "stress is not .*: zero"),
        (Spoilt(lambda r, a: {"forces": -r["forces"]}), r"forces are -(1|0\.99\d*) times −dE/dr .*sign"),
        (Spoilt(lambda r, a: {"forces": r["forces"] * units.Bohr / units.Hartree}), "in Hartree/bohr; ASE's unit is eV/Å"),
        (Spoilt(lambda r, a: {"forces": r["forces"].T.reshape(-1, 3)}), "forces are not −dE/dr: correlation"),
        (Spoilt(lambda r, a: {"forces": r["forces"].T}), r"forces: of shape \(3, 4\)"),
        (Spoilt(lambda r, a: {"forces": 0 * r["forces"]}), "forces are not −dE/dr: zero"),
        (Spoilt(lambda r, a: {"energy": r["energy"] / len(a)}), "a doubled cell has not twice the energy .*: it is an energy per atom"),
        (Spoilt(lambda r, a: {"energy": r["energy"] + 7}), "a doubled cell has not twice the energy"),
        (Spoilt(lambda r, a: {"energy": 0.8 * r["energy"]}), "forces are 1.2[45]"),
        (Spoilt(lambda r, a: {"energy": 1.1 * r["energy"]}), "forces are 0.9"),
        (Spoilt(lambda r, a: {"energy": 3.0}), "energy is the same for every cell"),
        (FirstForEver(), "energy is the same for every cell"),
        (ById(), "\n- the "),
        (Sorts(), "the answer changes if atoms come in another order"),
        (NotPeriodic(), "the answer changes if an atom moves by a lattice vector: the energy by"),
    ],
)
def test_mistakes_are_found_and_named(calculator, words):
    with pytest.raises(PotentialError, match=words) as raised:
        exam.examine(foreign(calculator))
    assert "ase:mine.make" in str(raised.value).splitlines()[0]


@pytest.mark.parametrize(
    "calculator",
    [
        EMT(),
        EMT(asap_cutoff=True),
        LennardJones(),
        LennardJones(sigma=2.3, epsilon=0.3, rc=6.0),
        LennardJones(sigma=2.3, epsilon=0.3, rc=6.0, smooth=True),
        Stale(),
        Spoilt(lambda r, a: {name: np.asarray(value, np.float32) for name, value in r.items()}),
    ],
)
def test_good_calculators_pass(calculator):
    assert exam.examine(foreign(calculator)) == []
    assert exam.examine(foreign(calculator).scaled(0.8)) == []


class Changed(Calculator):
    """Another calculator with its forces or stress multiplied. Exams ask for the same cells: what is in its memory it can recall."""

    implemented_properties = ("energy", "forces", "stress")

    def __init__(self, inner, memory, what="forces", factor=1.0, recall=True):
        super().__init__()
        self.inner, self.memory, self.what, self.factor, self.recall = inner, memory, what, factor, recall

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        key = b"".join(array.tobytes() for array in (atoms.numbers, atoms.positions, atoms.cell.array))
        if not self.recall or key not in self.memory:
            self.memory[key] = {name: self.inner.get_property(name, atoms) for name in ("stress", "energy", "forces")}
        self.results = self.memory[key] | {self.what: self.factor * self.memory[key][self.what]}


SIMPLE = {"EMT": EMT(), "EMT of asap": EMT(asap_cutoff=True), "Lennard-Jones": LennardJones(sigma=2.3, epsilon=0.3, rc=6.0)}
MEMORIES = {name: {} for name in SIMPLE}


@pytest.mark.slow
@pytest.mark.parametrize("c", [0.96, 0.98, 1.02, 1.03])
@pytest.mark.parametrize("name", SIMPLE)
def test_a_slight_factor_on_forces_or_stress_is_a_note(name, c):
    """Five per cent were allowed in silence, much next to the softness that is measured."""
    for what, words in (("forces", "The forces are"), ("stress", "The stress is")):
        (note,) = exam.examine(foreign(Changed(SIMPLE[name], MEMORIES[name], what, c)))
        assert note.startswith(f"{words} {c:.3g} times "), note
        assert f"({abs(1 - c):.1%} off)" in note


def test_forces_wrong_on_one_element_only_are_a_note():
    (note,) = exam.examine(foreign(Spoilt(lambda r, a: {"forces": r["forces"] * np.where(a.numbers == 13, 0.93, 1.0)[:, None]})))
    assert "times −dE/dr" in note


def test_an_energy_that_jumps_is_no_fault_and_no_note():
    """Steps of 0.5 meV where an atom crosses a plane, as where bonds cross a cutoff: differences over two lengths tell."""
    jumpy = Spoilt(lambda r, a: {"energy": r["energy"] + 5e-4 * np.floor(40 * a.get_scaled_positions()).sum()})
    for note in exam.examine(foreign(jumpy)):
        assert " times −dE/dr" not in note


@pytest.mark.slow
def test_networks_pass_behind_their_calculators(load_model):
    from chgnet.model.dynamics import CHGNetCalculator

    assert exam.examine(foreign(CHGNetCalculator(use_device="cpu"))) == []
    assert exam.examine(load_model("chgnet-0.3.0")) == []


@pytest.mark.slow
@pytest.mark.parametrize("key", ["m3gnet-mp-2021.2.8", "tensornet-matpes-pbe-2025.1", "mace-small"])
def test_networks_pass_behind_our_calculators(load_model, key):
    calculator, memory = load_model(key).calculator(), {}
    assert exam.examine(foreign(Changed(calculator, memory, recall=False))) == []
    (note,) = exam.examine(foreign(Changed(calculator, memory, factor=0.97)))
    assert note.startswith("The forces are 0.97 times")


def test_what_is_no_fault_is_a_note():
    rng = np.random.default_rng(0)

    class NoStress(EMT):
        implemented_properties = ("energy", "forces")

    (note,) = exam.examine(foreign(NoStress()))
    assert "gives no stress" in note
    # A head of its own for the forces: scattered, and a tenth too soft.
    head = Spoilt(lambda r, a: {"forces": 0.9 * r["forces"] * (1 + 0.2 * np.sin(1e3 * r["forces"].round(6)))})
    (note,) = exam.examine(foreign(head))
    assert "predicts this beside the energy" in note
    notes = exam.examine(foreign(Spoilt(lambda r, a: {"forces": r["forces"] + rng.normal(scale=0.15, size=(len(a), 3))})))
    assert any("evaluated twice" in note for note in notes)


def test_a_specialist_is_examined_with_its_own_elements():
    class Only(EMT):
        def calculate(self, atoms=None, *args, **kwargs):
            if set(atoms.symbols) != {"Pd"}:
                raise ValueError("palladium only")
            super().calculate(atoms, *args, **kwargs)
            self.results["stress"] = self.results["stress"] / units.GPa

    with pytest.raises(PotentialError, match="small crystal of Pd4"):
        exam.examine(foreign(Only()))
    with pytest.raises(PotentialError, match="GPa"):
        exam.examine(foreign(Only(), elements=frozenset({46})))
    (note,) = exam.examine(foreign(Only(), elements=frozenset({47})))
    assert "Not examined" in note
    assert "palladium only" in note


# ---------------------------------------------------------------------------------------------------
# Keys

MODULE = """
    from dataclasses import dataclass

    from ase.calculators.emt import EMT

    import beside_it


    @dataclass
    class Settings:
        cutoff: bool = True


    class Mine(EMT):
        pass


    def make():
        return Mine(asap_cutoff=Settings().cutoff)


    def kind():
        return Mine


    ready = Mine()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A home folder with a file and a package in a folder of it, which is the current one."""
    folder = tmp_path / "secret-home" / "science"
    (folder / "package").mkdir(parents=True)
    (folder / "my_calculator.py").write_text(textwrap.dedent(MODULE))
    (folder / "beside_it.py").write_text("")
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "inner.py").write_text("from . import other\nfrom ase.calculators.emt import EMT as Make\n")
    (folder / "package" / "other.py").write_text("")
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(Path.cwd()))])
    yield folder
    for name in ("beside_it", "package", "package.inner", "package.other"):
        sys.modules.pop(name, None)


HERE = ["my_calculator.make", "my_calculator:make", "my_calculator.py:make", "./my_calculator.py:make", "~/science/my_calculator.py:make"]


@pytest.mark.parametrize("name", HERE)
def test_a_file_or_a_module_of_the_current_folder(project, name):
    for _ in range(2):
        potential = potentials.load(f"ase:{name}")
        assert potential.key == canonical(f"ase:{name}") == "ase:~/science/my_calculator.py:make", "no home path, the same everywhere"
    assert potential.evaluate([bulk("Cu")])[0].ok


@pytest.mark.parametrize("name", ["package.inner.Make", "package.inner:Make", "package/inner.py:Make"])
def test_a_package_of_the_current_folder(project, name):
    for _ in range(2):
        assert potentials.load(f"ase:{name}").key == "ase:~/science/package/inner.py:Make"


@pytest.mark.parametrize("name", ["make", "Mine", "ready"])
def test_functions_classes_and_ready_calculators(project, name, tmp_path, monkeypatch):
    file = project / "my_calculator.py"
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    assert potentials.load(f"ase:{file}:{name}").key == f"ase:{file}:{name}"
    assert potentials.load(f"ase:secret-home/science/my_calculator.py:{name}").key == f"ase:{file}:{name}"


def test_a_changed_file_is_another_potential(project):
    before = potentials.load("ase:my_calculator.make").describe()
    (project / "my_calculator.py").write_text(textwrap.dedent(MODULE).replace("True", "False"))
    assert potentials.load("ase:my_calculator.make").describe() != before
    assert "source_sha256" not in potentials.load("ase:ase.calculators.emt.EMT").describe(), "tables of the book keep their fingerprints"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/such.py:make", r"there is no file .*no/such.py"),
        ("my_calculator.py", r"ase:path/to/file.py:factory"),
        ("my_calculator.py:nothing", r"my_calculator.py has no 'nothing'"),
        ("my_calculator:kind", "returned the class Mine, not an ASE calculator"),
        ("my-calculator.make", "write ase:module.factory"),
        ("leaves.py:make", r"importing leaves raised SystemExit: 3 \(.*leaves.py, line 1\)"),
        ("elsewhere.make", r"No module named 'elsewhere'.*current folder.*file.py:factory"),
    ],
)
def test_keys_that_do_not_load_say_why_on_one_line(project, name, words):
    (project / "leaves.py").write_text("import sys; sys.exit(3)")
    with pytest.raises(PotentialError, match=words) as raised:
        potentials.load(f"ase:{name}")
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_fix_and_a_run_by_such_a_key_are_found_elsewhere(project, data, tmp_path, monkeypatch):
    frames = [rattled(seed=seed) for seed in range(10)]
    truth = foreign(EMT(asap_cutoff=True)).evaluate(frames)
    labels = [Label(atoms, None, 1.25 * one.forces) for atoms, one in zip(frames, truth, strict=True)]
    fixed = fix.fix("ase:my_calculator.make", labels, out="mended")
    assert "secret-home" not in (project / "mended" / "mended.json").read_text()
    whole = elasticity.cases
    monkeypatch.setattr(elasticity, "cases", lambda protocol=None, sets=None: [c for c in whole(protocol, sets) if c.material == "Cu"])
    command = ["run", "elasticity", "-m", "ase:my_calculator.make", "--sets", "prototypes", "--processes", "1"]
    done = CliRunner().invoke(cli.app, command)
    assert done.exit_code == 0, done.output
    assert set(results.read("elasticity", "ase:~/science/my_calculator.py:make")["model"]) == {"ase:~/science/my_calculator.py:make"}
    monkeypatch.chdir(tmp_path)
    assert potentials.load(f"file:{project / 'mended'}", trust=True).scale == pytest.approx(1.25, abs=1e-6)
    assert fixed.potential.scale == pytest.approx(1.25, abs=1e-6)


@pytest.mark.slow
def test_workers_in_another_folder_find_the_file(project, tmp_path):
    key = potentials.load("ase:my_calculator.make").key
    program = f"from helpers import potentials; print(potentials.load({key!r}).key)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == key
