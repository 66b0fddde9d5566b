// The map's axial slice across the values of a field, small, side by side; a click takes a value.

import type { Field, Strip } from "./backend";
import { colourOn } from "./colours";
import { element, format } from "./dom";
import { reach } from "./metadata";
import { painted, planeOf } from "./slices";
import { resample, type Grid, type Vec3, type Volume } from "./volume";

const MOST = 11;

/** Round values across a field's slider. */
export function valuesOf(field: Field): number[] {
  const [low, high] = reach(field);
  if (field.scale === "log" && low > 0) {
    return Array.from({ length: MOST }, (_, i) => Number((low * (high / low) ** (i / (MOST - 1))).toPrecision(2)));
  }
  const step = Math.max(1, Math.ceil((high - low) / (MOST - 1)));
  const first = Math.ceil(low);
  return Array.from({ length: Math.floor((high - first) / step) + 1 }, (_, i) => first + i * step);
}

export class StripView {
  private readonly title = element("h3", {});
  private readonly row = element("div", { className: "strip" });

  constructor(container: HTMLElement, private readonly onPick: (value: number) => void) {
    container.append(this.title, this.row);
  }

  /** Draw the slices, at a height of the crosshair, over the template's. */
  show(field: Field, values: number[], strip: Strip, grid: Grid, mm: Vec3, template: Volume, limits: [number, number], now: number | null): void {
    this.title.textContent = `${field.label} moved, all else as it is (axial, z = ${mm[2].toFixed(0)} mm)`;
    const plane = planeOf(template, 2, mm[2]);
    const below = resample(template, plane);
    const [low, high] = field.trained ?? [-Infinity, Infinity];
    const focused = [...this.row.children].indexOf(document.activeElement!);
    this.row.replaceChildren(...values.map((value, i) => {
      const over = colourOn(plane, { ...planeOf(grid, 2, mm[2]), values: strip.slices[i]! }, "mean", limits);
      const beyond = value < low || value > high;
      const button = element("button", { type: "button", title: beyond ? `extrapolated: training saw ${format(low)} to ${format(high)}` : "" },
        painted(plane, below, over), element("span", {}, format(value)));
      if (beyond) button.append(element("small", {}, "extrapolated"));
      button.classList.toggle("beyond", beyond);
      if (value === now) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => this.onPick(value));
      return button;
    }));
    (this.row.children[focused] as HTMLElement | undefined)?.focus(); // it was pressed by a key
  }

  clear(): void {
    this.title.textContent = "";
    this.row.replaceChildren();
  }
}
