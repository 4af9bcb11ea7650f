"""Stylesheet and script of the HTML report.

What belongs here: the page's look, as text that is put into it, so that the page needs no network. Light, dark and
print; tables scroll inside their own box, so that the page itself never scrolls sideways.
"""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark; --paper: #fcfbf8; --raised: #ffffff; --ink: #1b1a17; --quiet: #6a665d;
  --rule: #e4e0d6; --soft: #f3f0e8; --ok: #0d6b53; --ok-soft: #e2f1eb; --bad: #a32c1c; --bad-soft: #fae8e4;
  --accent: #0d6b53; --c1: #a3561c; --c2: #46509e; --c3: #8a2f6b;
  --sans: system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
  --serif: "Iowan Old Style",Charter,"Bitstream Charter","Source Serif Pro",Georgia,Cambria,serif;
  --mono: ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #151513; --raised: #1d1d1a; --ink: #ece9e1; --quiet: #a09b90; --rule: #33322d; --soft: #23221f;
    --ok: #6fcfae; --ok-soft: #17332a; --bad: #f0937f; --bad-soft: #3d1e18; --accent: #6fcfae; --c1: #e0a06a;
    --c2: #a3adf0; --c3: #dd93c4;
  }
}
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body {
  margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 var(--sans);
  font-variant-numeric: tabular-nums;
}
main { max-width: 66rem; margin: 0 auto; padding: 3rem 1.5rem 4rem }
header { padding-bottom: 2rem; border-bottom: 1px solid var(--rule) }
.eyebrow {
  margin: 0 0 .9rem; display: flex; flex-wrap: wrap; gap: .8rem; align-items: center; color: var(--quiet);
  font-size: .85rem;
}
h1 {
  margin: 0 0 .7rem; font: 600 clamp(1.55rem,4.5vw,2.3rem)/1.15 var(--serif); letter-spacing: -.012em;
  overflow-wrap: anywhere;
}
.verdict { margin: 0; max-width: 46rem; font: 1.1rem/1.5 var(--serif); overflow-wrap: anywhere }
.badge {
  display: inline-flex; gap: .45em; align-items: center; padding: .22em .75em .22em .6em;
  border-radius: 99px; font-weight: 650; font-size: .85rem; border: 1px solid currentColor;
}
.badge.ok { color: var(--ok); background: var(--ok-soft) }
.badge.failed { color: var(--bad); background: var(--bad-soft) }
.badge.not.judged { color: var(--ink); border: 1px dashed currentColor }
.keys {
  display: grid; grid-template-columns: repeat(auto-fit,minmax(9.5rem,1fr)); gap: 1px; margin: 2rem 0 0;
  background: var(--rule); border: 1px solid var(--rule); border-radius: 10px; overflow: hidden;
}
.keys div { background: var(--raised); padding: .9rem 1.1rem 1rem }
.keys dt { color: var(--quiet); font-size: .78rem; line-height: 1.35 }
.keys dd { margin: .2rem 0 0; font: 500 1.5rem/1.2 var(--serif) }
.keys small { display: block; margin-top: .2rem; font: .78rem/1.35 var(--sans); color: var(--quiet) }
section { margin-top: 2.75rem }
h2 { margin: 0 0 .3rem; font: 600 1.28rem/1.3 var(--serif) }
h2+p, .note { margin: 0 0 1rem; color: var(--quiet); font-size: .88rem; max-width: 46rem }
.scroll+.note, .verdict+.note { margin-top: .9rem }
.quiet { color: var(--quiet); font-weight: 400 }
.scroll { overflow-x: auto; border: 1px solid var(--rule); border-radius: 10px; background: var(--raised) }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
table { border-collapse: collapse; width: 100%; font-size: .88rem }
th, td { padding: .55rem .85rem; text-align: left; vertical-align: top; white-space: nowrap }
thead th {
  color: var(--quiet); font-weight: 550; font-size: .8rem; border-bottom: 1px solid var(--rule);
  background: var(--soft);
}
tbody tr+tr>* { border-top: 1px solid var(--rule) }
tbody th { font-weight: 550 }
.num { text-align: right }
td small, th small {
  display: block; color: var(--quiet); font-size: .78rem; font-weight: 400; line-height: 1.4;
}
td.num small { white-space: normal }
td.wrap, th.wrap { white-space: normal; min-width: 12rem; overflow-wrap: anywhere }
td.pin, th.pin { white-space: normal; overflow-wrap: anywhere; min-width: 8rem }
td.data { white-space: normal; min-width: 8.5rem; overflow-wrap: anywhere }
.mono { font-family: var(--mono); font-size: .84em }
thead button { all: unset; cursor: pointer; color: inherit; border-radius: 3px }
thead button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
thead button::after { content: " \\2195"; opacity: .55 }
[aria-sort=ascending] button::after { content: " \\2191"; opacity: 1 }
[aria-sort=descending] button::after { content: " \\2193"; opacity: 1 }
.chip {
  display: inline-block; padding: .05em .6em; border-radius: 99px; font-size: .8rem;
  border: 1px solid var(--rule);
}
.chip.int8 { color: var(--ok); background: var(--ok-soft); border-color: transparent }
.chip.float { color: var(--bad); border: 1px dashed currentColor }
.bar {
  display: inline-block; vertical-align: middle; width: 4.5rem; height: .4rem; margin-right: .7rem;
  border-radius: 2px; background: var(--soft); overflow: hidden;
}
.bar i { display: block; height: 100%; background: var(--accent); opacity: .75 }
.share {
  display: flex; height: .7rem; margin: 0 0 .9rem; border-radius: 99px; overflow: hidden;
  background: var(--soft); border: 1px solid var(--rule);
}
.share i { display: block; background: var(--accent) }
.pair { display: grid; grid-template-columns: repeat(auto-fit,minmax(min(100%,20rem),1fr)); gap: 1.5rem }
.pair p { margin: 0 0 .4rem; overflow-wrap: anywhere }
.warnings { margin: 0 0 2rem; font-size: 1.05rem }
.findings { list-style: none; margin: .8rem 0 0; padding: 0; display: grid; gap: .6rem }
.findings li {
  padding: .7rem 1rem; border: 1px solid var(--bad); border-left-width: 4px; border-radius: 6px;
  background: var(--bad-soft); overflow-wrap: anywhere;
}
pre {
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; padding: .9rem 1.1rem;
  border: 1px solid var(--rule); border-radius: 10px;
  background: var(--soft); font: .82rem/1.6 var(--mono);
}
dl.facts {
  display: grid; grid-template-columns: minmax(7rem,max-content) minmax(0,1fr); gap: .35rem 1.5rem;
  margin: 1.1rem 0 0; font-size: .88rem;
}
dl.facts dt { color: var(--quiet) }
dl.facts dd { margin: 0; overflow-wrap: anywhere }
details { margin-top: 1rem }
summary { cursor: pointer; color: var(--quiet); font-size: .88rem; width: fit-content }
details[open]>summary { margin-bottom: .8rem }
.charts { display: grid; grid-template-columns: repeat(auto-fill,minmax(min(100%,18rem),1fr)); gap: 1rem }
figure { margin: 0 }
.chart {
  padding: .8rem .9rem .6rem; border: 1px solid var(--rule); border-radius: 10px; background: var(--raised);
}
figcaption { font-size: .85rem; font-weight: 550; overflow-wrap: anywhere }
.chart>svg { display: block; width: 100%; height: auto; margin-top: .5rem }
.curve { fill: none; stroke: var(--accent); stroke-width: 1.6; stroke-linejoin: round }
.dot { fill: var(--accent) }
.c1 { stroke: var(--c1) }
.c2 { stroke: var(--c2) }
.c3 { stroke: var(--c3) }
.grid { stroke: var(--rule); stroke-width: 1 }
.tick { fill: var(--quiet); font: 10px var(--sans) }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .4rem 0 0; padding: 0;
  font-size: .78rem; color: var(--quiet);
}
.legend svg { width: 24px; height: 8px; margin-right: .4rem }
.sheets { display: grid; gap: 1.5rem; margin-top: 1rem }
.sheets img {
  display: block; max-width: 100%; height: auto; margin-top: .5rem; border: 1px solid var(--rule);
  border-radius: 6px; image-rendering: pixelated;
}
footer {
  margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--rule); color: var(--quiet);
  font-size: .8rem;
}
@media screen and (max-width: 56rem) {
  table.named thead { display: none }
  table.named, table.named tbody, table.named tr { display: block; width: 100% }
  table.named tr { padding: .5rem .9rem }
  table.named tbody tr+tr { border-top: 1px solid var(--rule) }
  table.named tbody tr+tr>* { border-top: 0 }
  table.named tr>* {
    display: flex; justify-content: space-between; gap: 1rem; padding: .15rem 0; min-width: 0; max-width: none;
    white-space: normal; overflow-wrap: anywhere; text-align: right;
  }
  table.named tr>.num { white-space: nowrap }
  table.named .num small { white-space: normal }
  table.named tr>*::before { content: attr(data-h); color: var(--quiet); font-weight: 400; text-align: left }
  table.named tr>:empty { display: none }
  table.named tr>th { display: block; text-align: left }
  table.named tr>th::before { content: none }
}
@media (max-width: 40rem) {
  .bar { display: none }
  main { padding: 1.75rem 1rem 3rem }
  .keys { grid-template-columns: 1fr 1fr }
  .keys dd { font-size: 1.25rem }
  th, td { padding: .5rem .7rem }
  dl.facts { grid-template-columns: minmax(0,1fr); gap: 0 }
  dl.facts dd { margin-bottom: .5rem }
}
@media print {
  :root {
    color-scheme: light; --paper: #fff; --raised: #fff; --ink: #000; --quiet: #555; --rule: #ccc;
    --soft: #f6f6f6; --ok: #0d6b53; --ok-soft: #fff; --bad: #a32c1c; --bad-soft: #fff; --accent: #0d6b53;
    --c1: #a3561c; --c2: #46509e; --c3: #8a2f6b;
  }
  body { font-size: 10pt }
  main { max-width: none; padding: 0 }
  @page { margin: 1.5cm }
  .scroll { overflow: visible; border: 0 }
  details::details-content { content-visibility: visible; block-size: auto }
  tr, figure, .findings li { break-inside: avoid }
  table { font-size: .86em }
  .scroll th, .scroll td { white-space: normal; padding: .3rem .5rem; min-width: 0; overflow-wrap: anywhere }
  .scroll td.num { white-space: nowrap }
  .scroll thead th { font-size: .95em; overflow-wrap: normal }
  td small, th small { font-size: .92em }
  thead button::after { content: "" }
  pre { white-space: pre-wrap }
}
"""

# Sorting is a convenience: without script the tables are complete, in the model's order.
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const names = [...table.tHead.rows[0].cells].map(head => head.textContent);
  for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, i) => cell.dataset.h = names[i]);
  table.classList.add("named");
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => part.open = true));
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const numeric = head.classList.contains("num");
      const rows = [...body.rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === "" || y === "") return (x === "") - (y === "");
        return (numeric ? x - y : x.localeCompare(y)) * (down ? -1 : 1);
      });
      body.append(...rows);
    });
  });
}
"""
