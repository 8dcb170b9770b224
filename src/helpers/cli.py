"""The command line ``softening``."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    import pandas as pd

    from helpers.registry import RegisteredFile

MANY = 40  # frames, of which those without fault are not listed
INTERRUPTED = "softening: interrupted; the same command goes on where it stopped"

# Commands import what they need: a question about the options has an answer in half a second.
try:
    import typer
    from typer.core import TyperCommand

    from helpers import BENCHMARKS
except KeyboardInterrupt:
    print(INTERRUPTED, file=sys.stderr)
    sys.exit(130)

app = typer.Typer(
    name="softening",
    help="Measure how soft a universal interatomic potential is, on real DFT data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMPILE = ("off", "on", "auto")

# Beside ValueError, KeyError and OSError. Who has not imported a module cannot have met its error.
ERRORS = {"registry": "RegistryError", "results": "ResultsError", "potentials": "PotentialError", "runner": "RunError"}


def _human(n_bytes: int) -> str:
    return "size not known" if not n_bytes else f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.1f} kB"


def _table(rows: list[list[str]], header: list[str]) -> None:
    """Print a table; where it is wider than the terminal, a block of lines for each row."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    # What is piped into another program has no width.
    if sum(widths) + 2 * len(widths) - 2 > shutil.get_terminal_size((sys.maxsize, 0)).columns:
        name = max(map(len, header))
        for row in rows:
            typer.echo("\n".join(f"{title.ljust(name)}  {cell}".rstrip() for title, cell in zip(header, row, strict=True)) + "\n")
        return
    for row in [header, *rows]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _frame(title: str, shown: pd.DataFrame) -> None:
    """Print a table of text with its title."""
    typer.echo(f"\n{title}")
    _table([[str(name), *values] for name, values in zip(shown.index, shown.to_numpy().tolist(), strict=True)], ["", *shown.columns])


def _folder(out: Path | None) -> Path | None:
    """Refuse a folder that cannot be made or written to, before anything is computed. The trial leaves nothing behind."""
    try:
        if out is not None:
            tempfile.TemporaryDirectory(dir=next(place for place in (out, *out.parents) if place.exists())).cleanup()
    except OSError as error:
        raise ValueError(f"--out {out}: this folder cannot be made or written to ({error.strerror}); choose another") from error
    return out


def print_summary(summarise: Callable[[pd.DataFrame], pd.DataFrame], table: pd.DataFrame) -> None:
    """Print what a benchmark says of its table, or why it says nothing."""
    try:
        summary = summarise(table)
    except ValueError as error:
        typer.echo(f"No summary: {error}.")
        return
    rows = [[f"{value:.5g}" if isinstance(value, float) else str(value) for value in row] for row in summary.itertuples(index=False)]
    if rows:
        _table(rows, list(summary.columns))
    else:
        typer.echo("No summary: these cases are too few, or have no reference values.")


@app.command()
def models() -> None:
    """List the potentials, what they were trained on, and whether they can be loaded now."""
    from helpers import potentials, registry

    registry.mirror_dir()  # a wrong name of the whole folder is no fault of its files
    rows = []
    for entry in potentials.CATALOGUE.values():
        try:
            ready = potentials.runnable(entry.key)
        except registry.RegistryError as error:
            ready = None
            typer.echo(f"{entry.key}: {error}", err=True)
        if ready:
            state = "ready" if entry.weights else "ready (in its package)"
        elif ready is None:
            state = "damaged, see above"
        elif not potentials.installed(entry.key):
            state = f"in an environment of its own: make env-{entry.environment}" if entry.environment else "in the main environment"
        else:
            size = sum(registry.lookup(name).size for name in entry.weights)
            state = f"to be downloaded ({_human(size)})"
        rows.append([entry.key, entry.label, entry.training_set, state])
    _table(rows, ["KEY", "MODEL", "TRAINED ON", "STATE"])
    typer.echo("\nAlso: ase:module.factory (any ASE calculator) and file:PATH (a MACE model file, or what 'softening fix' made).")


