"""The style sheet of the report: light and dark, wide and narrow, system fonts, nothing to load."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --paper:#fcfbf8; --ink:#1c1d1f; --soft:#63666b; --line:#dddad2; --wash:#f3f1eb;
  --one:#1b5e8c; --two:#b4531f; --good:#2f7146; --bad:#a8392f; --heat:27 94 140;
  --depth:1; --on-heat:#fff; }
@media (prefers-color-scheme: dark) { :root {
  --paper:#15171a; --ink:#e7e5df; --soft:#9b9fa6; --line:#33373d; --wash:#1d2024;
  --one:#84bce3; --two:#eba678; --good:#86c79b; --bad:#ec958b; --heat:132 188 227;
  --depth:.78; --on-heat:#000; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--paper); color:var(--ink); -webkit-text-size-adjust:100%;
  font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif; }
main { max-width:1120px; margin:0 auto; padding:72px 40px 96px; }
h1,h2,.lede { font-family:"Iowan Old Style","Palatino Linotype",Palatino,"Noto Serif",Georgia,serif;
  font-weight:500; text-wrap:balance; }
h1 { font-size:15px; letter-spacing:.01em; color:var(--soft); margin:0 0 20px; font-style:italic; }
.lede { font-size:clamp(25px,3.6vw,38px); line-height:1.24; margin:0 0 18px; max-width:26em;
  letter-spacing:-.012em; }
.facts { color:var(--soft); margin:0; max-width:60em; }
section { display:grid; grid-template-columns:210px minmax(0,1fr); gap:12px 44px; margin-top:64px;
  border-top:1px solid var(--line); padding-top:24px; }
section > header { grid-column:1; font-size:13.5px; line-height:1.5; color:var(--soft); }
section > div { grid-column:2; min-width:0; }
h2 { font-size:22px; line-height:1.2; margin:0 0 10px; color:var(--ink); }
h3 { font-size:14px; font-weight:600; margin:0 0 12px; }
* + h3 { margin-top:36px; }
p { margin:0 0 10px; overflow-wrap:anywhere; }
.num { font-variant-numeric:tabular-nums; white-space:nowrap; }
.soft { color:var(--soft); }
table { border-collapse:collapse; width:100%; }
th { font-weight:400; text-align:left; }
.scores th,.scores td { padding:8px 20px 8px 0; border-bottom:1px solid var(--line);
  vertical-align:baseline; }
.scores thead th { font-size:12.5px; color:var(--soft); padding-top:0; }
.scores .value { font-size:21px; font-weight:600; letter-spacing:-.01em; }
.scores .strip { width:32%; padding-right:0; vertical-align:middle; }
.scores .block th { font-weight:600; font-size:14px; padding:20px 0 6px; }
.scores .block:first-child th { padding-top:10px; }
.strip i { position:relative; display:block; height:18px; }
.strip i::before { content:""; position:absolute; inset:8.5px 0 auto; height:1px; background:var(--line); }
.strip b,.strip u,.strip s { position:absolute; top:0; height:18px; }
.strip b { top:5px; height:8px; background:var(--one); opacity:.32; border-radius:2px; min-width:2px; }
.strip u { top:2px; height:14px; width:3px; margin-left:-1.5px; background:var(--one); border-radius:1px; }
.strip s { top:4px; height:10px; width:0; border-left:2px dotted var(--soft); margin-left:-1px; }
.strip s.base { border-left:2px solid var(--two); }
.key { font-size:12.5px; color:var(--soft); margin-top:10px; }
.key span { display:inline-block; margin-right:18px; white-space:nowrap; }
.key i { display:inline-block; height:10px; margin-right:7px; vertical-align:-1px; }
.key .run { width:16px; border-radius:2px;
  background:linear-gradient(90deg,transparent 6px,var(--one) 6px 9px,transparent 9px),
  color-mix(in srgb,var(--one) 32%,transparent); }
.key .base { border-left:2px solid var(--two); } .key .guess { border-left:2px dotted var(--soft); }
.key + .curves { margin-top:36px; }
.curves { display:grid; grid-template-columns:repeat(auto-fit,minmax(300px,1fr)); gap:28px 36px; }
figure { margin:0; min-width:0; }
figcaption { font-size:13.5px; font-weight:600; margin-bottom:4px; }
figcaption span { font-weight:400; color:var(--soft); }
svg { display:block; width:100%; height:auto; overflow:visible; }
svg text { font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif !important; }
img,.missing { display:block; width:100%; aspect-ratio:1; object-fit:contain; background:#fff;
  border-radius:4px; outline:1px solid var(--line); outline-offset:-1px; }
.missing { background:var(--wash); }
.heat { table-layout:fixed; }
.heat td,.heat thead th { padding:3px; }
.heat th[scope=row] { padding:3px 16px 3px 0; font-size:13.5px; line-height:1.3; overflow-wrap:anywhere; }
.heat td span { display:grid; place-items:center; min-height:44px; border-radius:4px; font-size:12.5px;
  background:rgb(var(--heat)/calc(var(--v)*var(--depth))); }
.heat td.hot span { color:var(--on-heat); font-weight:500; }
.heat td.own span { box-shadow:0 0 0 2px var(--paper),0 0 0 3.5px var(--ink); font-weight:650; }
.finds { display:grid; grid-template-columns:repeat(auto-fill,minmax(340px,1fr)); gap:32px 40px; }
.find { display:grid; grid-template-columns:128px minmax(0,1fr); gap:4px 18px; align-items:start;
  font-size:14px; line-height:1.4; margin:0; }
.find .rank { font-size:12.5px; color:var(--soft); }
.find .right { margin:1px 0 8px; font-size:15.5px; line-height:1.35; }
.find ol { list-style:none; margin:0; padding:8px 0 0; border-top:1px solid var(--line); }
.find li { display:grid; grid-template-columns:26px minmax(0,1fr) auto; gap:8px; align-items:center;
  padding:3px 0; overflow-wrap:anywhere; }
.find li img,.find li .missing { border-radius:2px; }
.yes { color:var(--good); font-weight:600; } .no { color:var(--bad); font-weight:600; }
.bars { display:grid; grid-template-columns:minmax(0,11em) minmax(0,1fr) auto; gap:5px 14px; font-size:13.5px;
  line-height:1.35; align-items:center; margin:0; }
.bars dt { overflow-wrap:anywhere; }
.bars dd { margin:0; }
.bars .bar { position:relative; height:14px; background:var(--wash); border-radius:2px; }
.bars .bar b { position:absolute; inset:0 auto 0 0; background:var(--one); border-radius:2px; }
.bars .bar s { position:absolute; top:-2px; bottom:-2px; border-left:2px dotted var(--ink); }
details { margin-top:14px; } summary { cursor:pointer; font-size:14px; }
pre { overflow-x:auto; background:var(--wash); padding:18px 20px; border-radius:6px; margin:12px 0 0;
  font:12.5px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace; }
@media (max-width:760px) {
  main { padding:36px 20px 64px; }
  section { grid-template-columns:minmax(0,1fr); margin-top:48px; gap:16px; }
  section > div { grid-column:1; }
  .scores thead { display:none; }
  .scores tr { display:grid; grid-template-columns:1fr auto; padding:10px 0;
    border-bottom:1px solid var(--line); }
  .scores th,.scores td,.scores .block th { border:0; padding:2px 0; }
  .scores .block { padding:18px 0 6px; }
  .scores td[data-name]::before { content:attr(data-name) " "; }
  .scores td[data-name] { font-size:13px; color:var(--soft); }
  .scores td.chance { text-align:right; grid-column:2; }
  .scores .strip { width:auto; grid-column:1/-1; }
  .heat tr { display:grid; grid-template-columns:repeat(var(--n),minmax(0,1fr)); }
  .heat td,.heat thead th { padding:2px; }
  .heat colgroup { display:none; }
  .heat th[scope=row] { grid-column:1/-1; padding:8px 2px 2px; }
  .heat thead td { display:none; }
  .heat td span { min-height:32px; font-size:11px; }
  .finds { grid-template-columns:minmax(0,1fr); }
  .find { grid-template-columns:96px minmax(0,1fr); gap:4px 14px; }
  .bars { grid-template-columns:minmax(0,8em) minmax(0,1fr) auto; }
}
@media print { section { break-inside:avoid; } }
"""
