// Tables that are sorted by the column whose heading is clicked: numbers by value, dashes last.
(() => {
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const shown = row.cells[column].dataset.value ?? text.replaceAll(",", "");
    // A number may have a unit behind it; a name that begins with digits is none.
    return /^[-+]?\d[\d.]*(e[-+]?\d+)?(?=$|[ %])/.test(shown) ? Number.parseFloat(shown) : text;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    for (const heading of table.tHead.rows[0].cells) {
      if (!heading.textContent.trim()) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") !== "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => [value(row, heading.cellIndex), row]);
        rows.sort(([a], [b]) => {
          const numbers = [typeof a === "number", typeof b === "number"];
          if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1;
          const order = numbers[0] ? a - b : a.localeCompare(b);
          return down ? -order : order;
        });
        body.append(...rows.map(([, row]) => row));
      });
    }
  }
})();
