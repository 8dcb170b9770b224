"""Where a chapter runs, and how much of it: the one switch that every chapter has near its top.

``results``
    the committed tables alone; the live check is left out, and says so.
``sample``
    the live check recomputes a few cases and compares them with the table, as the book does while it builds.
``everything``
    all cases of the chapter's benchmarks, by the code of ``softening run``: data are fetched and verified, shards are kept, the same
    cell run again goes on after an interruption, and the tables land in ``data/results``, where every chapter finds them.
"""

from __future__ import annotations

import html
import os
import string
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import myst_nb
import numpy as np
import pandas as pd

from helpers import OTHER_FUNCTIONAL, benchmarks, figures, potentials, registry, results, runner, scoreboard

RUNS = ("results", "sample", "everything")
FEW = ("chgnet-0.3.0", "tensornet-matpes-pbe-2025.1", "m3gnet-mp-2021.2.8")


@dataclass(frozen=True)
class Chapter:
    """What :func:`begin` returns; Jupyter and the book show it by itself."""

    run: str  # one of :data:`RUNS`
    names: tuple[str, ...]  # its benchmarks
    key: str  # the potential that it computes with
    device: str  # in words
    packages: str  # the versions of what computes
    costs: tuple[str, ...]  # how much the live part and everything are, a line for each benchmark
    guests: tuple[str, ...] = ()  # models of the catalogue that not every chapter shows, and this one does
    named: dict[str, object] = field(default_factory=dict, repr=False, compare=False)  # what :meth:`glue` has given names

    def live_check(
        self, benchmark: str, key: str, *, sets: Iterable[str] | None = None, protocol: object | None = None, limit: int | None = None
    ) -> pd.DataFrame:
        """Recompute some cases and compare them with the table, as :func:`helpers.runner.live_check`; with ``results`` only read it.

        As there. If nothing is recomputed, ``value`` repeats ``committed``, and a line says so. A potential without a table has nothing
        to be compared with: its sample (:meth:`read`) comes back, without differences, or the check is of the model that stands in
        for it (:meth:`own`).
        """
        if key not in results.models(benchmark):
            table, _ = self.own(benchmark)
            if table["model"].iloc[0] == key:
                print(f"{key} has no table of {benchmark} to be compared with: a sample was computed.")
                return table.assign(committed=np.nan, was="", difference=np.nan)
            key = table["model"].iloc[0]
        if self.run != "results":
            start = time.perf_counter()
            checked = runner.live_check(benchmark, key, sets=sets, protocol=protocol, limit=limit)
            took = duration(time.perf_counter() - start)
            print(f"recomputed: {counted(checked['case'].nunique(), 'case')}, {counted(len(checked), 'value')}, {took}")
            return checked
        table = results.read(benchmark, key)
        module = benchmarks.module(benchmark)
        chosen = benchmarks.chosen_sets(module.SETS, module.LIVE if sets is None else sets)
        table = table[table["set"].isin(chosen)].reset_index(drop=True)
        if table.empty:
            raise runner.LiveCheckError(f"the table of {benchmark} with {key} has nothing of {', '.join(chosen)}.")
        print('NOT RECOMPUTED (RUN = "results"): what is called live below repeats the table.')
        return table.assign(committed=table["value"], was=table["status"], difference=0.0)

    def read(self, benchmark: str, *, sets: Collection[str] = ()) -> pd.DataFrame:
        """Return the tables of the models that are :func:`~helpers.potentials.at_home`, of its guests, and of the chapter's potential.

        One without a table of its own, as a reader's, is computed on the sample of a report card (:func:`helpers.benchmarks.sample`) where
        ``RUN`` allows it. The sample is kept, so that it is computed once, apart from the tables of the book.
        """
        table = results.read(benchmark, self.models(benchmark), sets=sets)
        if self.key in results.models(benchmark) or self.run == "results" or benchmark in benchmarks.EXPERIMENTS:
            return table
        potential, cases = potentials.load(self.key), benchmarks.sample(benchmark)
        own = runner.run_cases(benchmark, potential, cases, base=results.runs_dir() / "samples").table
        print(f'{self.key}: {len(cases)} cases of {benchmark}, a sample. RUN = "everything" computes all.')
        return pd.concat([table, own[own["set"].isin(sets)] if sets else own], ignore_index=True)

    def models(self, benchmark: str) -> list[str]:
        """Return the models with a table that the chapter shows."""
        return potentials.at_home(results.models(benchmark), {self.key, *self.guests})

    def few(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of the models that a first figure shows: two of the paper's, a stiffer one, and the chapter's own."""
        return table[table["model"].isin({*FEW, self.key})]

    def own(self, benchmark: str, table: pd.DataFrame | None = None) -> tuple[pd.DataFrame, str]:
        """Return the rows of the chapter's potential and its name; where it has none, those of another model, which a line says.

        Where something is trained few potentials have a table. The first model in the order of the figures stands in. The table has a
        column ``model``; by default it is what :meth:`read` returns. The name is glued as ``{benchmark}_model``, for the sentences that
        quote the rows.
        """
        table = self.read(benchmark) if table is None else table
        key = self.key if (table["model"] == self.key).any() else figures.in_order(table["model"])[0]
        name = figures.label(key)
        if key != self.key:
            how = f" To make them: softening run {benchmark} --model {self.key}" if benchmark in benchmarks.CATALOGUE else ""
            print(f"{benchmark}: these are numbers of {name}; there are none of {figures.label(self.key)} yet.{how}")
        self.glue(**{f"{benchmark}_model": name})
        return table[table["model"] == key], name

    def board(self, *numbers: str, caption: str = "", name: str = "{model}_verdicts") -> figures.ShownTable:
        """Show figures of the paper (``2a``, …) beside ours (:func:`helpers.scoreboard.readable`); name the verdicts for the text.

        The caption is added to what every such table says; ``name`` is a template, as for :meth:`glue`; also ``{figure}``.
        """
        board = scoreboard.table(*numbers)
        told = board[["figure", "key"]].drop_duplicates().rename(columns={"key": "model"})
        told["verdict"] = [scoreboard.told(board, *line) for line in told.itertuples(index=False)]
        self.glue(told, "verdict", name)
        words = f"Fig. {' and '.join(numbers)} of the paper and ours; * is digitised. {caption}"
        lines = scoreboard.readable(board).reset_index().set_index(["model", "quantity"])
        on = lines["ours is on"]
        lines["ours is on"] = on.where(on != on.shift(), "the same")
        lines = lines.drop(columns="figure") if len(numbers) == 1 else lines
        table = figures.show_table(lines, words.strip(), self.footer(*board["benchmark"]))
        return replace(table, folded=tuple(np.flatnonzero(board["ours"].isna()).tolist()))

    def show(self, figure: object, alt: str, caption: str, *of: str) -> figures.Shown:
        """Show a figure (:func:`helpers.figures.show`) with the footer of what it is of: benchmarks, or sets of them (``phonons/csf``).

        By default it is of the chapter's first benchmark. Where the DFT has another functional (:func:`helpers.benchmarks.functional`),
        figure and caption say so.
        """
        of = of or self.names[:1]
        if note := _note(of):
            figures.mark(figure, note)
        return figures.show(figure, alt, note + caption, self.footer(*of))

    def summary(self, table: pd.DataFrame, columns: Mapping, caption: str, *of: str, **options: Any) -> figures.ShownTable:
        """Show a table of numbers (:func:`helpers.figures.summary`) with the footer and the sign of what it is of, as :meth:`show`.

        The sign stands on the names of such sets, or, where no set is named, above the names of the rows.
        """
        of = of or self.names[:1]
        note = _note(of)
        shown = figures.summary(table, columns, note + caption, self.footer(*of), **options)
        frame = shown.frame.rename(
            index={name: f"{name} {OTHER_FUNCTIONAL}" for _, _, name in (which.partition("/") for which in of) if name and note}
        )
        if note and frame.index.equals(shown.frame.index):
            frame.index.names = [f"{frame.index.names[0]} {OTHER_FUNCTIONAL}", *frame.index.names[1:]]
        return replace(shown, frame=frame)

    def footer(self, *names: str) -> str:
        """Return where tables come from (:func:`helpers.figures.caption`), by default the chapter's first; models in the figures' order."""
        chosen = dict.fromkeys(name.partition("/")[0] for name in names or self.names[:1])
        return figures.caption(results.provenance(name, key) for name in chosen for key in figures.in_order(self.models(name)))

    def glue(self, table: pd.DataFrame | None = None, columns: str = "", name: str = "{model}_{column}", **values: object) -> None:
        """Give numbers names by which the text quotes them.

        ValueError if the table lacks a column, two numbers would have one name, or something is neither number, text nor shown figure.

        ``table``: one line per thing that has numbers. A model that has none there gets no names.
        ``columns``: columns to quote, separated by spaces; ``other=column`` quotes one under another name.
        ``name``: template: ``{column}``, and columns or levels of the index of the table. ``{model}`` is the model's short name in the
            catalogue; lines of other models are passed over, but for the chapter's own potential, which is ``own`` then.
        ``**values``: further names, each with its number or text, or with what :meth:`show` and :meth:`summary` return. ``opening`` is the
            figure that stands above everything else.
        """
        if table is not None:
            table = table.reset_index() if any(table.index.names) else table
            fields = [field for _, field, _, _ in string.Formatter().parse(name) if field and field != "column"]
            quoted = {name: column or name for name, _, column in (word.partition("=") for word in columns.split())}
            missing = [column for column in (*quoted.values(), *fields) if column not in table]
            if missing:
                raise ValueError(f"the table has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
            for line in table.to_dict("records"):
                words = {field: line[field] for field in fields}
                if "model" in words:
                    key = words["model"]
                    words["model"] = potentials.CATALOGUE[key].short if key in potentials.CATALOGUE else "own" if key == self.key else ""
                    if not words["model"]:
                        continue
                for called, column in quoted.items():
                    wanted = name.format(**words, column=called)
                    if wanted in values:
                        raise ValueError(f"two numbers would be called {wanted!r}; let the template {name!r} name what tells them apart")
                    values[wanted] = line[column]
        for wanted, value in values.items():
            if not np.isscalar(value) and not isinstance(value, figures.Shown | figures.ShownTable):
                raise ValueError(f"{wanted} is neither number, text nor shown figure but a {type(value).__name__}")
            value = value.item() if isinstance(value, np.generic) else value
            if self.named.get(wanted) is not value and not (np.isscalar(value) and self.named.get(wanted) == value):  # or the book warns
                self.named[wanted] = value
                myst_nb.glue(wanted, value, display=False)

    def _lines(self) -> list[tuple[str, str]]:
        runs = ", ".join(f"<b>{name}</b>" if name == self.run else name for name in RUNS)
        return [("Runs on", html.escape(f"{self.device}; {self.packages}")), ("RUN", runs), *(("Cost", html.escape(c)) for c in self.costs)]

    def _repr_html_(self) -> str:
        return f'<div class="where">{"".join(f"<div><b>{name}:</b> {text}</div>" for name, text in self._lines())}</div>'

    def __repr__(self) -> str:
        return "\n".join([f"runs on: {self.device}; {self.packages}", f"RUN: {self.run}", *self.costs])


def begin(
    run: str, names: str | Sequence[str], key: str, *, guests: str | Sequence[str] = (), device: str = "auto", processes: int | None = None
) -> Chapter:
    """Say where a chapter runs and what it costs; with ``everything``, first compute its tables anew.

    The benchmarks (:data:`helpers.benchmarks.CATALOGUE`) are recomputed with the potential; guests are models that the chapter shows beside
    those of every chapter (:attr:`helpers.potentials.Entry.guest`). Device and processes are for ``everything``, as for
    :func:`helpers.runner.run`. The potential's name is glued as ``model``, for the sentences that quote what is computed live. ValueError
    if ``run`` is none of :data:`RUNS`; KeyError if a benchmark is unknown; PotentialError if the potential or a guest is unknown;
    RegistryError if ``everything`` is asked for and a file cannot be had; it says which one, and where to put it; RunError as for
    :func:`helpers.runner.run`.
    """
    if run not in RUNS:
        raise ValueError(f"RUN = {run!r}: give one of {', '.join(map(repr, RUNS))}{registry.nearest(run, RUNS)}")
    names, guests = ((given,) if isinstance(given, str) else tuple(given) for given in (names, guests))
    for name in names:
        benchmarks.module(name)
    key, guests = potentials.check(key), tuple(map(potentials.check, guests))
    where = potentials.resolve_device(device)
    if run == "everything":
        for name in names:
            _compute(name, key, device, processes)
    versions = results.package_versions()
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "ase"))
    here = Chapter(run, names, key, results.device_name(str(where)), packages, tuple(_cost(name, key) for name in names), guests)
    here.glue(model=figures.label(key))
    return here


def _note(of: Iterable[str]) -> str:
    """Return what a caption says of DFT with another functional than PBE; nothing if there is none."""
    known = [which for which in of if which.partition("/")[0] in benchmarks.CATALOGUE]  # a table of speed has no DFT
    functional = ", ".join(dict.fromkeys(filter(None, map(benchmarks.functional, known))))
    trained = "PBE, some oxides and fluorides with +U" if "+U" in functional else "PBE"
    return f"{OTHER_FUNCTIONAL} DFT: {functional}, training data: {trained}. " if functional else ""


def _made(name: str, key: str) -> dict | None:
    """Return how the table of a benchmark was made, or None if there is none."""
    return results.provenance(name, key) if key in results.models(name) else None


def _compute(name: str, key: str, device: str, processes: int | None) -> None:
    """Run a benchmark in full. A table is not replaced by one of fewer sets for want of a file."""
    module, made = benchmarks.module(name), _made(name, key)
    for chosen in made["cases"] if made else module.SETS:
        for file in module.SETS.get(chosen, ()):
            registry.fetch(file)
    try:
        table = runner.run(name, key, device=device, processes=processes)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what is done is kept. Run this cell again to go on.")
        raise
    if made and made["fingerprint"] == results.provenance(name, key)["fingerprint"]:
        again = f"softening run {name} --model {key} --force"
        print(f"{name}: the table was complete ({made['date']}, {made['device']}). To compute it again: {again}")
    print(f"{name}: {len(table)} rows, {(table['status'] == 'failed').sum()} failed: {results.table_path(name, key)}")


def _cost(name: str, key: str) -> str:
    """Return how much the live part and everything are, from the table's own record."""
    made = _made(name, key)
    if made is None:
        return f"{name}: no table of {key} yet; the time is not known"
    total = sum(made["cases"].values())
    live = made["cases"].get(benchmarks.module(name).LIVE, 0)
    cores = os.cpu_count() or 1
    # Shards keep all cores busy; the time of the live part does not follow from the table, because cases differ in size.
    whole = f"{duration(made['core_seconds'] / cores)} on {counted(cores, 'core')} such as made the table ({made['device']})"
    part = "one case" if live == 1 else f"some of {live} cases" if live else "no case"
    return f"{name}: live, {part}, in the time that stands above; everything, {counted(total, 'case')}, {whole}"


def counted(number: int, what: str) -> str:
    """Return a number with what is counted, in the singular where it is one: ``1 case``, ``3 cases``."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"
