"use strict";

// Tables: a click on a column's name sorts by it, a second one the other way round. Numbers come
// before text in both directions, so that missing values stay at the end.
const collator = new Intl.Collator("en", { numeric: true });

function sortRows(table, column, down) {
  const body = table.tBodies[0];
  const sign = down ? -1 : 1;
  const compare = (a, b) => {
    const [left, right] = [a.cells[column], b.cells[column]];
    const [first, second] = [left.dataset.value, right.dataset.value];
    if (first !== undefined && second !== undefined) return sign * (first - second);
    if (first !== undefined || second !== undefined) return first !== undefined ? -1 : 1;
    return sign * collator.compare(left.textContent, right.textContent);
  };
  body.append(...[...body.rows].sort(compare));
}

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sortRows(table, column, down);
    });
  });
}

// Charts: the values at the x nearest to the pointer, or to the finger; arrow keys go through them.
for (const chart of document.querySelectorAll(".chart")) {
  const svg = chart.querySelector("svg");
  const guide = chart.querySelector(".guide");
  const tip = chart.querySelector(".tip");
  const stops = JSON.parse(svg.dataset.stops);
  const scale = () => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  let current = 0;

  const hide = () => {
    tip.hidden = true;
    guide.setAttribute("visibility", "hidden");
  };
  const show = (index) => {
    current = index;
    const { at, text } = stops[index];
    tip.textContent = text.join("\n");
    tip.hidden = false;
    guide.setAttribute("transform", `translate(${at} 0)`);
    guide.setAttribute("visibility", "visible");
    const x = svg.getBoundingClientRect().left - chart.getBoundingClientRect().left + at * scale();
    const left = x + 12 + tip.offsetWidth <= chart.clientWidth ? x + 12 : x - 12 - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(left, chart.clientWidth - tip.offsetWidth))}px`;
  };
  const point = (event) => {
    const x = (event.clientX - svg.getBoundingClientRect().left) / scale();
    const distances = stops.map((stop) => Math.abs(stop.at - x));
    show(distances.indexOf(Math.min(...distances)));
  };

  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") hide();
  });
  svg.addEventListener("focus", () => show(current));
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hide();
    if (step === undefined) return;
    event.preventDefault();
    show(Math.min(Math.max(current + step, 0), stops.length - 1));
  });
}
