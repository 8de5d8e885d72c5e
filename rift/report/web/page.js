"use strict";
// Draws the figures, sorts tables by a click on a heading, and keeps to the jobs that the filter names.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const every = data.jobs.map((job) => job.number);
  const views = [];

  const options = {
    renderer: "svg", actions: false, defaultStyle: false, ast: true,  // no code is made from text
    tooltip: { disableDefaultStyle: true, theme: "page" },
  };
  // A legend's entries are picked one by one; with none of them picked, all are seen.
  const showPicked = ({ view, legend }) =>
    legend && view.signal("picked", [...legend.querySelectorAll("[aria-pressed=true]")].map((own) => own.dataset.series));
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      button.ariaPressed = String(button.ariaPressed !== "true");
      const legend = button.closest(".legend");
      for (const one of views.filter((one) => one.legend === legend)) showPicked(one).runAsync();
    });
  }
  const draw = async () => {
    for (const [index, specification] of data.figures.entries()) {
      specification.params.find((param) => param.name === "kept").value = every;
      const place = document.getElementById(`figure-${index}`);
      const figure = place.closest("figure");
      const { view } = await vegaEmbed(place, specification, options);
      const legend = "shares" in figure.dataset ? views.at(-1).legend : figure.querySelector(".legend");
      views.push({ figure, view, legend });
    }
    document.documentElement.dataset.drawn = String(views.length);
  };

  // A number sorts by its value, also with a spread behind it; what is missing comes last.
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const found = /^[#+]?([-−]?\d[\d.]*(e[-+]?\d+)?)/.exec(text);
    return { text, number: found ? Number(found[1].replace("−", "-")) : NaN, missing: text === "–" || text === "" };
  };
  const compare = (one, two) => {
    if (one.missing || two.missing) return 0;
    const numbers = one.number - two.number;
    return Number.isNaN(numbers) ? one.text.localeCompare(two.text, undefined, { numeric: true }) : numbers;
  };
  const sort = (heading) => {
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = heading.closest("table").tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, ...value(row, heading.cellIndex) }));
    rows.sort((one, two) => one.missing - two.missing || (down ? -1 : 1) * compare(one, two));
    body.append(...rows.map(({ row }) => row));
  };
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => sort(button.parentElement));
  }

  // Words without "=" may be a part of anything; "seed=1" is not "seed=10".
  const fits = (job, word) =>
    job.words.some((own) => (word.includes("=") || word.startsWith("#") ? own === word : own.includes(word)));
  const wanted = (job, word) => (word.startsWith("-") ? !fits(job, word.slice(1)) : fits(job, word));
  const filter = document.getElementById("filter");
  const apply = async () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter((word) => /[^-]/.test(word));
    const jobs = data.jobs.filter((job) => words.every((word) => wanted(job, word)));
    const kept = new Set(jobs.map((job) => job.number));
    for (const part of document.querySelectorAll("[data-jobs]")) {
      part.hidden = !part.dataset.jobs.split(" ").some((number) => kept.has(number));
    }
    document.getElementById("kept").textContent = words.length ? `${kept.size} of ${every.length} jobs` : "";
    for (const gone of document.querySelectorAll(".legend [hidden] [aria-pressed=true]")) gone.ariaPressed = "false";
    const seen = views.filter(({ figure }) => !figure.hidden);
    for (const one of seen) showPicked(one);
    await Promise.all(seen.map(({ view }) => view.signal("kept", [...kept]).runAsync()));
    window.dispatchEvent(new Event("resize"));
  };
  let waiting;
  filter?.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(apply, 150); });

  // On paper everything is said, and headings are texts: Chromium repeats none on the next sheet that has a button.
  const headings = [];
  window.addEventListener("beforeprint", () => {
    for (const button of document.querySelectorAll("th button")) {
      const text = document.createTextNode(button.textContent);
      button.replaceWith(text);
      headings.push({ button, text });
    }
    for (const part of document.querySelectorAll("details:not([open])")) { part.open = true; part.dataset.closed = ""; }
  });
  window.addEventListener("afterprint", () => {
    for (const { button, text } of headings.splice(0)) text.replaceWith(button);
    for (const part of document.querySelectorAll("details[data-closed]")) { part.open = false; delete part.dataset.closed; }
  });
  draw();
})();
