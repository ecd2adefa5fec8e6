"""The page's style: light and dark, one column on a phone, no font and no file from elsewhere."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1a1d21; --soft: #57606a; --line: #d6dae0; --card: #f6f7f9; --good: #1a7f4b;
  --c0: #6b7280; --c7: #8b929c; --c1: #0b62c4; --c2: #b8500a; --c3: #0b7a6b; --c4: #7a3fc0; --c5: #b3215f; --c6: #5c6f0b; }
@media (prefers-color-scheme: dark) { :root { --back: #111418; --text: #e7eaee; --soft: #a2acb8; --line: #343b44; --card: #1a1f25;
  --good: #5fd39a; --c0: #9aa4b0; --c7: #747d89;
  --c1: #6db1ff; --c2: #ffa057; --c3: #4fd1bf; --c4: #c09bff; --c5: #ff86b3; --c6: #bcd04f; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--text); background: var(--back);
  margin: 0 auto; max-width: 70rem; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; } p { margin: .3rem 0 .8rem; max-width: 46rem; } .soft, small { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .8rem 0; } a { color: var(--c1); }
.keys { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; }
.key { display: inline-block; min-width: 1.5em; padding: 0 .35em; border-radius: 4px; text-align: center; font-weight: 600;
  font-size: .85em; color: var(--back); }
.key.c0 { background: var(--c0); } .key.c1 { background: var(--c1); } .key.c2 { background: var(--c2); } .key.c3 { background: var(--c3); }
.key.c4 { background: var(--c4); } .key.c5 { background: var(--c5); } .key.c6 { background: var(--c6); }
.key.c7 { background: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
.wide > table { min-width: max-content; overflow-wrap: normal; }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } th:first-child, td.words { text-align: left; } thead th { border-bottom: 2px solid var(--line); }
td small { display: block; font-size: .78rem; white-space: nowrap; } table.facts td, table.facts th { text-align: left; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem 1.5rem; }
figure { margin: 0; min-width: 0; } .chart figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .2rem; }
.chart svg { width: 100%; height: auto; display: block; max-width: 36rem; } details { font-size: .85rem; margin-top: .2rem; }
summary { color: var(--soft); cursor: pointer; } svg text { font: 13px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .name { font-weight: 600; } svg .line.c0, svg .line.c7 { stroke-dasharray: 5 4; }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); } .line.c3 { stroke: var(--c3); }
.line.c4 { stroke: var(--c4); } .line.c5 { stroke: var(--c5); } .line.c6 { stroke: var(--c6); } .line.c7 { stroke: var(--c7); }
svg .dot.c0, svg .bar.c0, svg text.c0 { fill: var(--c0); } svg .dot.c1, svg .bar.c1, svg text.c1 { fill: var(--c1); }
svg .dot.c2, svg .bar.c2, svg text.c2 { fill: var(--c2); } svg .dot.c3, svg .bar.c3, svg text.c3 { fill: var(--c3); }
svg .dot.c4, svg .bar.c4, svg text.c4 { fill: var(--c4); } svg .dot.c5, svg .bar.c5, svg text.c5 { fill: var(--c5); }
svg .dot.c6, svg .bar.c6, svg text.c6 { fill: var(--c6); } svg .dot.c7, svg .bar.c7, svg text.c7 { fill: var(--c7); }
.cards { list-style: none; padding: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem; min-width: 0; }
.card h3 { margin: 0 0 .5rem; font-size: 1rem; } .card p { margin: .5rem 0 .2rem; font-size: .9rem; }
.right { color: var(--good); font-weight: 600; } .frames { display: grid; grid-template-columns: repeat(4, 1fr); gap: 4px; }
.frames img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 5px; display: block; background: var(--line); }
@media (max-width: 40rem) { .wide .full { display: none; } body { padding-top: 1rem; } th, td { padding: .3rem .45rem; } }
"""
