"""What the page of ``clipkit explain`` adds to the report's style sheet, and its script."""

from __future__ import annotations

STYLE = """
.recipes { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,540px),1fr)); gap:48px 56px;
  margin-top:56px; }
article { min-width:0; border-top:1px solid var(--line); padding-top:24px; }
article h2 { font-size:26px; }
article > p { max-width:44em; }
.about { display:grid; grid-template-columns:max-content minmax(0,1fr); gap:2px 18px; font-size:14px; margin:14px 0 0; }
.about dt { color:var(--soft); } .about dd { margin:0; overflow-wrap:anywhere; }
.scroll { overflow-x:auto; margin-top:22px; padding-bottom:4px; }
.cells { width:auto; border-collapse:separate; border-spacing:2px; }
.cells caption { text-align:left; font-size:12.5px; padding-bottom:6px; white-space:nowrap; }
.cells th { padding:0; }
.cells thead th { vertical-align:bottom; text-align:center; }
.cells th[scope=row] { position:sticky; left:0; z-index:1; background:var(--paper); padding-right:6px; }
.cells img { width:40px; height:40px; aspect-ratio:auto; border-radius:3px; margin:0 auto; }
.code { font-size:12px; color:var(--soft); font-variant-numeric:tabular-nums; }
.side { display:flex; gap:6px; align-items:center; }
.side .code { min-width:1.7em; } .side img { flex:none; margin:0; }
.name { display:block; width:12em; font-size:13px; line-height:1.25; overflow-wrap:anywhere; }
.tall { display:inline-block; writing-mode:vertical-rl; transform:rotate(180deg); max-height:12em; padding:4px 0;
  font-size:12.5px; line-height:1.2; overflow-wrap:anywhere; text-align:left; }
th.queue span { font-size:12px; color:var(--soft); }
.cells td[tabindex] { width:42px; min-width:42px; height:42px; padding:0; text-align:center; border-radius:4px;
  line-height:1.15; cursor:default; }
.cells td b { display:block; font-size:13px; font-weight:650; }
.cells td span { font-size:11px; font-variant-numeric:tabular-nums; }
.cells td.gap { border-left:0; } .cells td.gap,.cells th.gap { position:relative; }
.cells td.gap::before { content:""; position:absolute; left:-2px; top:0; bottom:0; border-left:2px solid var(--ink);
  opacity:.45; }
.cells tr.gap > td { box-shadow:0 -2px 0 color-mix(in srgb,var(--ink) 45%,transparent); }
.cells td.queue { min-width:64px; }
.many img { width:32px; height:32px; }
.many td[tabindex] { width:34px; min-width:34px; height:36px; }
.many td[tabindex] span { font-size:10px; letter-spacing:-.03em; }
.pos { --role:var(--one); } .neg { --role:var(--two); }
td.pos,td.neg,.roles i.pos,.roles i.neg {
  background:color-mix(in srgb,var(--role) calc(7% + var(--v,.5)*var(--depth)*50%),var(--paper)); }
td.pos,.roles i.pos { outline:2px solid var(--one); outline-offset:-2px; }
td.none,.roles i.none { color:var(--soft);
  background:repeating-linear-gradient(45deg,var(--line) 0 1px,transparent 1px 6px); }
.cells td:focus-visible,.cells td.shown { outline:2.5px solid var(--ink); outline-offset:-1px; }
.readout { font-size:13.5px; min-height:3.2em; margin:8px 0 4px; color:var(--soft); max-width:52em; }
.roles { list-style:none; margin:0; padding:0; font-size:14px; line-height:1.4; }
.roles li { display:flex; gap:10px; align-items:baseline; margin:6px 0; }
.roles i { flex:none; width:24px; height:22px; border-radius:4px; font:650 13px/22px system-ui,sans-serif;
  text-align:center; }
.differs th,.differs td { text-align:left; vertical-align:baseline; padding:8px 24px 8px 0; font-size:14.5px;
  border-bottom:1px solid var(--line); overflow-wrap:anywhere; }
.differs thead th { font-weight:600; } .differs th[scope=row] { color:var(--soft); width:13em; }
.differs code { font-size:13px; white-space:nowrap; }
.same { font-size:13.5px; margin-top:14px; }
@media (max-width:760px) {
  .recipes { margin-top:36px; } .name { width:7.5em; font-size:12px; }
  .about { grid-template-columns:minmax(0,1fr); gap:0; } .about dd { margin-bottom:6px; }
  .differs thead { display:none; } .differs tr { display:block; padding:10px 0; border-bottom:1px solid var(--line); }
  .differs th,.differs td { display:block; border:0; padding:1px 0; width:auto !important; }
  .differs td::before { content:attr(data-recipe) ": "; color:var(--soft); }
}
"""

# One stop of the Tab key for each table, arrow keys inside it; the cell that is pointed at is read out below.
SCRIPT = """
for (const table of document.querySelectorAll('.cells')) {
  const out = table.closest('.scroll').nextElementSibling;
  const rows = [...table.tBodies[0].rows].map(row => [...row.querySelectorAll('td')]);
  let shown = null;
  const show = cell => {
    if (!cell) return;
    if (shown) { shown.classList.remove('shown'); shown.tabIndex = -1; }
    shown = cell; cell.classList.add('shown'); cell.tabIndex = 0; out.textContent = cell.title;
  };
  for (const kind of ['mouseover', 'focusin', 'click'])
    table.addEventListener(kind, event => show(event.target.closest('td[tabindex]')));
  table.addEventListener('keydown', event => {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    const i = rows.findIndex(row => row.includes(event.target));
    if (!step || i < 0) return;
    const next = (rows[i + step[0]] || [])[rows[i].indexOf(event.target) + step[1]];
    if (next) { event.preventDefault(); next.focus(); }
  });
}
"""
