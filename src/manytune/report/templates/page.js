"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 900px)");
  const drawn = new Set();
  const chosen = {};

  const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // "@lora~0.2/0.3" → the theme's colour of LoRA, a fifth of the way towards the paper, 30 % opaque.
  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const color = (text) => {
    const [, name, tone = 0, alpha = 1] = /^@(\w+)(?:~([\d.]+))?(?:\/([\d.]+))?$/.exec(text);
    const paper = channels(theme("card"));
    const mixed = channels(theme(name)).map((each, at) => Math.round(each + (paper[at] - each) * tone));
    return `rgba(${mixed.join(",")},${alpha})`;
  };
  const colored = (value) => {
    if (Array.isArray(value)) return value.map(colored);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, each]) =>
        [key, /color$/.test(key) && typeof each === "string" && each[0] === "@" ? color(each) : colored(each)]));
    }
    return value;
  };

  const axis = (given) => ({
    gridcolor: theme("grid"), zerolinecolor: theme("grid"), linecolor: theme("line"), tickcolor: theme("line"),
    automargin: true, ...given,
  });

  const draw = (key) => {
    const chart = charts[key];
    const data = colored(chart.data);
    const layout = colored(structuredClone(chart.layout));
    const small = narrow.matches;
    let height = chart.height;
    for (const [name, value] of Object.entries(small && chart.narrow || {})) {
      const [first, second] = name.split(".");
      if (name === "height") height = value;
      else layout[first][second] = value;
    }
    const choice = chart.choices[chosen[key] || 0];
    if (choice) {
      data.forEach((trace, place) => Object.assign(trace, { x: choice.x[place], y: choice.y[place], text: choice.text[place] }));
      layout.xaxis = { ...layout.xaxis, title: { text: choice.title }, type: choice.log ? "log" : "linear" };
    }
    for (const name of Object.keys(layout)) if (/^[xy]axis/.test(name)) layout[name] = axis(layout[name]);
    Plotly.react(key, data, {
      font: { family: theme("text"), size: small ? 11 : 13, color: theme("ink") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 50, r: 16, t: 12, b: 46 },
      hoverlabel: { bgcolor: theme("card"), bordercolor: theme("line"), font: { color: theme("ink") } },
      ...layout,
      height,
      legend: { orientation: "h", yanchor: "bottom", y: 1.02, x: 0, xanchor: "left", bgcolor: "rgba(0,0,0,0)", ...layout.legend },
    }, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
    drawn.add(key);
  };

  // A chart is drawn when it comes near the screen: a study of many runs opens at once.
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      draw(entry.target.id);
    }
  }, { rootMargin: "600px" });
  for (const plot of document.querySelectorAll(".plot")) near.observe(plot);
  const again = () => drawn.forEach(draw);
  dark.addEventListener("change", again);
  narrow.addEventListener("change", again);
  addEventListener("beforeprint", () => Object.keys(charts).forEach(draw));

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

  const contents = document.querySelector("nav details");
  const fold = () => { contents.open = !narrow.matches; };
  fold();
  narrow.addEventListener("change", fold);
  contents.addEventListener("click", (event) => { if (narrow.matches && event.target.closest("a")) contents.open = false; });
})();