def _needed(name: str | None) -> list[RegisteredFile]:
    """Return the files that a benchmark reads, which may be listed under another one in the registry; or those of a group."""
    from helpers import benchmarks, registry

    if name in benchmarks.CATALOGUE:
        sets = benchmarks.module(name).SETS.values()
        return [registry.lookup(key) for key in dict.fromkeys(key for keys in sets for key in keys)]
    return registry.files(name)


@app.command()
def fetch(
    benchmark: Annotated[str | None, typer.Argument(help="A benchmark, or 'weights'. Everything if left out.")] = None,
) -> None:
    """Download and verify the files of a benchmark, of the models, or of everything.

    Files go to the cache folder (SOFTENING_CACHE); a mirror folder (SOFTENING_MIRROR) is looked in first.
    """
    from helpers import registry

    chosen, failed = _needed(benchmark), 0
    for file in chosen:
        try:
            typer.echo(f"ready    {file.key} ({_human(registry.fetch(file.key).stat().st_size)})")
        except registry.RegistryError as error:
            failed += 1
            typer.echo(f"failed   {file.key}\n         {error}", err=True)
    typer.echo(f"{len(chosen) - failed} of {len(chosen)} files are here and verified.")
    if failed:
        raise typer.Exit(1)


def _keep_sets(benchmark: str, made: dict, chosen: list[str]) -> None:
    """Refuse a run of some sets that would replace the table of more."""
    lost = [name for name in made.get("cases", ()) if name not in chosen]
    if lost:
        raise ValueError(
            f"there is a table of {benchmark} with {made['model']} that also has {', '.join(lost)}. "
            "This run would replace it by a smaller one; if that is what you want, say --force."
        )


def _check_compile(asked: str) -> None:
    if asked not in COMPILE:
        raise ValueError(f"--compile {asked}: choose one of {', '.join(COMPILE)}")


class _BareCompile(TyperCommand):
    """A command whose ``--compile`` means on where no choice follows."""

    def parse_args(self, ctx, args):
        """Read the arguments."""
        pairs = itertools.pairwise([*args, ""])
        return super().parse_args(ctx, ["--compile=on" if one == "--compile" and after not in COMPILE else one for one, after in pairs])


