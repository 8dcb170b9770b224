"""The switch of the chapters: committed results, a live sample, or everything; on a few surfaces and an analytic potential."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from conftest import EMT_KEY as EMT
from matplotlib.text import Text

from helpers import benchmarks, chapter, figures, potentials, registry, results, runner, scoreboard
from helpers.benchmarks import surfaces
from helpers.figures import style


@pytest.fixture
def data(data, monkeypatch):
    """A private data folder, and only surfaces of three metals that EMT knows, in shards of one."""
    whole = surfaces.cases
    few = [case for case in whole(None, ["tran-rebuilt"]) if case.material in ("Cu", "Al", "Ag")][:3]
    monkeypatch.setattr(surfaces, "cases", lambda protocol=None, sets=None: few)
    # The other sets need files; these cases do not.
    monkeypatch.setattr(surfaces, "SETS", {"tran-rebuilt": ()})
    monkeypatch.setattr(runner, "shards", lambda cases, *_: [[case] for case in cases])
    return data


@pytest.mark.slow
def test_everything_writes_the_table_that_the_chapters_read(data, capsys):
    here = chapter.begin("everything", "surfaces", EMT, device="cpu", processes=1)
    table = results.read("surfaces", EMT)
    assert table["case"].nunique() == 3
    assert (table["status"] == "ok").all()
    assert str(results.table_path("surfaces", EMT)) in capsys.readouterr().out
    checked = here.live_check("surfaces", EMT)
    assert len(checked) == len(table)
    assert f"recomputed: 3 cases, {len(checked)} values" in capsys.readouterr().out
    assert checked["difference"].abs().max() < 1e-6
    # The record of the table says what everything costs.
    assert any("live, some of 3 cases" in line and "everything, 3 cases" in line for line in here.costs)


def test_everything_goes_on_after_an_interruption(data, monkeypatch, capsys):
    work, done = surfaces.run, []

    def stops(potential, cases, protocol):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(cases[0].name)
        return work(potential, cases, protocol)

    monkeypatch.setattr(surfaces, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        chapter.begin("everything", "surfaces", EMT, device="cpu", processes=1)
    assert "Run this cell again to go on" in capsys.readouterr().out
    assert not results.table_path("surfaces", EMT).exists()
    again = []
    monkeypatch.setattr(surfaces, "run", lambda potential, cases, protocol: again.append(cases[0].name) or work(potential, cases, protocol))
    chapter.begin("everything", "surfaces", EMT, device="cpu", processes=1)
    assert len(again) == 1, "two of three shards were kept"
    assert not set(again) & set(done)


def test_a_complete_table_is_kept_and_the_cell_says_how_to_compute_it_again(data, monkeypatch, capsys):
    runner.run("surfaces", EMT, device="cpu", processes=1, progress=False)
    monkeypatch.setattr(surfaces, "run", lambda *_: pytest.fail("computed again"))
    chapter.begin("everything", "surfaces", EMT, device="cpu", processes=1)
    assert f"softening run surfaces --model {EMT} --force" in capsys.readouterr().out


def test_a_table_is_not_replaced_by_one_of_fewer_sets(data, monkeypatch):
    """Its sets need files; without them nothing is computed, and the error names the file."""
    runner.run("surfaces", EMT, device="cpu", processes=1, progress=False)
    before = results.table_path("surfaces", EMT).read_bytes()
    needed = next(file.key for file in registry.files("surfaces"))
    monkeypatch.setattr(surfaces, "SETS", {"tran-rebuilt": (needed,)})
    monkeypatch.setenv("SOFTENING_OFFLINE", "1")
    monkeypatch.setenv("SOFTENING_CACHE", str(data / "cache"))
    monkeypatch.delenv("SOFTENING_MIRROR", raising=False)
    monkeypatch.setattr(surfaces, "run", lambda *_: pytest.fail("computed"))
    with pytest.raises(registry.RegistryError, match=needed):
        chapter.begin("everything", "surfaces", EMT, device="cpu", processes=1)
    assert results.table_path("surfaces", EMT).read_bytes() == before


def test_results_computes_nothing_and_says_so(data, monkeypatch, capsys):
    runner.run("surfaces", EMT, device="cpu", processes=1, progress=False)
    expected = runner.live_check("surfaces", EMT)
    monkeypatch.setattr(surfaces, "run", lambda *_: pytest.fail("computed"))
    here = chapter.begin("results", "surfaces", EMT, device="cpu")
    checked = here.live_check("surfaces", EMT)
    assert "NOT RECOMPUTED" in capsys.readouterr().out
    assert set(expected.columns) <= set(checked.columns), "cells below find the same columns"
    assert (checked["value"] == checked["committed"]).all()


def test_results_of_nothing_are_refused(data):
    runner.run("surfaces", EMT, device="cpu", processes=1, progress=False)
    here = chapter.begin("results", "surfaces", EMT, device="cpu")
    surfaces.SETS["jarvis-binaries"] = ()
    with pytest.raises(runner.LiveCheckError, match="nothing of jarvis-binaries"):
        here.live_check("surfaces", EMT, sets=["jarvis-binaries"])
    with pytest.raises(KeyError, match="unknown set"):
        here.live_check("surfaces", EMT, sets=["nosuch"])


@pytest.mark.slow
def test_a_sample_that_differs_is_refused(data, monkeypatch):
    runner.run("surfaces", EMT, device="cpu", processes=1, progress=False)
    work = surfaces.run
    monkeypatch.setattr(surfaces, "run", lambda *given: work(*given).assign(value=lambda table: table["value"] + 1))
    with pytest.raises(runner.LiveCheckError):
        chapter.begin("sample", "surfaces", EMT, device="cpu").live_check("surfaces", EMT)


def test_the_box_says_where_and_what(data):
    here = chapter.begin("sample", ("surfaces",), EMT, device="cpu")
    shown = here._repr_html_()
    assert results.machine() in repr(here)
    assert "<b>sample</b>, everything" in shown
    assert "no table of ase:ase.calculators.emt.EMT yet" in shown


@pytest.mark.parametrize("run", ["all", "", "Sample"])
def test_another_word_is_refused(run):
    with pytest.raises(ValueError, match="give one of 'results', 'sample', 'everything'"):
        chapter.begin(run, "surfaces", EMT)


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (50, "50 s"), (150, "2.5 min"), (3000, "50 min"), (9000, "2.5 h")])
def test_durations_are_readable(seconds, words):
    assert chapter.duration(seconds) == words


@pytest.fixture
def glued(monkeypatch):
    """What a chapter has named, by name."""
    found = {}

    def glue(name, value, display):
        assert found.get(name) != value, f"{name} is named twice: a warning, which fails the book"
        found[name] = value

    monkeypatch.setattr(chapter.myst_nb, "glue", glue)
    return found


def test_numbers_are_named_by_model_column_and_whatever_else(glued):
    here = chapter.begin("results", "surfaces", "file:my-fix", device="cpu")
    assert glued.pop("model") == "Your model (my-fix)"
    table = pd.DataFrame(
        {"model": ["chgnet-0.3.0", "sevennet-0", "file:my-fix", "MACE (others)"], "metal": "Cu", "slope": [0.8, 1.0, 0.9, 0.7], "n": 3}
    )
    here.glue(table, "slope count=n", "{model}_{metal}_{column}", share=np.float32(0.5))
    assert glued == {f"{name}_Cu_count": 3 for name in ("chgnet", "sevennet", "own")} | {
        "share": 0.5,
        "chgnet_Cu_slope": 0.8,
        "sevennet_Cu_slope": 1.0,
        "own_Cu_slope": 0.9,
    }
    assert not any(isinstance(value, np.generic) for value in glued.values())
    glued.clear()
    here.glue(table.set_index(["metal", "model"]), "slope")
    assert set(glued) == {"chgnet_slope", "sevennet_slope", "own_slope"}


def test_numbers_that_cannot_be_told_apart_or_are_not_there_are_refused(glued):
    here = chapter.begin("results", "surfaces", EMT, device="cpu")
    glued.clear()
    table = pd.DataFrame({"model": "chgnet-0.3.0", "metal": ["Cu", "Al"], "slope": [0.8, 0.9]})
    with pytest.raises(ValueError, match="two numbers would be called 'chgnet_slope'"):
        here.glue(table, "slope")
    with pytest.raises(ValueError, match="no column r2, set"):
        here.glue(table, "slope r2", "{set}_{column}")
    with pytest.raises(ValueError, match="share is neither number, text nor shown figure but a Series"):
        here.glue(share=table["slope"])
    assert not glued


def test_a_chapter_shows_its_guests_and_names_them_in_its_footers():
    guest = "nequix-mp-1"
    alone, together = (chapter.begin("results", "strained_cells", "chgnet-0.3.0", guests=guests) for guests in ((), (guest,)))
    assert set(together.read("strained_cells")["model"]) - set(alone.read("strained_cells")["model"]) == {guest}
    assert [figures.label(guest) in here.footer("strained_cells") for here in (alone, together)] == [False, True]


def test_what_has_another_functional_is_marked_where_it_stands():
    here = chapter.begin("results", ("phonons", "surfaces"), "chgnet-0.3.0")
    lines = pd.DataFrame({"model": ["chgnet-0.3.0"] * 2, "set": ["slabs-109", "jarvis-binaries"], "slope": [0.7, 0.8]})
    reason = "† DFT: PBEsol, training data: PBE. Words."

    def words(shown):
        return [text.get_text() for text in shown.figure.findobj(Text)]

    one = here.show(style.blank(2), "alt", "Words.")
    assert one.caption == reason
    assert "† DFT: PBEsol, training data: PBE. " in words(one)
    assert here.show(style.blank(2), "alt", "Words.", "throughput").caption == "Words.", "a table of speed has no DFT"
    plotly = here.show(go.Figure(), "alt", "Words.", "phonons/csf")
    assert (plotly.caption, plotly.figure.layout.annotations[0].text) == (reason, "† DFT: PBEsol, training data: PBE. ")
    for same in ("phonons/phonondb-pbe", "surfaces"):
        assert here.show(style.blank(2), "alt", "Words.", same).caption == "Words."
        assert "†" not in repr(here.summary(lines, {"s": "slope"}, "Words.", same))
    # Where rows name the set, its rows are marked, else all.
    sets = here.summary(lines, {"s": "slope"}, "Words.", "surfaces/jarvis-binaries", rows=["set", "model"])
    assert sets.frame.index.get_level_values("set").tolist() == ["slabs-109", "jarvis-binaries †"]
    assert sets.caption.startswith("† DFT: OptB88vdW")
    assert here.summary(lines, {"s": "slope"}, "Words.", "phonons").frame.index.name == "model †"
    hops = here.show(style.blank(2), "alt", "Words.", "migration/hops").caption
    assert hops == "† DFT: GGA without +U, training data: PBE, some oxides and fluorides with +U. Words."
    with pytest.raises(KeyError, match="unknown set"):
        here.show(style.blank(2), "alt", "Words.", "phonons/phonodb")


def test_what_a_chapter_does_not_know_is_asked_back():
    with pytest.raises(potentials.PotentialError, match=r"unknown model 'nequix-mp1'.*Did you mean nequix-mp-1\?"):
        chapter.begin("results", "surfaces", "chgnet-0.3.0", guests="nequix-mp1")
    with pytest.raises(potentials.PotentialError, match=r"Did you mean chgnet-0\.3\.0\?"):
        chapter.begin("results", "surfaces", "chgnet-0.3")
    with pytest.raises(KeyError, match="unknown benchmark 'surface'"):
        chapter.begin("results", "surface", "chgnet-0.3.0")


def test_another_model_stands_in_for_one_without_rows_and_is_named(glued, capsys):
    here = chapter.begin("results", "surfaces", "file:my-fix", device="cpu")
    table = pd.DataFrame({"model": ["chgnet-0.2.0", "sevennet-0", "chgnet-0.3.0"], "slope": [0.7, 1.0, 0.8]})
    rows, name = here.own("mending", table)
    assert rows["slope"].to_list() == [0.8]
    assert name == glued["mending_model"] == "CHGNet 0.3.0"
    said = capsys.readouterr().out
    assert "mending: these are numbers of CHGNet 0.3.0; there are none of Your model (my-fix) yet" in said
    assert "softening run mending --model file:my-fix" in said
    here.own("mending", table)  # another cell of the same chapter
    capsys.readouterr()
    here.own("slopes", table)
    assert "softening run" not in capsys.readouterr().out, "there is no benchmark of that name"
    rows, name = here.own("mending", pd.concat([table, pd.DataFrame({"model": ["file:my-fix"], "slope": [0.9]})]))
    assert rows["slope"].to_list() == [0.9]
    assert name == glued["mending_model"] == "Your model (my-fix)"
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_the_live_check_of_a_training_is_of_the_model_that_stands_in(data, monkeypatch, capsys):
    runner.run("surfaces", EMT, device="cpu", processes=1, progress=False)
    monkeypatch.setattr(chapter.Chapter, "read", lambda self, name: results.read(name))  # as for an experiment: no sample
    checked = chapter.begin("sample", "surfaces", "file:my-fix", device="cpu").live_check("surfaces", "file:my-fix")
    assert set(checked["model"]) == {EMT}
    assert checked["difference"].abs().max() < 1e-6
    said = capsys.readouterr().out
    assert "these are numbers of EMT of ASE" in said
    assert "recomputed: 3 cases" in said


@pytest.mark.slow
def test_a_board_shows_its_figures_and_names_their_verdicts(glued):
    here = chapter.begin("results", "surfaces", EMT, device="cpu")
    shown = here.board("2a", "2b", caption="Beside.", name="{model}_{figure}")
    board = scoreboard.table("2a", "2b")
    assert len(shown.frame) == len(board) > 0
    assert set(board["figure"]) == {"2a", "2b"}
    assert shown.caption == "Fig. 2a and 2b of the paper and ours; * is digitised. Beside."
    assert glued["chgnet_2b"] == scoreboard.told(board, "2b", "chgnet-0.3.0")
    assert glued["m3gnet_2b"] != glued["m3gnet_tf_2a"]


@pytest.mark.slow
def test_a_potential_without_a_table_is_computed_on_a_sample_once(data, monkeypatch, capsys):
    """The tables of the book hold one model; the reader's own is another."""
    runner.run("surfaces", EMT, device="cpu", processes=1, progress=False)
    book = results.read("surfaces", EMT)
    own = "ase:helpers.potentials.untrained.nothing"
    stiffer = potentials.load(EMT).scaled(1.25)
    stiffer.key = own
    monkeypatch.setattr(chapter.potentials, "load", lambda *_, **__: stiffer)
    monkeypatch.setattr(benchmarks, "sample", lambda name: surfaces.cases()[:2])
    here = chapter.begin("sample", "surfaces", own, device="cpu")
    table = here.read("surfaces")
    sample = table[table["model"] == own]
    assert (table["model"] == EMT).sum() == len(book)
    assert sample["case"].nunique() == 2
    gamma = sample[sample["property"] == "gamma_relaxed"].set_index("case")["value"]
    expected = book[book["property"] == "gamma_relaxed"].set_index("case")["value"]
    assert gamma.to_numpy() == pytest.approx(1.25 * expected[gamma.index].to_numpy(), rel=1e-3)
    assert results.models("surfaces") == [EMT], "nothing is written among the tables of the book"
    monkeypatch.setattr(surfaces, "run", None)  # what is kept is not computed again
    assert len(here.read("surfaces")) == len(table)
    checked = here.live_check("surfaces", own)
    assert len(checked) == len(sample)
    assert checked["difference"].isna().all()
    assert "no table of surfaces to be compared with" in capsys.readouterr().out
    assert len(chapter.begin("results", "surfaces", own, device="cpu").read("surfaces")) == len(book)


def test_one_is_singular():
    assert [chapter.counted(number, "case") for number in (0, 1, 2, 1234)] == ["0 cases", "1 case", "2 cases", "1,234 cases"]
