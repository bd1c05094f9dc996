"use strict";
// The table of facts: search, sort, pages. Everything else on the page works without this.
(function () {
  const { columns, rows } = JSON.parse(document.getElementById("facts-data").textContent);
  const size = 50;
  const byId = (id) => document.getElementById(id);
  const table = byId("fact-table"), body = table.tBodies[0], search = byId("search"), status = byId("status");
  const statusAt = columns.findIndex((c) => c.key === "status");
  const texts = columns.flatMap((c, i) => (c.kind === "text" && i !== statusAt ? [i] : []));
  const plain = (text) => String(text).replace(/[\u2068\u2069]/g, "").normalize("NFKC").toLowerCase();
  const haystacks = rows.map((row) => plain(texts.map((i) => row[i]).join("\n")));
  const collator = new Intl.Collator(undefined, { numeric: true });
  let shown = rows.map((_, i) => i), page = 0, sorted = -1, down = false;

  function said(value, kind) {
    if (value === null) return "–";
    if (kind === "text") return value;
    if (kind === "share") return (value * 100).toFixed(0) + " %";
    if (kind === "probability" && value < 0.005) return value ? value.toExponential(1) : "0";
    return value.toFixed(2).replace("-", "−");
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / size));
    page = Math.min(page, pages - 1);
    const from = page * size, part = shown.slice(from, from + size);
    body.replaceChildren(...part.map((i) => {
      const line = document.createElement("tr");
      columns.forEach((column, k) => {
        const cell = line.insertCell();
        if (column.kind === "text") cell.appendChild(document.createElement("bdi")).textContent = said(rows[i][k], "text");
        else { cell.className = "n"; cell.textContent = said(rows[i][k], column.kind); }
      });
      return line;
    }));
    const count = (n) => n.toLocaleString("en");
    byId("shown").textContent = shown.length
      ? `Facts ${count(from + 1)} to ${count(from + part.length)} of ${count(shown.length)}` +
        (shown.length < rows.length ? ` that match, of ${count(rows.length)} in all.` : ".")
      : `None of ${count(rows.length)} facts matches.`;
    byId("page").textContent = `page ${count(page + 1)} of ${count(pages)}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
    byId("pages").hidden = pages === 1;
  }

  function select() {
    const wanted = plain(search.value.trim());
    shown = [];
    for (let i = 0; i < rows.length; i++) {
      if (haystacks[i].includes(wanted) && String(rows[i][statusAt]).startsWith(status.value)) shown.push(i);
    }
    if (sorted >= 0) {
      const text = columns[sorted].kind === "text", sign = down ? -1 : 1;
      shown.sort((i, j) => {
        const x = rows[i][sorted], y = rows[j][sorted];
        if (x === null || y === null) return (x === null) - (y === null) || i - j;  // undefined last, both ways
        return sign * (text ? collator.compare(x, y) : x - y) || i - j;
      });
    }
    page = 0;
    draw();
  }

  [...table.tHead.rows[0].cells].forEach((head, k) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      down = sorted === k ? !down : columns[k].kind !== "text";
      sorted = k;
      for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      select();
    });
  });
  search.addEventListener("input", select);
  status.addEventListener("change", select);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("previous").addEventListener("click", () => { page -= 1; draw(); });
  byId("next").addEventListener("click", () => { page += 1; draw(); });
  byId("filters").hidden = false;
  draw();
})();
