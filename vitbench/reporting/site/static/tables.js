"use strict";
// Every table is whole in the page; here it gets sorting, searching, filters, a choice of columns, and pages.
document.addEventListener("DOMContentLoaded", () => {
  const made = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const aimed = () => {
    try { return document.getElementById(decodeURIComponent(location.hash.slice(1))); } catch { return null; }
  };
  const MANY_ROWS = 12, MANY_COLUMNS = 9, PAGE = 25;

  document.querySelectorAll(".table").forEach((box, number) => {
    const table = box.querySelector("table");
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const rows = [...body.rows];
    if (rows.length < 2) return;
    const text = (row, column) => row.cells[column].textContent.trim();
    const size = (row, column) => parseFloat(row.cells[column].dataset.v ?? text(row, column));
    const id = (part) => `table-${number}-${part}`;
    let shown = rows, order = rows, start = 0, length = PAGE;

    const status = made("output", { className: "count", id: id("count") });
    const back = made("button", { type: "button", textContent: "‹ Previous" });
    const on = made("button", { type: "button", textContent: "Next ›" });
    const pager = made("div", { className: "pager", hidden: true }, back, on);

    const paint = () => {
      const page = new Set(shown.slice(start, start + length));
      for (const row of rows) row.hidden = !page.has(row);
      const last = Math.min(start + length, shown.length);
      const of = shown.length === rows.length ? `${rows.length} rows` : `${shown.length} of ${rows.length} rows`;
      status.textContent = shown.length > length ? `${start + 1} to ${last} of ${of}` : of;
      pager.hidden = shown.length <= length;
      back.disabled = start === 0;
      on.disabled = start + length >= shown.length;
    };

    const search = made("input", { type: "search", id: id("search") });
    const filters = [];
    const choose = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      shown = order.filter((row) => {
        const whole = row.textContent.toLowerCase();
        return words.every((word) => whole.includes(word))
          && filters.every(({ column, select }) => !select.value || text(row, column) === select.value);
      });
      start = 0;
      paint();
    };

    const tools = made("div", { className: "tools" });
    if (rows.length > MANY_ROWS || heads.some((head) => "choices" in head.dataset)) {
      tools.append(made("label", { htmlFor: search.id, textContent: "Search" }, search));
      search.addEventListener("input", choose);
    }
    heads.forEach((head, column) => {
      if (!("choices" in head.dataset)) return;
      const values = [...new Set(rows.map((row) => text(row, column)))].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
      if (values.length < 2) return;
      const select = made("select", { id: id(`filter-${column}`) }, made("option", { value: "", textContent: "all" }),
        ...values.filter(Boolean).map((value) => made("option", { value, textContent: value })));
      select.addEventListener("change", choose);
      filters.push({ column, select });
      tools.append(made("label", { htmlFor: select.id, textContent: head.textContent.trim() }, select));
    });
    if (rows.length > PAGE) {
      const lengths = made("select", { id: id("length") }, ...[PAGE, 50, 100, Infinity].map((count) =>
        made("option", { value: String(count), textContent: count === Infinity ? "all" : String(count), selected: count === PAGE })));
      lengths.addEventListener("change", () => { length = Number(lengths.value); start = 0; paint(); });
      tools.append(made("label", { htmlFor: lengths.id, textContent: "Rows" }, lengths));
    }
    if (heads.length > MANY_COLUMNS) {
      const boxes = heads.map((head, column) => {
        const box = made("input", { type: "checkbox", checked: true });
        box.addEventListener("change", () => {
          for (const row of table.rows) row.cells[column].hidden = !box.checked;
        });
        return made("label", {}, box, ` ${head.textContent.trim()}`);
      });
      tools.append(made("details", { className: "columns" }, made("summary", { textContent: "Columns" }),
        made("div", {}, ...boxes.slice(1))));
    }
    if (tools.childElementCount) box.prepend(made("div", { className: "bar" }, tools, status));
    box.querySelector(".scroll").after(pager);
    back.addEventListener("click", () => { start = Math.max(0, start - length); paint(); });
    on.addEventListener("click", () => { start += length; paint(); });

    const collator = new Intl.Collator(undefined, { numeric: true });
    const sort = (column) => {
      const numeric = heads[column].classList.contains("n");
      const before = heads[column].getAttribute("aria-sort");
      // Numbers begin with the greatest, names with the first.
      const next = before === "descending" ? "ascending" : before === "ascending" ? "descending" : numeric ? "descending" : "ascending";
      for (const head of heads) head.removeAttribute("aria-sort");
      heads[column].setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      order = [...rows].sort((one, other) => {
        if (!numeric) return sign * collator.compare(text(one, column), text(other, column));
        const [a, b] = [size(one, column), size(other, column)];
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
        return sign * (a - b);
      });
      body.append(...order);
      choose();
    };
    heads.forEach((head, column) => {
      const arrow = made("span", { className: "arrow" });
      arrow.setAttribute("aria-hidden", "true");
      const link = head.querySelector("a");
      const name = head.textContent.trim();
      const button = made("button", { type: "button", className: "sort" }, ...(link ? [] : [...head.childNodes]), arrow);
      if (link) button.setAttribute("aria-label", `Sort by ${name}`);
      button.addEventListener("click", () => sort(column));
      // A space that does not break keeps the arrow with the last word.
      head.append(...(link ? ["\u00a0"] : []), button);
    });

    // A link to a row on another page of the table, and paper: nothing may stay hidden then.
    const reveal = () => {
      const target = aimed();
      const row = target && target.closest("tr");
      if (!row || row.parentElement !== body) return;
      const place = shown.indexOf(row);
      if (place < 0) return;
      start = Math.floor(place / length) * length;
      paint();
      target.scrollIntoView({ block: "center" });
    };
    addEventListener("hashchange", reveal);
    addEventListener("beforeprint", () => { for (const row of shown) row.hidden = false; });
    addEventListener("afterprint", paint);
    paint();
    reveal();
  });

  // A link into a folded part opens it.
  const open = () => {
    const target = aimed();
    const fold = target && target.closest("details");
    if (fold) { fold.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  open();
});
