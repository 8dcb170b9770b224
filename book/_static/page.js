// Whatever scrolls sideways can be scrolled with the keyboard: it gets a tab stop, as long as it scrolls and holds nothing that has one.
// A figure or table of which a part is out of sight says so (custom.css).
(() => {
  const parts = ".bd-article :is(figure.result, figure.architecture, figure.result > div, .table-wrapper, .pst-scrollable-table-container, .output, pre, mjx-container, div.math)";
  const stops = "a[href], button, input, select, summary, [tabindex='0']";
  const wide = (part) => part.scrollWidth > part.clientWidth;
  const update = () => {
    document.querySelectorAll(parts).forEach((part) => {
      if (part.dataset.scrolls) { delete part.dataset.scrolls; part.removeAttribute("tabindex"); }
      if (wide(part) && !part.hasAttribute("tabindex") && !part.querySelector(stops)) {
        part.dataset.scrolls = "true";
        part.tabIndex = 0;
      }
    });
    document.querySelectorAll(".bd-article :is(figure.result, figure.architecture, .pst-scrollable-table-container)").forEach((frame) => {
      // A table may take the right margin (below): what counts is whether it scrolls in its own frame.
      frame.toggleAttribute("data-wide", wide(frame.querySelector(":scope > .table-wrapper") ?? frame));
    });
  };
  let waiting;
  const soon = () => { clearTimeout(waiting); waiting = setTimeout(update, 100); };
  addEventListener("load", soon);
  addEventListener("resize", soon);
  // Pictures that arrive late may be wider than what stood there before.
  document.addEventListener("load", soon, true);
})();

// A table that is wider than the text takes the right margin, too; so does one of many columns, rather than break its names.
// The theme hides the contents there while such a table is in view.
(() => {
  const widen = () => document.querySelectorAll(".bd-article :is(figure.result > .table-wrapper, .pst-scrollable-table-container)").forEach((wrapper) => {
    const table = wrapper.querySelector("table");
    if (!table) return;  // it says "None."
    table.style.width = table.rows[0].cells.length > 4 ? "max-content" : "";
    if (wrapper.scrollWidth > wrapper.clientWidth) wrapper.classList.add("full-width");
    table.style.width = "";
  });
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", widen); else widen();
})();
