"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const narrow = matchMedia("(max-width: 900px)");
  const chosen = {};
  const draw = manytuneCharts(charts, chosen);

  // A chart is drawn when it comes near the screen: a study of many runs opens at once.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      draw(entry.target.id);
    }
  }, { rootMargin: "600px" });
  for (const plot of document.querySelectorAll(".plot")) near.observe(plot);
  // Paper is light: charts take their colours anew while the page prints.
  for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(event, () => {
      document.documentElement.classList.toggle("printing", printing);
      Object.keys(charts).forEach(draw);
    });
  }

  for (const select of document.querySelectorAll("select[data-chart]")) {
    select.addEventListener("change", () => {
      chosen[select.dataset.chart] = Number(select.value);
      draw(select.dataset.chart);
    });
  }

  // Sorting: by value, unknown ones last; a second press turns the order.
  const sort = (heading) => {
    const table = heading.closest("table");
    const column = [...heading.parentNode.children].indexOf(heading);
    const number = heading.classList.contains("number");
    const first = number ? "descending" : "ascending";
    const other = number ? "ascending" : "descending";
    const order = heading.getAttribute("aria-sort") === first ? other : first;
    for (const each of heading.parentNode.children) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const value = (row) => row.children[column].dataset.value;
    const rows = [...table.tBodies[0].rows];
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const by = number ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
      return order === "ascending" ? by : -by;
    };
    rows.sort((a, b) => compare(value(a), value(b)));
    table.tBodies[0].append(...rows);
  };
  for (const button of document.querySelectorAll("table[data-sheet] thead button")) {
    button.addEventListener("click", () => sort(button.parentNode));
  }

  for (const button of document.querySelectorAll(".all-columns")) {
    button.addEventListener("click", () => {
      const all = document.getElementById(button.dataset.table).classList.toggle("all");
      button.setAttribute("aria-pressed", String(all));
    });
  }

  const contents = document.querySelector("nav details");
  const fold = () => { contents.open = !narrow.matches; };
  fold();
  narrow.addEventListener("change", fold);
  contents.addEventListener("click", (event) => { if (narrow.matches && event.target.closest("a")) contents.open = false; });
})();
