// What pages of the console do in the browser, beside htmx. No page holds a script: all
// that there is to do is said by data attributes.
(function () {
  "use strict";
  const $ = (selector, from) => (from || document).querySelector(selector);
  const $$ = (selector, from) => Array.from((from || document).querySelectorAll(selector));

  // Menu on narrow screens.
  document.addEventListener("click", function (e) {
    const toggle = e.target.closest("[data-toggle]");
    if (toggle) {
      const open = document.getElementById(toggle.dataset.toggle).classList.toggle("open");
      toggle.setAttribute("aria-expanded", String(open));
    }
    if (e.target.closest("[data-close]")) {
      const dialog = e.target.closest("dialog");
      if (dialog) dialog.close(); else history.back();
    }
    const copy = e.target.closest("[data-copy]");
    if (copy && navigator.clipboard) {
      const from = document.getElementById(copy.dataset.copy);
      navigator.clipboard.writeText(from.textContent).then(() => tell({ kind: "ok", text: "Copied." }));
    }
  });

  // The dialog that asks back: what htmx loads into it opens it.
  const dialog = document.getElementById("dialog");
  let asked = null; // what had the focus
  document.addEventListener("htmx:afterSwap", function (e) {
    if (e.detail.target !== dialog || !dialog.firstElementChild) return;
    if (!dialog.open) {
      asked = document.activeElement;
      dialog.showModal();
    }
    const first = $("input:not([type=hidden]), select, textarea", dialog) || $("[data-close]", dialog);
    if (first) first.focus();
  });
  dialog.addEventListener("close", function () {
    dialog.replaceChildren();
    if (asked && asked.isConnected) asked.focus();
    asked = null;
  });
  dialog.addEventListener("click", function (e) { if (e.target === dialog) dialog.close(); });
  document.addEventListener("closeDialog", function () { if (dialog.open) dialog.close(); });

  // Notices after actions.
  const notices = document.getElementById("notices");
  function raise() { // above a dialog that is open, too
    if (!notices.showPopover) return;
    if (notices.matches(":popover-open")) notices.hidePopover();
    notices.showPopover();
  }
  function fade(toast, after) {
    setTimeout(function () {
      toast.remove();
      if (!notices.childElementCount && notices.matches(":popover-open")) notices.hidePopover();
    }, after);
  }
  function tell(n) {
    const error = $(".dialog-error", dialog);
    if (n.kind === "error" && dialog.open && error) {
      error.textContent = n.text;
      return;
    }
    const toast = document.createElement("div");
    toast.className = "toast " + (n.kind === "error" ? "error" : "ok");
    toast.textContent = n.text;
    while (notices.childElementCount > 2) notices.firstElementChild.remove();
    notices.append(toast);
    raise();
    fade(toast, n.kind === "error" ? 15000 : 6000);
  }
  document.addEventListener("notice", (e) => tell(e.detail));
  if ($("[data-toast]", notices)) {
    raise();
    $$("[data-toast]", notices).forEach((t) => fade(t, 8000));
  }
  document.addEventListener("htmx:sendError", function (e) {
    const by = e.detail.requestConfig && e.detail.requestConfig.triggeringEvent;
    if (by && by.isTrusted) tell({ kind: "error", text: "The console does not answer. Check that it runs; then try again." });
    else away(); // a page that fetches by itself
  });
  function away() {
    const bus = document.getElementById("bus");
    if (!bus || bus.querySelector("[data-away]")) return;
    const banner = document.createElement("div"), p = document.createElement("p");
    banner.className = "banner bad";
    banner.dataset.away = "";
    p.textContent = "The console does not answer. What you see is as it was last seen; the page tries again by itself.";
    banner.append(p);
    bus.replaceChildren(banner);
  }

  // What pages fetch by themselves is told apart from what people do: it keeps nobody
  // logged in.
  document.addEventListener("htmx:configRequest", function (e) {
    const by = e.detail.triggeringEvent;
    if (!by || !by.isTrusted) e.detail.headers["X-Background"] = "true";
  });

  // A page that waits for the bus.
  const reload = $("[data-reload]");
  if (reload) setTimeout(() => location.reload(), 1000 * Number(reload.dataset.reload));

  // Theme: at once, and stored by the server.
  document.addEventListener("change", function (e) {
    if (e.target.name === "theme") {
      document.documentElement.dataset.theme = e.target.value;
      $("meta[name=color-scheme]").content = e.target.value === "auto" ? "light dark" : e.target.value;
      redraw();
    }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());

  // Times: the title of each shows the zone of the browser beside UTC.
  document.addEventListener("mouseover", function (e) {
    const time = e.target.closest && e.target.closest("time[datetime]");
    if (time && !time.dataset.local) {
      time.dataset.local = "1";
      time.title += "\n" + new Date(time.dateTime).toLocaleString(undefined, { timeZoneName: "short" });
    }
  });

  // Plots.
  const drawn = new Map(); // element to uPlot
  let last = null;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  function short(v, unit) {
    if (v == null) return "–";
    if (unit === "s") return v >= 3600 ? (v / 3600).toFixed(1) + "h" : v >= 120 ? (v / 60).toFixed(1) + "m" : (v >= 10 || v === 0 ? v.toFixed(0) : v.toFixed(1)) + "s";
    const step = unit === "B/s" ? 1024 : 1000, names = unit === "B/s" ? ["", "Ki", "Mi", "Gi", "Ti"] : ["", "k", "M", "G", "T"];
    let i = 0;
    for (; Math.abs(v) >= step && i < 4; i++) v /= step;
    return (v >= 100 || v === 0 || Number.isInteger(v) ? v.toFixed(0) : v >= 10 ? v.toFixed(1) : v.toFixed(2)) + names[i];
  }
  function draw(el, plot, data) {
    const old = drawn.get(el);
    // What began just now is not drawn at the edge of an empty field.
    const range = [Math.max(data.from, Math.min(data.time[0], data.to - 300)), data.to];
    const rows = [data.time].concat(plot.series.map((s) => s.values));
    if (old && old.theme === css("--bg") && old.names === plot.series.map((s) => s.label).join()) {
      old.range = range;
      old.u.setData(rows);
      return;
    }
    if (old) old.u.destroy();
    el.replaceChildren();
    const entry = { theme: css("--bg"), names: plot.series.map((s) => s.label).join(), range: range };
    const two = (n) => String(n).padStart(2, "0");
    const clock = (t, seconds) => { const d = new Date(t * 1000); return two(d.getHours()) + ":" + two(d.getMinutes()) + (seconds ? ":" + two(d.getSeconds()) : ""); };
    const powers = Array.from({ length: 50 }, (_, i) => Math.pow(2, i));
    const axis = { stroke: css("--muted"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line"), width: 1 }, font: "11px " + css("--font") };
    entry.u = new uPlot({
      width: el.clientWidth, height: 200, padding: [10, 16, 0, 0],
      scales: { x: { range: () => entry.range }, y: { range: (u, min, max) => [0, max > 0 ? max * 1.1 : 1] } },
      axes: [
        Object.assign({ size: 30, values: (u, ts, i, space, step) => ts.map((t) => clock(t, step < 60)) }, axis),
        Object.assign({ size: 52, values: (u, vs) => vs.map((v) => short(v, plot.unit)) }, plot.unit === "B/s" ? { incrs: powers } : {}, axis),
      ],
      cursor: { points: { size: 6 }, sync: { key: "pipeline" }, drag: { x: false, y: false } },
      legend: { live: true },
      series: [{ value: (u, v) => v == null ? "" : clock(v, true) }].concat(plot.series.map((s, i) => ({
        label: s.label, stroke: css("--plot-" + (i % 7 + 1)), width: 1.5, points: { show: data.time.length < 2 }, value: (u, v) => short(v, plot.unit),
      }))),
    }, rows, el);
    drawn.set(el, entry);
  }
  function redraw() {
    if (!last) return;
    $$("[data-plot]").forEach(function (el) {
      const plot = last.plots[el.dataset.plot];
      if (plot) draw(el, plot, last);
    });
  }
  const box = $("[data-plots]");
  if (box && window.uPlot) {
    let timer = 0;
    const span = () => { const on = $("[data-spans] input:checked"); return on ? on.value : ""; };
    const load = function () {
      clearTimeout(timer);
      timer = setTimeout(load, 5000);
      if (document.hidden) return;
      fetch(box.dataset.plots + "?span=" + encodeURIComponent(span()), { headers: { "Accept": "application/json", "X-Background": "true" } })
        .then((r) => r.ok ? r.json() : Promise.reject(r.status))
        .then(function (data) {
          last = data;
          if (data.time.length) { redraw(); return; }
          $$("[data-plot]").forEach(function (el) {
            if (drawn.has(el) || el.firstElementChild) return;
            const p = document.createElement("p");
            p.className = "empty";
            p.textContent = "Points appear some seconds after the start of the console.";
            el.append(p);
          });
        })
        .catch(() => {}); // the next round tries again, and the page says that the bus is away
    };
    document.addEventListener("change", (e) => { if (e.target.closest("[data-spans]")) load(); });
    document.addEventListener("visibilitychange", load);
    new ResizeObserver(function () {
      drawn.forEach((entry, el) => { if (el.clientWidth && entry.u.width !== el.clientWidth) entry.u.setSize({ width: el.clientWidth, height: 200 }); });
    }).observe(box);
    load();
  }
})();
