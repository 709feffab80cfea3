"use strict";
// The report and the live page draw alike: key → chart in, a function that draws one (and again when the theme changes).
const manytuneCharts = (charts, chosen = {}) => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 900px)");
  const touch = matchMedia("(hover: none)");
  const drawn = new Set();
  const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // "@green~0.2/0.3" → the theme's green, a fifth of the way towards the paper, 30 % opaque.
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
      layout.xaxis = { ...layout.xaxis, title: { text: choice.title }, type: choice.log ? "log" : "linear", ...choice.axis };
    }
    for (const name of Object.keys(layout)) if (/^[xy]axis/.test(name)) layout[name] = axis(layout[name]);
    Plotly.react(key, data, {
      font: { family: theme("text"), size: small ? 11 : 13, color: theme("ink") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 50, r: 16, t: touch.matches ? 12 : 30, b: 46 },  // above the data there is room for the mode bar
      hoverlabel: { bgcolor: theme("card"), bordercolor: theme("line"), font: { color: theme("ink") } },
      ...layout,
      height,
      legend: { orientation: "h", yanchor: "bottom", y: 1.02, x: 0, xanchor: "left", bgcolor: "rgba(0,0,0,0)", ...layout.legend },
    }, { responsive: true, displaylogo: false, displayModeBar: touch.matches ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
    drawn.add(key);
  };

  const again = () => drawn.forEach(draw);
  dark.addEventListener("change", again);
  narrow.addEventListener("change", again);
  return draw;
};