@app.command(cls=_BareCompile)
def run(
    benchmark: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model key (see 'softening models'), ase:module.factory or file:PATH.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    sets: Annotated[str | None, typer.Option("--sets", help="Reference sets, separated by commas. All if left out.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Worker processes, or SLURM jobs. By default one per core or GPU.")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Dask cluster: local; tcp://HOST:PORT or FILE.json (one that runs); FILE.yaml (SLURM, see examples)."),
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Load a model file of unknown checksum. A model file can run any code.")] = False,
    compiled: Annotated[str, typer.Option("--compile", help="off, on (minutes first, then a third less time), auto. Alone: on.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Compute again, even if the table is complete or has more sets.")] = False,
) -> None:
    """Run a benchmark with a model and write its table to data/results.

    Can be interrupted at any time: the same command finishes what is missing.
    """
    from helpers import benchmarks, potentials, results, runner
    from helpers.potentials.ase import canonical

    _check_compile(compiled)
    model = canonical(potentials.canonical(model))
    module = benchmarks.module(benchmark)
    split = None if sets is None else [name.strip() for name in sets.split(",") if name.strip()]
    chosen = None if split is None else benchmarks.chosen_sets(module.SETS, split)
    made = results.provenance(benchmark, model) if model in results.models(benchmark) else {}
    if chosen and not force:
        _keep_sets(benchmark, made, chosen)
    where: dict[str, Any] = {"device": device, "processes": processes, "scheduler": scheduler}
    table = runner.run(benchmark, model, sets=chosen, trust=trust, compiled=compiled, force=force, **where)
    path = results.table_path(benchmark, model)
    if not force and made.get("fingerprint") == results.provenance(benchmark, model)["fingerprint"]:
        typer.echo(f"Nothing to do: the table is complete ({made['date']}, {made['device']}); --force computes it again.")
    failed = table[table["status"] == "failed"]
    typer.echo(f"{len(table)} rows, {len(failed)} failed: {path}")
    # As text: a category that does not occur would be counted, 0 times.
    for reason, count in failed["reason"].astype(str).value_counts().head(5).items():
        typer.echo(f"  {count} × {reason}")
    if len(failed) == len(table):
        typer.echo(f"No summary: {'every row failed' if len(table) else 'there were no cases'}.")
        raise typer.Exit(1)
    print_summary(module.summarise, table)


@app.command()
def run_all(
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", help="For the benchmarks; may be repeated. Else all ready ones.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    processes: Annotated[int | None, typer.Option(min=1, help="Worker processes. By default one per core or GPU.")] = None,
) -> None:
    """Run every benchmark with every potential that is ready, and every experiment with those that it names: all tables of the book.

    Can be interrupted at any time: the same command finishes what is missing.
    """
    from helpers import benchmarks, potentials

    for benchmark, key, sets in benchmarks.runs(model or filter(potentials.runnable, potentials.CATALOGUE)):
        typer.echo(f"{benchmark} {key}")
        run(benchmark, key, "auto" if key.startswith("ase:") else device, ",".join(sets) if sets else None, processes)


@app.command()
def ask(
    structure: Annotated[Path, typer.Argument(help="A crystal, of which frames are made; or several structures, of which some are taken.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model key (see 'softening models'), ase:module.factory or file:PATH.")],
    out: Annotated[Path, typer.Option("--out", "-o", callback=_folder, help="New folder for the inputs and their README.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Frames to label.")] = 5,
    code: Annotated[str, typer.Option(help="vasp, qe, aims or extxyz.")] = "vasp",
    kinds: Annotated[
        str, typer.Option(help="Of rattled, strained, hot, displaced, slab, vacancy: a label mends what it shows.")
    ] = "rattled,strained,hot",
    temperature: Annotated[float, typer.Option(min=1.0, help="Of the hottest frames, K: that of what you want to simulate.")] = 1000.0,
    max_atoms: Annotated[int, typer.Option(min=1, help="A small cell is repeated up to so many atoms.")] = 48,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the frames, and of which are drawn.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    trust: Annotated[bool, typer.Option("--trust", help="Load a model file of unknown checksum. A model file can run any code.")] = False,
) -> None:
    """Write DFT inputs of a few frames of your crystal, whose labels 'softening fix' mends a potential with.

    Functional and +U are those that the potential was trained on; the README in the folder says what to run. Takes minutes on a CPU.
    """
    from helpers.reports import ask as asked

    chosen: dict[str, Any] = {"kinds": [kind.strip() for kind in kinds.split(",") if kind.strip()], "temperature_k": temperature}
    where: dict[str, Any] = {"max_atoms": max_atoms, "seed": seed, "device": device, "trust": trust}
    typer.echo(asked.ask(structure, model, n=n, code=code, out=out, **chosen, **where))


@app.command()
def fix(
    model: Annotated[str, typer.Option("--model", "-m", help="Model key (see 'softening models'), ase:module.factory or file:PATH.")],
    out: Annotated[Path, typer.Option("--out", "-o", callback=_folder, help="New folder for the fixed potential and its report.")],
    labels: Annotated[list[Path] | None, typer.Option("--labels", "-l", help="DFT frames, in any format of ASE. May be repeated.")] = None,
    more: Annotated[list[Path] | None, typer.Argument(help="Further files, so that --labels *.xml works.", show_default=False)] = None,
    method: Annotated[str, typer.Option(help="linear, full, partial, low-rank, replay, consolidation or curvature.")] = "linear",
    part: Annotated[str, typer.Option(help="Train these only: readout, last-layer, or how parameters' names begin (a,b).")] = "",
    epochs: Annotated[int, typer.Option(min=1, help="Training: passes over the labels. The chapters use 100, which gain little.")] = 50,
    learning_rate: Annotated[float, typer.Option(help="Training: of the first epoch; by default that of the method.")] = 1e-3,
    test_fraction: Annotated[float, typer.Option(min=0.0, max=0.99, help="Share of the frames held back for the test; 0: no test.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the division into fit and test, and of the training.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    threads: Annotated[int, typer.Option(min=1, help="On a CPU. More than one helps with large cells on an idle machine only.")] = 1,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without frames that cannot be used; the report lists them.")] = False,
    drop_duplicates: Annotated[bool, typer.Option("--drop-duplicates", help="Go on without frames that repeat another.")] = False,
    forces_only: Annotated[bool, typer.Option("--forces-only", help="Ignore energies and stresses of the labels.")] = False,
    trust: Annotated[bool, typer.Option("--trust", help="Load a model file of unknown checksum. A model file can run any code.")] = False,
) -> None:
    """Fix a potential with your own DFT labels, test it on frames held back, and write it with a report.

    The labels are checked first: missing or zero forces, wrong units or sign, energies of another kind, duplicates, unknown elements.
    Can be interrupted at any time: the same command goes on. Afterwards the folder is a model: --model file:FOLDER.
    """
    import torch

    from helpers.potentials import export as exporting
    from helpers.reports import fix as fixing
    from helpers.training.fine_tune import Recipe

    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"--learning-rate {learning_rate:g}: a positive number is wanted; with zero nothing is trained")
    torch.set_num_threads(threads)
    fixed = fixing.fix(
        model,
        [*(labels or []), *(more or [])],
        method=method,
        out=out,
        recipe=Recipe(epochs=epochs, learning_rate=learning_rate, seed=seed, trained=tuple(filter(None, part.split(",")))),
        test_fraction=test_fraction,
        seed=seed,
        device=device,
        trust=trust,
        skip_bad=skip_bad,
        drop_duplicates=drop_duplicates,
        forces_only=forces_only,
        progress=True,
    )
    judged = fixed.scores[fixed.scores["frames"] == fixed.scores["frames"].iloc[0]]
    rows = [[row.stage, f"{row.slope:.3f}", f"{row.mae:.3f}", f"{row.cmae:.3f}"] for row in judged.itertuples()]
    typer.echo(f"{judged['n_frames'].iloc[0]} {judged['frames'].iloc[0]} frame(s):")
    _table(rows, ["", "SLOPE", "FORCE MAE (eV/Å)", "CORRECTED MAE (eV/Å)"])
    for line in [*fixed.advice, *fixed.notes, *(f"left out: {line}" for line in fixed.dropped)]:
        typer.echo(f"- {line}")
    typer.echo(f"potential: {fixed.key} (factor {fixed.potential.scale:.4f})\nreport:    {fixed.folder / 'report.html'}")
    typer.echo(f"elsewhere: {exporting.command(fixed.key, fixed.potential)}")


