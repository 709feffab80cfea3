"use strict";
(() => {
  const every = 1500;  // milliseconds between two looks
  const charts = {};
  const draw = manytuneCharts(charts);
  const at = (id) => document.getElementById(id);

  // All text is set as text: nothing that a study holds can become part of the page's own code.
  const make = (tag, text, kind) => {
    const made = document.createElement(tag);
    if (text !== undefined && text !== null) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const fill = (place, parts) => place.replaceChildren(...parts);

  const pack = (each) => {
    const card = make("div", null, "pack");
    const bar = document.createElement("progress");
    bar.max = each.total_steps;
    bar.value = each.step;
    bar.setAttribute("aria-label", each.id);
    const facts = [
      `${each.runs} run${each.runs === 1 ? "" : "s"}`, `step ${each.step.toLocaleString("en")} of ${each.total_steps.toLocaleString("en")}`,
      each.loss && `loss ${each.loss}`, each.best && `best ${each.best}`, each.left && `${each.left} left`, each.quiet,
    ];
    card.append(make("strong", each.id), bar, make("p", facts.filter(Boolean).join(" · ")));
    return card;
  };
  const run = (each) => {
    const row = document.createElement("tr");
    row.append(make("td", each.task), make("td", each.method), make("td", each.seed, "number"),
      make("td", each.state, each.state), make("td", each.score ?? "–", "number"));
    return row;
  };
  const show = (state) => {
    at("trouble").hidden = !state.error;
    if (state.error) { at("trouble").textContent = state.error; return; }
    document.title = `${state.title} · manytune`;
    at("title").textContent = state.title;
    at("line").textContent = state.line;
    at("driver").textContent = state.driver;
    at("left").textContent = state.left ?? "";
    fill(at("packs"), state.packs.length ? state.packs.map(pack) : [make("p", state.complete ? "All runs have ended." : "None at the moment.")]);
    at("failing").hidden = !state.failures.length;
    fill(at("failures"), state.failures.map((each) => make("li", `${each.run}: ${each.why}`)));
    fill(at("runs"), state.runs.map(run));
    at("more").textContent = state.more_runs ? `and ${state.more_runs} more` : "";
    fill(at("machine"), state.machine.map((line) => make("li", line)));
    for (const chart of state.charts) {
      if (!at(chart.key)) {
        const figure = make("figure", null, "chart");
        const caption = document.createElement("figcaption");
        caption.append(make("strong", chart.title));
        const plot = make("div", null, "plot");
        plot.id = chart.key;
        plot.setAttribute("role", "img");
        figure.append(caption, plot);
        at("curves").append(figure);
      }
      at(chart.key).setAttribute("aria-label", chart.alt);
      charts[chart.key] = { ...chart, layout: { ...chart.layout, uirevision: "kept" } };
      draw(chart.key);
    }
  };
  const look = async () => {
    try {
      show(await (await fetch("/state")).json());
    } catch {
      show({ error: "The server of this page has ended: what is shown is the last that was seen." });
    }
    setTimeout(look, every);
  };
  look();
})();
