// Charts that answer: values at the pointer, and lines that the legend hides. Without this script
// they are drawings.
(() => {
  const worded = (value) => Math.abs(value) >= 1000
    ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
  const valueAt = ([low, high, log], percent) => worded(log
    ? low * (high / low) ** (percent / 100) : low + (high - low) * percent / 100);
  for (const chart of document.querySelectorAll("figure.chart")) {
    const plot = chart.querySelector(".plot");
    const [x, y] = [JSON.parse(plot.dataset.x), JSON.parse(plot.dataset.y)];
    const lines = [...plot.querySelectorAll("path.line[data-label]")].map((path) => ({
      path,
      label: path.dataset.label,
      points: path.getAttribute("d").slice(1).split("L").map((one) => one.split(" ").map(Number)),
    }));
    if (!lines.length) continue;
    const values = document.createElement("output");
    values.className = "values";
    plot.after(values);
    const rule = document.createElement("i");
    rule.className = "at";
    rule.hidden = true;
    plot.append(rule);
    const shown = () => lines.filter((line) => line.path.style.display !== "none");
    const nearest = (points, at) => points.reduce((best, point) =>
      Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best);
    let place = 0;
    const show = (at) => {
      const left = shown();
      rule.hidden = !left.length;
      if (!left.length) { values.textContent = ""; return; }
      const found = left.map((line) => [line.label, nearest(line.points, at)]);
      place = found.reduce((best, [, point]) =>
        Math.abs(point[0] - at) < Math.abs(best - at) ? point[0] : best, found[0][1][0]);
      rule.style.left = `${place}%`;
      const parts = found.map(([label, point]) => `${label} ${valueAt(y, 100 - point[1])}`);
      values.textContent = `${plot.dataset.name} ${valueAt(x, place)}: ${parts.join(", ")}`;
    };
    const hide = () => { rule.hidden = true; values.textContent = ""; };
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      show((event.clientX - box.left) / box.width * 100);
    });
    plot.addEventListener("pointerleave", hide);
    plot.tabIndex = 0;
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!way) return;
      event.preventDefault();
      const all = [...new Set(shown().flatMap((line) => line.points.map((point) => point[0])))]
        .sort((a, b) => a - b);
      const next = rule.hidden ? all[0]
        : all[Math.max(0, Math.min(all.length - 1, all.indexOf(place) + way))];
      if (next !== undefined) show(next);
    });
    for (const entry of chart.querySelectorAll(".legend [data-line]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.append(...entry.childNodes);
      entry.append(button);
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        for (const shape of plot.querySelectorAll(`[data-line="${entry.dataset.line}"]`))
          shape.style.display = on ? "" : "none";
        hide();
      });
    }
  }
})();