@app.command()
def mend(
    model: Annotated[str, typer.Argument(help="A graph network (see 'softening models').")],
    out: Annotated[Path, typer.Option("--out", "-o", callback=_folder, help="New folder for the mended potential.")],
    teacher: Annotated[str, typer.Option(help="A stiffer potential, whose answers are the labels.")] = "nequix-oam-1",
    second: Annotated[str, typer.Option(help="Another: labels on which the two disagree are refused.")] = "tensornet-matpes-pbe-2025.1",
    n: Annotated[int, typer.Option("-n", min=10, help="Frames that are made; about a third is refused.")] = 600,
    strict: Annotated[bool, typer.Option("--strict", help="No frame of anything that a benchmark here tests.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of frames and training.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
) -> None:
    """Mend a potential for all materials, with a stiffer one in the place of DFT; minutes. Interrupted, the same command goes on."""
    from helpers import potentials
    from helpers.experiments import universal

    three = [potentials.load(key, device) for key in (model, teacher, second)]
    about = universal.mend(three, out, universal.Protocol(n_frames=n, strict=strict, seed=seed), progress=True)
    typer.echo(f"{about['n_labels']} labels of {teacher}, {about['n_replay']} of {model} itself, for crystals at rest")
    lines = [f"refused: {count} × {why}" for why, count in about["left_out"].items()]
    for stage in ("before", "after"):
        lines.append(f"{stage}, on frames held back: {', '.join(f'{name} {value:.3f}' for name, value in about.get(stage, {}).items())}")
    typer.echo("\n".join([*lines, f"potential: file:{out}"]))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="What 'softening fix' made: file:FOLDER.")],
    to: Annotated[str, typer.Option("--to", help="chgnet, matgl or mace: the model's own package. ase: a Python module.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New file; for matgl a new folder.")],
    trust: Annotated[bool, typer.Option("--trust", help="Load a model file of unknown checksum. A model file can run any code.")] = False,
) -> None:
    """Write a fixed potential in the form that its own package loads: for LAMMPS, torch-sim, or a machine without this project.

    A factor goes into the weights, exactly. What was written is loaded by its package and compared with the fixed potential.
    """
    from helpers.potentials import export as exporting

    differences, use = exporting.export(model, to, out, trust=trust)
    rows = [[what, f"{differences[what]:.1e}", f"{allowed:g}", unit] for what, (allowed, unit) in exporting.TOLERANCES.items()]
    typer.echo(f"Largest differences from {model} on {exporting.N_CRYSTALS} crystals:")
    _table(rows, ["", "FOUND", "ALLOWED", "UNIT"])
    typer.echo(f"written: {out}\n\n{use}")


