// Theme, charts and samples of the report. The data are embedded in the page as JSON; what a model wrote only ever
// becomes text nodes, never markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const ticks = (axis) => axis?.ticktext;

  // ---- theme ------------------------------------------------------------------------------------------------------

  const toggle = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);

  function showTheme() {
    toggle.setAttribute("aria-pressed", String(isDark()));
    toggle.textContent = isDark() ? "Light" : "Dark";
    toggle.title = `Switch to the ${isDark() ? "light" : "dark"} theme`;
    drawAll();
  }

  // ---- charts -----------------------------------------------------------------------------------------------------

  const controls = [...document.querySelectorAll("[data-control]")];

  /** The value of a control: of a select, or of the checked one of its radio buttons. */
  function valueOf(name) {
    const all = controls.filter((control) => control.dataset.control === name);
    return (all.find((control) => control.type !== "radio" || control.checked) ?? { value: "" }).value;
  }

  const figureOf = (name) => {
    const chart = data.charts[name];
    return chart.variants[chart.controls.map(valueOf).join("/")];
  };

  /** A copy of a figure with the colors of the dark theme in place of the light ones. */
  function recolor(value) {
    if (typeof value === "string") return data.palette[value] ?? value;
    if (Array.isArray(value)) return value.map(recolor);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, recolor(inner)]));
    }
    return value;
  }

  /** The layout that all charts share, in the page's own colors and font. */
  function themed(layout, dark) {
    const ink = dark ? "#e6e9ed" : "#1a2027";
    const muted = dark ? "#9dabb9" : "#566270";
    const line = dark ? "#2b3540" : "#dde2e8";
    const card = dark ? "#161c22" : "#ffffff";
    const axis = (own) => ({
      gridcolor: line, linecolor: line, zerolinecolor: muted, zeroline: false, automargin: true,
      tickfont: { color: muted }, exponentformat: "e", ...own,
      title: { ...own?.title, font: { size: 12, color: muted }, standoff: 8 },
    });
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: 320, hovermode: "closest",
      dragmode: false, // a finger on a chart scrolls the page
      margin: { l: 8, r: 12, t: 10, b: 8 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: ink } },
      hoverlabel: { bgcolor: card, bordercolor: muted, font: { color: ink } },
      ...layout,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
    };
  }

  function draw(plot, dark = isDark()) {
    const figure = figureOf(plot.dataset.chart);
    const { data: traces, layout } = dark ? recolor(figure) : figure;
    const legend = traces.filter((trace) => trace.showlegend !== false).length > 1;
    const copy = structuredClone({ traces, layout: themed({ showlegend: legend, ...layout }, dark) });
    return Plotly.react(plot, copy.traces, copy.layout, { displayModeBar: false, responsive: true });
  }

  const plots = [...document.querySelectorAll("[data-chart]")];
  const drawAll = (dark = isDark()) => plots.forEach((plot) => draw(plot, dark));

  function changed(name) {
    for (const plot of plots) {
      if (data.charts[plot.dataset.chart].controls.includes(name)) {
        draw(plot);
        fillNumbers(document.querySelector(`[data-numbers="${plot.dataset.chart}"]`));
      }
    }
    for (const part of document.querySelectorAll(`[data-when^="${name}="]`)) {
      part.hidden = part.dataset.when !== `${name}=${valueOf(name)}`;
    }
  }

  // ---- the numbers under a chart ----------------------------------------------------------------------------------

  const shown = (value) =>
    typeof value !== "number" ? String(value ?? "–") : String(Number(value.toPrecision(4))).replace("-", "−");

  /** The label of a value on an axis: the text of its tick if the axis has texts. */
  const label = (axis, value) => (ticks(axis) && typeof value === "number" ? ticks(axis)[Math.round(value)] ?? shown(value) : shown(value));

  /** Rows (name, x, value, low, high) of the traces that show a tooltip. */
  function* numbersOf({ data: traces, layout }) {
    for (const trace of traces.filter((trace) => trace.hoverinfo !== "skip")) {
      if (trace.type === "heatmap") {
        for (const [row, values] of trace.z.entries()) {
          for (const [column, value] of values.entries()) {
            if (value !== null) yield [`on ${trace.y[row]}`, trace.x[column], shown(value), "", ""];
          }
        }
        continue;
      }
      const across = trace.error_x !== undefined;
      const error = trace.error_x ?? trace.error_y;
      for (const [index, x] of trace.x.entries()) {
        const value = across ? x : trace.y[index];
        const bounds = error ? [shown(value - error.arrayminus[index]), shown(value + error.array[index])] : ["", ""];
        yield [trace.name ?? "", across ? "" : label(layout.xaxis, x), shown(value), ...bounds];
      }
    }
  }

  function fillNumbers(details) {
    if (!details?.open) return;
    const table = make("table", "dense");
    const head = table.createTHead().insertRow();
    for (const name of ["", "at", "value", "low", "high"]) head.append(make("th", name && name !== "at" ? "n" : "", name));
    const body = table.createTBody();
    for (const row of numbersOf(figureOf(details.dataset.numbers))) {
      const line = body.insertRow();
      row.forEach((cell, index) => line.append(make("td", index > 1 ? "n" : "", cell)));
    }
    details.lastElementChild.replaceChildren(table);
  }

  // ---- samples ----------------------------------------------------------------------------------------------------

  const BATCH = 25;
  const NAMES = { reflection: 0, analysis: 0, subgoal: 0, correction: 0, verification: 0, planning: 0 };
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  let matching = [];
  let only = null; // list the responses to this problem only

  function make(tag, className = "", text = "") {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text) element.textContent = text;
    return element;
  }

  function countBehaviors(sample) {
    const counts = { ...NAMES };
    for (const [, behavior] of sample.parts) if (behavior) counts[behavior] += 1;
    return counts;
  }

  const verdictOf = (sample) => (sample.failure ? "none" : sample.right ? "right" : "wrong");

  const tests = {
    verdict: (sample, value) => verdictOf(sample) === value,
    trace: (sample, value) => sample.trace_valid === (value === "valid"),
    behavior: (sample, value) =>
      value in NAMES ? sample.counts[value] > 0 : Object.values(sample.counts).every((count) => count === 0),
    text: (sample, value) => sample.text.includes(value.toLowerCase()),
  };
  const plain = (name) => (sample, value) => String(sample[name]) === value;

  /** Every filter of the form that is set, as [test, value]. */
  function filters() {
    return [...new FormData(form)].filter(([, value]) => value).map(([name, value]) => [tests[name] ?? plain(name), value]);
  }

  function filter() {
    const wanted = filters();
    if (only !== null) wanted.push([(sample) => sample.problem === only]);
    matching = data.samples.filter((sample) => wanted.every(([test, value]) => test(sample, value)));
    list.replaceChildren();
    showMore();
  }

  function showMore() {
    const next = matching.slice(list.childElementCount, list.childElementCount + BATCH);
    list.append(...next.map(row));
    const all = data.samples.length.toLocaleString("en");
    document.getElementById("count").textContent =
      `${matching.length.toLocaleString("en")} of ${all} samples on this page` +
      (only === null ? "" : `: every response to ${data.problems[only].id}; Reset shows all`);
    document.getElementById("more").hidden = list.childElementCount >= matching.length;
  }

  /** One sample of the list; its body is built when it is first opened. */
  function row(sample) {
    const item = document.createElement("li");
    const details = document.createElement("details");
    const summary = document.createElement("summary");
    const verdict = verdictOf(sample);
    const words = { right: "✓ right", wrong: "✗ wrong", none: "no verdict" }[verdict];
    summary.append(make("span", `verdict-${verdict}`, words), make("span", "", data.problems[sample.problem].id));
    const run = form.elements.run ? `${sample.run}: ` : "";
    const number = sample.mode === "sampled" ? ` ${sample.sample}` : "";
    summary.append(make("span", `arm arm-${sample.series % 7}`, run + sample.arm));
    const meta = `after ${sample.stage} · ${sample.set} · ${sample.mode}${number} · seed ${sample.seed}`;
    summary.append(make("span", "meta", meta));
    for (const [name, count] of Object.entries(sample.counts)) {
      if (count) summary.append(make("span", `mark ${name}`, `${count} ${name}`));
    }
    details.append(summary);
    details.addEventListener("toggle", () => {
      if (details.open && details.childElementCount === 1) details.append(body(sample));
    });
    item.append(details);
    return item;
  }

  function body(sample) {
    const problem = data.problems[sample.problem];
    const box = make("div", "body");
    const question = document.createElement("div");
    question.append(make("h4", "", "Question"), make("p", "text", problem.question));
    const response = document.createElement("div");
    const text = make("p", "text response");
    for (const [words, behavior, wrong] of sample.parts) {
      const part = make("span", [behavior ? `mark ${behavior}` : "", wrong ? "wrong" : ""].join(" ").trim(), words);
      if (behavior) part.title = behavior;
      text.append(part);
    }
    response.append(make("h4", "", "Response"), text);
    box.append(question, response, facts(sample, problem));
    return box;
  }

  function facts(sample, problem) {
    const line = make("div", "facts");
    const verdict = verdictOf(sample);
    line.append(make("span", `verdict-${verdict}`, verdict === "none" ? "no verdict" : verdict));
    line.append(make("span", "", `right answer: ${problem.answer}`));
    if (verdict !== "none") {
      if (sample.trace_valid !== null) line.append(make("span", "", sample.trace_valid ? "trace valid" : "trace invalid"));
      line.append(make("span", "", sample.format_right ? "format right" : "format wrong"));
    }
    line.append(make("span", "", `${sample.tokens} tokens${sample.truncated ? ", truncated" : ""}`));
    const same = make("button", "link", "same problem");
    same.type = "button";
    same.addEventListener("click", () => {
      form.reset(); // clears an earlier choice of a problem too, then filters
      only = sample.problem;
      document.getElementById("count").scrollIntoView({ block: "center" });
    });
    line.append(same);
    const fault = sample.failure ?? sample.trace_fault;
    if (fault) line.append(make("span", "fault", `${sample.failure ? "Failure" : "First fault"}: ${fault}`));
    return line;
  }

  // ---- start ------------------------------------------------------------------------------------------------------

  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  prefersDark.addEventListener("change", showTheme);
  for (const control of controls) control.addEventListener("change", () => changed(control.dataset.control));
  for (const details of document.querySelectorAll("[data-numbers]")) {
    details.addEventListener("toggle", () => fillNumbers(details));
  }
  addEventListener("beforeprint", () => drawAll(false));
  addEventListener("afterprint", () => drawAll());

  // Mark the section in view in the bar.
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) links.get(entry.target.id)?.toggleAttribute("aria-current", entry.isIntersecting);
    },
    { rootMargin: "-20% 0px -75% 0px" },
  );
  document.querySelectorAll("main > section").forEach((section) => watcher.observe(section));

  // A browser may restore the state of the controls when a page is reloaded.
  new Set(controls.map((control) => control.dataset.control)).forEach(changed);
  showTheme();
  if (form) {
    for (const sample of data.samples) {
      Object.assign(sample, data.cells[sample.cell]);
      sample.counts = countBehaviors(sample);
      const words = [data.problems[sample.problem].question, ...sample.parts.map(([part]) => part)];
      sample.text = `${data.problems[sample.problem].id}\n${words[0]}\n${words.slice(1).join("")}`.toLowerCase();
    }
    form.addEventListener("submit", (event) => event.preventDefault());
    form.elements.text.addEventListener("input", filter);
    form.addEventListener("change", (event) => {
      if (event.target !== form.elements.text) filter(); // the text field filters on input; its change comes late, when a click may open a sample
    });
    form.addEventListener("reset", () => {
      only = null;
      setTimeout(filter); // after the fields are empty
    });
    document.getElementById("more").addEventListener("click", showMore);
    filter();
  }
})();
