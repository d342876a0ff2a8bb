"""The style sheet of every page: light and dark by the reader's preference, light on paper.

``--s1`` .. ``--s6`` are the plot series, the Okabe-Ito palette (tells apart under the common colour deficiencies), brightened in
the dark. ``plots.py`` writes its figures with these variables, so a picture follows the page.
"""

CSS = """
:root{--bg:#f6f7f9;--card:#fff;--ink:#1c2430;--soft:#5b6675;--line:#dfe4ea;--wash:#eef1f5;--accent:#0b63a5;
--s1:#0072b2;--s2:#d55e00;--s3:#009e73;--s4:#cc79a7;--s5:#b8860b;--s6:#56b4e9;
--good:#12713f;--good-bg:#e3f4ea;--bad:#a4161a;--bad-bg:#fdeaea;--warn:#7a4b00;--warn-bg:#fff3d9;
--t-text:#d9e8f7;--t-marker:#e8dcf5;--t-coord:#d6f0e2;--t-end:#fbe3cb;--t-none:#e8eaed}
@media screen and (prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1a2029;--ink:#e4e9f0;--soft:#98a4b3;--line:#2d3642;
--wash:#232b36;--accent:#6db7f2;--s1:#56aee8;--s2:#f0803c;--s3:#2fc79a;--s4:#e39cc4;--s5:#e0b53a;--s6:#8fd0f7;
--good:#7fdba6;--good-bg:#153425;--bad:#ff9d9d;--bad-bg:#451b1e;--warn:#ffd27d;--warn-bg:#3e2f10;
--t-text:#1f3a56;--t-marker:#3b2b52;--t-coord:#174434;--t-end:#553618;--t-none:#2d343d}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:3.2rem}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,
"Liberation Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:1.2rem 1.4rem 4rem}
nav{position:sticky;top:0;z-index:2;display:flex;gap:1.1rem;overflow-x:auto;padding:.6rem max(1.4rem,calc(50vw - 570px));
background:var(--card);border-bottom:1px solid var(--line);font-size:.86rem;white-space:nowrap}
nav a{color:var(--soft);text-decoration:none}nav a:hover{color:var(--accent)}
h1{font-size:1.7rem;line-height:1.2;margin:.4rem 0 .3rem;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:1.16rem;margin:0 0 .2rem;letter-spacing:-.01em}
h3{font-size:.95rem;margin:1.3rem 0 .5rem}
p{margin:.4rem 0}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1.1rem 1.3rem 1.2rem;margin:1rem 0}
.note,.missing,figcaption,.lead{color:var(--soft);font-size:.87rem}
.note{margin:.1rem 0 .9rem;max-width:86ch}
.lead{font-size:.95rem;margin:0 0 .8rem}
.missing{border-left:3px solid var(--line);padding:.15rem .8rem;font-style:italic}
code,.mono,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:.87em}
code{background:var(--wash);padding:.08em .35em;border-radius:4px;overflow-wrap:anywhere}
pre{background:var(--wash);padding:.7rem .9rem;border-radius:7px;white-space:pre-wrap;overflow-wrap:anywhere;margin:.5rem 0}
.alert{border-radius:10px;padding:.9rem 1.2rem;margin:1rem 0;border:1px solid;font-size:1rem}
.alert strong{display:block;font-size:1.15rem}
.alert.good{color:var(--good);background:var(--good-bg)}
.alert.bad{color:var(--bad);background:var(--bad-bg)}.alert.warn{color:var(--warn);background:var(--warn-bg)}
.alert pre{background:none;padding:0;margin:.3rem 0 0;color:inherit}
.pill{display:inline-block;border-radius:99px;padding:.08rem .65rem;font-size:.8rem;font-weight:600;vertical-align:middle;
background:var(--wash);color:var(--soft);letter-spacing:0}
.pill.good{background:var(--good-bg);color:var(--good)}.pill.bad{background:var(--bad-bg);color:var(--bad)}
.pill.warn{background:var(--warn-bg);color:var(--warn)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(158px,1fr));gap:.8rem;margin:.9rem 0 1rem}
.tile{border:1px solid var(--line);border-radius:9px;padding:.7rem .9rem .8rem;background:var(--card)}
.tile .name{font-size:.8rem;color:var(--soft);font-weight:600}
.tile .value{font-size:1.75rem;font-weight:650;line-height:1.15;font-variant-numeric:tabular-nums;letter-spacing:-.02em}
.tile .value small{font-size:.95rem;font-weight:500;color:var(--soft);letter-spacing:0}
.tile .range{font-size:.8rem;color:var(--soft);font-variant-numeric:tabular-nums;white-space:nowrap}
.bar{position:relative;height:5px;border-radius:3px;background:var(--wash);margin-top:.5rem;overflow:hidden}
.bar i{position:absolute;top:0;bottom:0;border-radius:3px;background:var(--s1);opacity:.35}
.bar b{position:absolute;top:0;bottom:0;width:3px;margin-left:-1.5px;background:var(--s1)}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(215px,1fr));gap:.55rem 1.6rem;margin:.4rem 0 0}
.facts+.lead{margin-top:.8rem}.facts dt{font-size:.78rem;color:var(--soft)}
.facts dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.table{overflow-x:auto;margin:.4rem 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;min-width:min(100%,26rem)}
th{font-weight:600;color:var(--soft);font-size:.8rem;white-space:nowrap}
th,td{padding:.27rem .85rem .27rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td.text{overflow-wrap:anywhere}
td.num,th.num{text-align:right;white-space:nowrap;padding-right:1.1rem}
tr:last-child td{border-bottom:0}
tbody tr:hover td{background:var(--wash)}
.wide table{width:100%}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:.6rem 2.2rem;align-items:start}
.columns h3{margin-top:.6rem}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:1rem 1.6rem;align-items:start}
figure{margin:0;min-width:0}
.plots.four{grid-template-columns:repeat(auto-fill,minmax(240px,1fr))}
figure.plot h4{margin:.2rem 0 .3rem;font-size:.87rem;overflow-wrap:anywhere}
svg.plot{width:100%;height:auto;display:block;overflow:visible}
svg.plot *{stroke-linejoin:round}
svg.plot text{font-family:inherit!important}
.legend{display:flex;flex-wrap:wrap;gap:.2rem .9rem;font-size:.8rem;color:var(--soft);margin:.1rem 0 .5rem}
.legend i{display:inline-block;width:.85em;height:.85em;border-radius:2px;margin-right:.35em;vertical-align:-.06em;background:currentColor}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(310px,1fr));gap:1rem}
.gallery img,.sample img{width:100%;height:auto;display:block;border-radius:6px;border:1px solid var(--line);background:var(--wash)}
.gallery figcaption{padding:.3rem .1rem 0;line-height:1.4;overflow-wrap:anywhere}
.gallery figcaption b{color:var(--ink)}
.looks{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:1.6rem 1.4rem;align-items:start}
.looks img{display:block;max-width:100%;height:auto;margin-bottom:.4rem}.looks figcaption b{color:var(--ink)}
s{color:var(--soft)}
.green{color:#00be5a}.red{color:#eb1e28}
details{margin:.8rem 0 0}
summary{cursor:pointer;color:var(--accent);font-size:.88rem}
.checks{list-style:none;padding:0;margin:.5rem 0;display:grid;grid-template-columns:repeat(auto-fit,minmax(430px,1fr));gap:.3rem 1.5rem;
font-size:.9rem}
.checks .mark{display:inline-block;min-width:3.4em;text-align:center;margin-right:.6em}
.sample{display:grid;grid-template-columns:minmax(240px,400px) minmax(0,1fr);gap:1.4rem;align-items:start}
.sample>*{min-width:0}
.chips{line-height:2;overflow-wrap:anywhere}
.chip{display:inline-block;max-width:100%;white-space:pre-wrap;border-radius:4px;padding:0 .38em;margin:0 .16em .16em 0;line-height:1.65;
font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:.8rem}
.k-text{background:var(--t-text)}.k-marker{background:var(--t-marker)}.k-coord{background:var(--t-coord)}
.k-end{background:var(--t-end)}
.k-none{background:var(--t-none);color:var(--soft)}
footer{color:var(--soft);font-size:.82rem;margin-top:1.4rem}
@media (max-width:760px){.sample{grid-template-columns:1fr}}
@media print{body{background:#fff;font-size:11px}nav{display:none}main{max-width:none;padding:0}
section{border:0;border-top:1px solid var(--line);border-radius:0;padding:.6rem 0;margin:.4rem 0}
figure,.tile,tr{break-inside:avoid}h2,h3{break-after:avoid}.plots{grid-template-columns:repeat(3,1fr)}
.gallery{grid-template-columns:repeat(4,1fr)}details::details-content{content-visibility:visible;block-size:auto}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
