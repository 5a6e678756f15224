"""The look of report.html."""

STYLE = """
:root { --ink: #1d2530; --soft: #5d6b7c; --line: #e3e8ee; --card: #fff; --page: #f5f7fa; --good: #14804a;
  --bad: #c0362c; --fair: #946200; --plain: #8fa3bb; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 18px 60px; }
h1 { margin: 0; font-size: 28px; letter-spacing: -.02em; } h1 span { color: var(--soft); font-weight: 400; }
h2 { margin: 0 0 4px; font-size: 18px; }
h3 { margin: 18px 0 8px; font-size: 13px; color: var(--soft); font-weight: 600; }
header p, .note { margin: 2px 0 14px; color: var(--soft); } .note { font-size: 13px; }
header ul { margin: 12px 0 0; padding-left: 20px; font-size: 14px; }
code, pre { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
section, .figures > div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
section { padding: 18px 20px; margin-top: 16px; }
.verdict { display: flex; gap: 14px; align-items: center; border-radius: 10px; padding: 12px 16px; background: #e7f5ed;
  border: 1px solid #b9e0ca; }
.verdict b { background: var(--good); color: #fff; border-radius: 6px; padding: 2px 12px; letter-spacing: .04em; }
.verdict.fail { background: #fcecea; border-color: #f1c4bf; } .verdict.fail b { background: var(--bad); }
.verdict code { white-space: pre-wrap; overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 16px; }
.figures > div { padding: 12px 14px; display: flex; flex-direction: column; }
.figures small { color: var(--soft); } .figures b { font-size: 21px; letter-spacing: -.01em; white-space: nowrap; }
.figures em { font-style: normal; font-size: 14px; font-weight: 600; color: var(--soft); }
.figures span { color: var(--soft); font-size: 12px; }
.name { display: inline-block; min-width: 150px; max-width: 300px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 12px; white-space: nowrap;
  vertical-align: bottom; }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); } td { vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td small { color: var(--soft); } .was { color: var(--soft); text-decoration: line-through; font-size: 12px; }
.good { color: var(--good); } .fair { color: var(--fair); } .bad { color: var(--bad); font-weight: 600; }
.bar { display: inline-block; width: 72px; height: 8px; background: var(--line); border-radius: 4px; overflow: hidden;
  vertical-align: middle; margin-left: 6px; }
.bar span { display: block; height: 100%; background: var(--plain); } .bar .good { background: #5fb58a; }
.bar .bad { background: var(--bad); }
.strip { display: grid; grid-template-columns: repeat(5, 1fr); gap: 10px; }
figure { margin: 0; } figure img { width: 100%; display: block; border-radius: 6px; image-rendering: pixelated; }
figcaption { font-size: 12px; color: var(--soft); margin-top: 3px; }
figcaption i { font-style: normal; color: var(--ink); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 10px 0 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--soft); }
pre { background: var(--page); border-radius: 8px; padding: 12px; overflow-x: auto; }
@media (max-width: 640px) {
  .strip { grid-template-columns: repeat(2, 1fr); } dl { grid-template-columns: 1fr; } dt { margin-top: 6px; }
  .verdict { flex-direction: column; align-items: flex-start; } section { padding: 14px; } h1 { font-size: 23px; }
}
"""
