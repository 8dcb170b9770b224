// Tables that sort, filter and fold. A table stands in <figure data-sortable data-filters="[&quot;model&quot;]">, or in
// <figure data-folded="[4, 5, 6]"> with the rows that appear at a click; without scripts, and on paper, it is a plain table.
(() => {
  const words = (cell) => cell.textContent.trim();

  // "0.80 [0.70, 0.87]", "0.031 *" and "1,234" are numbers; "2a" is one followed by a letter; an en dash is an empty cell.
  const number = (text) => {
    const found = text.replace(/\u2212/g, "-").replace(/(\d),(?=\d{3}\b)/g, "$1").match(/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?(?=$|[\s\u00a0\[*%±])/i);
    return found ? Number(found[0]) : NaN;
  };
  const empty = (text) => ["", "–", "nan"].includes(text.toLowerCase());

  const compare = (one, other, numeric) => {
    if (numeric && !Number.isNaN(number(one)) && !Number.isNaN(number(other))) return number(one) - number(other);
    return one.localeCompare(other, "en", {numeric: true, sensitivity: "base"});
  };

  const sorting = (table, rows) => {
    const heads = [...table.tHead.rows[0].cells];
    // On a phone each row is a card (custom.css), where every cell needs its heading; a table drawn as blocks keeps its roles only if they are said.
    table.setAttribute("role", "table");
    [table.tHead, ...table.tBodies].forEach((part) => part.setAttribute("role", "rowgroup"));
    [table.tHead.rows[0], ...rows].forEach((row) => row.setAttribute("role", "row"));
    heads.forEach((head, column) => {
      head.setAttribute("role", "columnheader");
      rows.forEach((row) => {
        row.cells[column].setAttribute("role", row.cells[column].tagName === "TH" ? "rowheader" : "cell");
        row.cells[column].dataset.head = words(head);
      });
      const texts = rows.map((row) => words(row.cells[column])).filter((text) => !empty(text));
      const numeric = texts.length > 0 && texts.every((text) => !Number.isNaN(number(text)));
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = {ascending: "descending", descending: null}[head.getAttribute("aria-sort")];
        const order = next === undefined ? "ascending" : next;
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        let sorted = rows;  // as the page has them
        if (order) {
          head.setAttribute("aria-sort", order);
          const sign = order === "ascending" ? 1 : -1;
          sorted = [...rows].sort((a, b) => {
            const [one, other] = [words(a.cells[column]), words(b.cells[column])];
            // Empty cells come last in both directions.
            return empty(one) - empty(other) || sign * compare(one, other, numeric);
          });
        }
        table.tBodies[0].append(...sorted);
      });
    });
  };

  const labelled = (text, control) => {
    const label = document.createElement("label");
    label.append(text, " ", control);
    return label;
  };

  const filtering = (figure, table, rows, names) => {
    const heads = [...table.tHead.rows[0].cells].map(words);
    const menus = names.map((name) => {
      const column = heads.indexOf(name);
      const menu = document.createElement("select");
      const entries = [...new Set(rows.map((row) => words(row.cells[column])))];
      menu.append(new Option("all", ""), ...entries.map((entry) => new Option(entry, entry)));
      return {name, column, menu};
    });
    const text = document.createElement("input");
    text.type = "search";
    const reset = document.createElement("button");
    reset.type = "button";
    reset.textContent = "Show all";
    const count = document.createElement("output");
    const update = () => {
      const sought = text.value.trim().toLowerCase().split(/\s+/);
      let shown = 0;
      for (const row of rows) {
        const fits = menus.every(({column, menu}) => !menu.value || words(row.cells[column]) === menu.value)
          && sought.every((word) => row.textContent.toLowerCase().includes(word));
        row.hidden = !fits;
        shown += fits;
      }
      count.textContent = `${shown} of ${rows.length} rows`;
      reset.disabled = shown === rows.length;
    };
    const bar = document.createElement("div");
    bar.className = "table-filters";
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "Choose rows of the table");
    bar.append(...menus.map(({name, menu}) => labelled(name, menu)), labelled("text", text), reset, count);
    bar.addEventListener("input", update);
    reset.addEventListener("click", () => {
      menus.forEach(({menu}) => { menu.value = ""; });
      text.value = "";
      update();
      text.focus();
    });
    figure.prepend(bar);
    update();
  };

  const folding = (figure, rows, folded) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "table-unfold";
    const fold = (closed) => {
      folded.forEach((place) => rows[place].classList.toggle("folded", closed));
      button.setAttribute("aria-expanded", String(!closed));
      button.textContent = closed ? `All ${rows.length} rows` : `${rows.length - folded.length} rows`;
    };
    button.addEventListener("click", () => fold(button.getAttribute("aria-expanded") === "true"));
    figure.querySelector(".table-wrapper").after(button);
    fold(true);
  };

  const enhance = () => document.querySelectorAll("figure:is([data-sortable], [data-folded])").forEach((figure) => {
    const table = figure.querySelector("table");
    const rows = [...table.tBodies[0].rows];
    if (figure.dataset.folded) return folding(figure, rows, JSON.parse(figure.dataset.folded));
    // Before the headings become buttons: the filters look for their words.
    filtering(figure, table, rows, JSON.parse(figure.dataset.filters));
    sorting(table, rows);
  });
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", enhance); else enhance();
})();