@app.command()
def labels(
    files: Annotated[list[Path], typer.Argument(help="DFT frames, in any format of ASE; or folders of them.", show_default=False)],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Whose answers stand beside the labels; as for softening fix.")
    ] = "chgnet-0.3.0",
    json_file: Annotated[Path | None, typer.Option("--json", help="New file NAME.json for all that was found.")] = None,
    write: Annotated[Path | None, typer.Option("--write", help="New file NAME.extxyz for the good frames.")] = None,
    trainer: Annotated[str, typer.Option("--for", help="With --write: mace, matgl, sevennet, mattertune or ase.")] = "ase",
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 for duplicates and notes.")] = False,
    forces_only: Annotated[bool, typer.Option("--forces-only", help="Ignore energies and stresses of the labels.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    trust: Annotated[bool, typer.Option("--trust", help="Load a model file of unknown checksum. A model file can run any code.")] = False,
) -> None:
    """Check DFT labels before any training: missing forces, wrong units or signs, energies of another kind, duplicates.

    Exit status: 0 if every frame can be used, 2 if one is bad or nothing could be read, with --strict 1 if there is anything else to know.
    """
    from helpers import potentials, results
    from helpers.potentials import exam
    from helpers.training import label_check
    from helpers.training.labels import listed, read

    if json_file is not None:
        results.check_new(json_file, ".json")
    if write is not None:
        label_check.check_written(write, trainer)
    frames = read(files)
    if forces_only:
        frames = [dataclasses.replace(frame, energy=None, stress=None) for frame in frames]
    potential = potentials.load(model, device, trust=trust)
    notes = exam.examine(potential)
    checked = label_check.check(frames, potential, progress=True)
    rows, notes, counts = checked.rows(), notes + checked.notes, Counter(row["verdict"] for row in checked.rows())
    shown = rows if len(rows) <= MANY else [row for row in rows if row["verdict"] != "good"]
    has = [" ".join(what for what in label_check.ANSWERS if row[what]) for row in shown]
    cells = [[row["file"], str(row["frame"]), row["formula"], what, row["verdict"]] for row, what in zip(shown, has, strict=True)]
    _table(cells, ["FILE", "FRAME", "FORMULA", "HAS", "VERDICT"])
    for line in [*listed(frames, checked.problems), *(f"to know: {note}" for note in notes)]:
        typer.echo(f"- {line}")
    typer.echo(f"{', '.join(f'{n} {verdict}' for verdict, n in counts.items())}; beside {model}")
    if json_file is not None:
        results.write_json({"model": potential.describe()["key"], "frames": rows, "notes": notes}, json_file, sort_keys=False)
    if write is not None:
        for line in label_check.write(checked, trainer, write):
            typer.echo(f"- {line}")
        typer.echo(f"written for {trainer}: {write}")
    raise typer.Exit(2 if counts["bad"] else int(strict and bool(counts["duplicate"] or notes)))


@app.command()
def report(
    model: Annotated[str, typer.Option("--model", "-m", help="Model key (see 'softening models'), ase:module.factory or file:PATH.")],
    out: Annotated[Path, typer.Option("--out", "-o", callback=_folder, help="New folder for the report card.")],
    full: Annotated[bool, typer.Option("--full/--quick", help="All cases of all data here; or a sample, minutes on a laptop.")] = False,
    budget: Annotated[float | None, typer.Option(help="Minutes for each family. What does not fit is listed; run again to go on.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the sample.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    processes: Annotated[int | None, typer.Option(min=1, help="Worker processes. By default one per core on a CPU, one on a GPU.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Load a model file of unknown checksum. A model file can run any code.")] = False,
    against: Annotated[Path | None, typer.Option(help="An earlier card, folder or report.json: both on one page, in OUT/against.")] = None,
    fail_if: Annotated[str, typer.Option(help="Exit status 1 if one holds: 'surfaces<0.9, phonons drop>0.03, any failed>0'.")] = "",
) -> None:
    """Test a potential on every family of properties and write its report card.

    One HTML page: how soft it is family by family, its rank among the book's models, what failed, and whether a factor or
    fine-tuning would fix it. Sets whose data are not here are listed. Can be interrupted at any time: the same command goes on.
    """
    from helpers.reports import gate, report_card

    # Mistakes are told before anything is computed.
    before = gate.read(against) if against else None
    if fail_if:
        gate.parse(fail_if, before is not None)
    card = report_card.make(
        model, out, full=full, seed=seed, device=device, processes=processes, budget_minutes=budget, trust=trust, progress=True
    )
    rows = [
        [lane["name"], lane["against"], str(lane["n"]), f"{lane['slope']:.2f}", f"{lane['inverse_slope']:.2f}", lane["verdict"]]
        for lane in card.lanes.to_dict("records")
    ]
    if rows:
        _table(rows, ["FAMILY", "AGAINST", "VALUES", "SLOPE", "INVERSE SLOPE", "VERDICT"])
    for entry in card.failures.itertuples():
        typer.echo(
            f"failed:  {entry.cases} × {entry.benchmark}: {entry.reason}" + (f" (and {entry.kinds - 1} like it)" if entry.kinds > 1 else "")
        )
    for entry in card.not_run.itertuples():
        typer.echo(f"not run: {entry.benchmark} {entry.set} ({entry.cases} cases): {entry.reason}; {entry.command}")
    typer.echo(f"recommendation: {card.recommendation}")
    for reason in card.reasons:
        typer.echo(f"- {reason}")
    typer.echo(f"report: {card.folder / 'report.html'}")
    found = gate.read(card.folder)
    failed = gate.failing(found, fail_if, before) if fail_if else []
    if before:
        gate.side_by_side(found, before, out / "against", failed)
        typer.echo(f"beside the earlier card: {out / 'against' / 'report.html'}")
    for line in failed:
        typer.echo(f"gate: {line}", err=True)
    raise typer.Exit(1 if failed else 0)


@app.command()
def check(
    structure: Annotated[Path, typer.Argument(help="A crystal, in any format of pymatgen or ASE.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model key (see 'softening models'), ase:module.factory or file:PATH.")],
    out: Annotated[Path, typer.Option("--out", "-o", callback=_folder, help="New folder for the page and the probes.")],
    against: Annotated[str, typer.Option(help="Stiffer potentials, separated by commas; else those that are here.")] = "",
    asked: Annotated[str, typer.Option("--for", help="Of md, phonons, elasticity, surfaces, vacancy.")] = "md,phonons,elasticity",
    budget: Annotated[float | None, typer.Option(help="Minutes. More afford more probes; what does not fit is named.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")] = "auto",
    processes: Annotated[int | None, typer.Option(min=1, help="Worker processes. By default one per core on a CPU, one on a GPU.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Load a model file of unknown checksum. A model file can run any code.")] = False,
) -> None:
    """Tell how soft a potential will be for your crystal before any DFT, from slopes against stiffer potentials.

    Per property an expected scale with its 90 % interval, or why it is not known, and one recommendation. Can be interrupted at any
    time: the same command goes on.
    """
    from helpers.reports import check as checking
    from helpers.reports import check_page

    stiff, wanted = ([name.strip() for name in text.split(",") if name.strip()] for text in (against, asked))
    where: dict[str, Any] = {"device": device, "processes": processes, "trust": trust}
    found = checking.check(structure, model, out, against=stiff, asked=wanted, budget_minutes=budget, progress=True, **where)
    _frame(f"{found.about['formula']} with {model}", check_page.answer_table(found))
    typer.echo(f"\nrecommendation: {found.recommendation}" + (f"\n  {found.command}" if found.command else ""))
    for line in [*found.reasons, *found.notes]:
        typer.echo(f"- {line}")
    typer.echo(f"report: {found.folder / 'report.html'}")


@app.command(cls=_BareCompile)
def bench(
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="Key; may be repeated. Else CHGNet, MatGL's and MACE.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, …: every potential on it, by number and size of structures.")] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="With --device: no measurement is begun after these.")] = 20.0,
    quick: Annotated[bool, typer.Option("--quick", help="A few structures, no threads: minutes, also beside other work.")] = False,
    route: Annotated[list[str] | None, typer.Option("--route", "-r", help="Only this way (ase, …) and ours; may be repeated.")] = None,
    compiled: Annotated[str, typer.Option("--compile", help="The compiled network, too: on, off, auto (not if --quick or -r).")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", "-o", callback=_folder, help="For the tables; else data/results.")] = None,
) -> None:
    """Measure how fast energies, forces and relaxations are here, beside other packages' ways to compute them with the same model.

    With --device: every potential that is ready on that device, what matters first. Can be interrupted at any time: the same command goes
    on. Other programs on the machine disturb. Packages that are not installed are listed (make env-bench has them all).
    """
    from helpers import results
    from helpers.speed import compare, devices, routes

    _check_compile(compiled)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    if device is not None:
        settings = devices.QUICK if quick else devices.Protocol()
        name, keys, in_time = devices.record(device, model, out, settings, minutes=minutes, routes=route, progress=True)
        for words, shown in devices.told(compare.read(keys, out, name)).items() if keys else ():
            _frame(words, shown)
        typer.echo(f"\n{len(keys)} tables: {results.results_dir(out) / name}")
        if not in_time:
            typer.echo(f"The {minutes:g} minutes are over: the same command goes on.")
        if not keys:
            raise typer.Exit(1)
        return
    keys = model or list(compare.MODELS)
    protocol = compare.QUICK if quick else compare.Protocol()
    protocol = dataclasses.replace(protocol, compiled=protocol.compiled and not route if compiled == "auto" else compiled == "on")
    for key in keys:
        routes.chosen(key, route)
    for key in keys:
        compare.record(key, out, protocol, routes=route, progress=True)
    if not quick and not route:
        compare.remember(keys, out)
    summary = compare.summarise(compare.read(keys, out))
    for key in keys:
        for kind in summary.loc[summary["model"] == key, "kind"].unique():
            _frame(f"{key}, {kind}", compare.readable(summary[summary["model"] == key], kind))


