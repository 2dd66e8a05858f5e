"""The style sheet of report.html.

It holds at 390 pixels of width, the page of a telephone: what is wider scrolls in a box of its own, where the
first column of a table stays in its place. No text is smaller than 12 pixels.
"""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c1f23; --paper: #ffffff; --quiet: #555d66; --rule: #d5d9de;
  --band: #f0f2f5; --link: #0b5cad; --a: #0b5cad; --b: #b34700; --good: #19703b; --bad: #b3161b;
  --open: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --paper: #15181b; --quiet: #a9b1ba;
  --rule: #3a4148; --band: #1f2429; --link: #7dbcff; --a: #6cb2ff; --b: #ff9a52; --good: #6fd394;
  --bad: #ff8b87; --open: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 4rem; max-width: 64rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin-top: 2.5rem;
  border-top: 1px solid var(--rule); padding-top: 1rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
a { color: var(--link); } dl a, table a { color: inherit; text-decoration: underline dotted var(--quiet); }
pre { white-space: pre-wrap; margin: 0; font-size: .875rem; }
dl { display: grid; grid-template-columns: minmax(5rem, 9rem) minmax(0, 1fr); gap: .2rem 1rem; }
dt { color: var(--quiet); } dd { margin: 0; } .glossary dt { color: var(--ink); font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: separate; border-spacing: 0; margin: .3rem 0 1rem;
  font-size: .9375rem; overflow-wrap: normal; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .5rem; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th:first-child { position: sticky; left: 0; background: var(--paper); min-width: 8.5rem;
  max-width: 9.5rem; overflow-wrap: break-word; border-right: 1px solid var(--rule); font-weight: 500; }
@media (min-width: 48rem) { th:first-child { min-width: 12rem; max-width: 24rem; } }
tr.heading > * { background: var(--band); font-weight: 600; } .indented { padding-left: 1.25rem; }
td.n, th.n { text-align: right; white-space: nowrap; } td { min-width: 6rem; } td.told { min-width: 10rem; }
.passed, .proven { color: var(--good); font-weight: 600; }
.FAILED { color: var(--bad); font-weight: 600; } .not, .did { color: var(--open); font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } figcaption { color: var(--quiet); font-size: .875rem; }
svg { width: 100%; min-width: 346px; max-width: 30rem; height: auto; display: block; }
svg text { fill: var(--quiet); font: 12.5px system-ui, sans-serif; }
svg .title { fill: var(--ink); font-weight: 600; }
svg .kind, svg .limit { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
svg text.limit { fill: var(--ink); }
.grid { stroke: var(--rule); stroke-width: 1; fill: none; } .axis { stroke: var(--quiet); fill: none; }
.band { fill: var(--band); } .marks, .line { fill: none; }
path.limit { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 2 3; fill: none; }
.marks.a { stroke-width: 3; stroke-linecap: round; } .marks.b { stroke-width: 1; }
.marks.a.mean { stroke-width: 9; } .marks.b.mean { stroke-width: 2.5; }
.line { stroke-width: 2; } .line.b { stroke-dasharray: 6 3; }
.a { stroke: var(--a); } .b { stroke: var(--b); } summary { cursor: pointer; margin: .5rem 0; }
"""
