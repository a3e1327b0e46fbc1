"use strict";

// Tables: the button in a heading sorts by its column, and once more the other way round. What has no value stays last.
function sortBy(heading) {
  const body = heading.closest("table").tBodies[0];
  const numeric = heading.classList.contains("number");
  const before = heading.getAttribute("aria-sort");
  const descending = before ? before === "ascending" : numeric;
  const sign = descending ? -1 : 1;
  const compare = numeric ? (a, b) => a - b : new Intl.Collator("en", { numeric: true }).compare;
  const value = (cell) => (numeric ? parseFloat(cell.dataset.value) : cell.textContent);
  const rows = [...body.rows].map((row) => [value(row.cells[heading.cellIndex]), row]);
  const known = rows.filter(([key]) => key === key);
  const unknown = rows.filter(([key]) => key !== key);
  known.sort(([a], [b]) => sign * compare(a, b));
  for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...[...known, ...unknown].map(([, row]) => row));
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => sortBy(button.parentElement));
}

// Samples: two of a sample's pictures over each other, the one of data-over from the slider on to the right.
function compare(sample) {
  const stage = sample.querySelector(".stage");
  const slider = sample.querySelector("input[type=range]");
  const under = new Image();
  const over = new Image();
  const pictures = sample.querySelectorAll(".panel img");
  const show = () => {
    const left = pictures[sample.querySelector("input[type=radio]:checked").value];
    under.src = left.src;
    under.alt = left.alt;
  };
  const move = () => stage.style.setProperty("--at", slider.value + "%");
  const drag = (event) => {
    if (!event.buttons) return;
    const box = stage.getBoundingClientRect();
    slider.value = (100 * (event.clientX - box.left)) / box.width;
    move();
  };
  over.src = pictures[stage.dataset.over].src;
  over.alt = pictures[stage.dataset.over].alt;
  over.className = "over";
  stage.replaceChildren(under, over);
  show();
  move();
  slider.oninput = move;
  stage.onpointerdown = stage.onpointermove = drag;
  for (const choice of sample.querySelectorAll("input[type=radio]")) choice.onchange = show;
}
for (const details of document.querySelectorAll(".compare")) {
  const start = () => details.open && compare(details.closest(".sample"));
  details.addEventListener("toggle", start);
  start();
}
