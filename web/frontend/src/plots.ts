// Two small drawings in SVG: the coverage curve, and an effect beside its permutation null.

import type { Effect, Model } from "./backend";

const NS = "http://www.w3.org/2000/svg";
const [W, H, PAD] = [260, 150, 30];

function node(tag: string, attributes: Record<string, string | number>, text = ""): SVGElement {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  if (text) made.textContent = text;
  return made;
}

function frame(label: string, xs: [number, string][], ys: [number, string][], x: (v: number) => number, y: (v: number) => number): SVGElement {
  const svg = node("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label, class: "plot" });
  svg.append(node("path", { d: `M${PAD},8 V${H - PAD} H${W - 8}`, class: "axis" }));
  for (const [value, text] of xs) svg.append(node("text", { x: x(value), y: H - PAD + 14, "text-anchor": "middle" }, text));
  for (const [value, text] of ys) svg.append(node("text", { x: PAD - 5, y: y(value) + 4, "text-anchor": "end" }, text));
  return svg;
}

/** Share of held-out values within an interval, by the interval's level. */
export function coverage(points: NonNullable<Model["coverage"]>): SVGElement {
  const x = (v: number): number => PAD + v * (W - PAD - 12);
  const y = (v: number): number => H - PAD - v * (H - PAD - 12);
  const percent = (v: number): string => `${Math.round(100 * v)} %`;
  const said = points.map(({ level, covered }) => `${percent(level)} interval covers ${percent(covered)}`).join(", ");
  const ticks = points.map(({ level }) => [level, String(Math.round(100 * level))] as [number, string]);
  const svg = frame(`Coverage: ${said}`, ticks.filter(([level], i) => i === 0 || level - ticks[i - 1]![0] > 0.06), [[0, "0"], [0.5, "50"], [1, "100"]], x, y);
  svg.append(node("path", { d: `M${x(0)},${y(0)} L${x(1)},${y(1)}`, class: "nominal" }));
  const line = points.map(({ level, covered }, i) => `${i ? "L" : "M"}${x(level)},${y(covered)}`).join(" ");
  svg.append(node("path", { d: line, class: "curve" }));
  for (const { level, covered } of points) svg.append(node("circle", { cx: x(level), cy: y(covered), r: 3, class: "dot" }));
  svg.append(node("text", { x: W / 2 + 10, y: H - 2, "text-anchor": "middle" }, "interval, %"));
  return svg;
}

/** Histogram of the permuted statistic, its 95 % band, and where the effect stands. */
export function nullPlot(effect: Effect): SVGElement | null {
  const { histogram, statistic, null: band } = effect;
  if (!histogram || statistic === null || !band) return null;
  const { edges, counts } = histogram;
  const far = 1.1 * Math.max(Math.abs(edges[0]!), Math.abs(edges.at(-1)!), Math.abs(statistic), 1e-9);
  const most = Math.max(...counts, 1);
  const x = (v: number): number => PAD + ((v + far) / (2 * far)) * (W - PAD - 12);
  const y = (v: number): number => H - PAD - (v / most) * (H - PAD - 14);
  const label = `Correlation ${statistic.toFixed(3)}; permuted, 95 % lie between ${band[0].toFixed(3)} and ${band[2].toFixed(3)}`;
  const text = (v: number): [number, string] => [v, v.toFixed(2).replace("-", "−")];
  const svg = frame(label, [text(-far / 1.1), [0, "0"], text(far / 1.1)], [], x, y);
  svg.append(node("rect", { x: x(band[0]), y: 10, width: x(band[2]) - x(band[0]), height: H - PAD - 10, class: "band" }));
  counts.forEach((count, i) => {
    const [left, right] = [x(edges[i]!), x(edges[i + 1]!)];
    svg.append(node("rect", { x: left, y: y(count), width: Math.max(right - left - 0.5, 0.5), height: y(0) - y(count), class: "bin" }));
  });
  svg.append(node("path", { d: `M${x(statistic)},8 V${H - PAD}`, class: "observed" }));
  svg.append(node("text", { x: W / 2 + 10, y: H - 2, "text-anchor": "middle" }, "correlation with the field"));
  return svg;
}
