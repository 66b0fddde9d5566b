// What stands below the maps: the effect beside its null, the strip, the coverage, the peaks.

import type { Effect, Model, Peak } from "./backend";
import { byId, element } from "./dom";
import { coverage, nullPlot } from "./plots";
import type { Vec3 } from "./volume";

export function showEffect(effect: Effect | string): void {
  const heading = element("h3", {}, "How large, and beside chance");
  if (typeof effect === "string") {
    byId("effect").replaceChildren(heading, element("p", { className: "note" }, effect));
    return;
  }
  const rest = element("p", { className: effect.p !== null && effect.p < 0.05 ? "" : "null-effect" }, effect.sentence);
  const plot = nullPlot(effect);
  byId("effect").replaceChildren(heading, rest, ...(plot ? [plot] : []));
}

export function showCoverage(model: Model): void {
  const points = model.coverage;
  byId("coverage").replaceChildren(
    element("h3", {}, "Do its intervals hold?"),
    ...(points
      ? [coverage(points), element("p", { className: "note" }, "Share of held-out cells within the decoder's interval. On the dashed line an interval holds just what it says; above it, it is too wide.")]
      : [element("p", { className: "note" }, "Not measured for this model: atlas evaluate RUN writes it.")]),
  );
}

export function showPeaks(peaks: Peak[], goTo: (mm: Vec3) => void): void {
  const row = ({ mm, value, low, high, region }: Peak): HTMLElement => {
    const place = element("button", { type: "button", className: "place" }, mm.map((x) => x.toFixed(0)).join(", "));
    place.addEventListener("click", () => goTo(mm));
    const cells = [region ?? "–", value.toFixed(1), `${low.toFixed(1)} to ${high.toFixed(1)}`];
    return element("tr", {}, element("td", {}, place), ...cells.map((text) => element("td", {}, text)));
  };
  const head = ["mm", "Region", "Value", "90 % interval"].map((text) => element("th", { scope: "col" }, text));
  byId("peak-table").replaceChildren(
    element("h3", {}, "Peaks of the map"),
    peaks.length
      ? element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...peaks.map(row)))
      : element("p", { className: "note" }, "The map has no peak above the uniform density."),
  );
}