@app.command()
def status() -> None:
    """Show which results exist, how they were made, and which runs are unfinished."""
    from helpers import benchmarks, results

    rows = []
    for benchmark in benchmarks.CATALOGUE:
        for key in results.models(benchmark):
            made = results.provenance(benchmark, key)
            rows.append(
                [benchmark, key, str(made["rows"]), str(made["failed_rows"]), f"{made['core_seconds']:.0f} s", made["device"], made["date"]]
            )
    _table(rows, ["BENCHMARK", "MODEL", "ROWS", "FAILED", "CORE TIME", "DEVICE", "DATE"])
    for folder, shards in Counter(path.parent for path in results.runs_dir().glob("*/*/*.parquet")).items():
        typer.echo(f"unfinished: {folder.parent.name} {folder.name} ({shards} shards); run it again to finish")


def expected_errors() -> tuple[type[BaseException], ...]:
    """Return the errors that are told in one line, of what has been imported."""
    there = [(sys.modules.get(f"helpers.{module}"), name) for module, name in ERRORS.items()]
    return (KeyError, ValueError, OSError, *(getattr(module, name) for module, name in there if hasattr(module, name)))


def main() -> None:
    """Run the command line; an expected error is one line on the standard error and exit status 2, an interruption one line and 130."""
    try:
        app(standalone_mode=True)
    except Exception as error:
        if not isinstance(error, expected_errors()):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        typer.echo(f"softening: {text}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != 130:  # typer's status after an interruption
            raise
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
