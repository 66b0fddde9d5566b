// The map's axial slice across the values of a field, small, side by side; a click takes a value.

import type { Field, Strip } from "./backend";
import { colour } from "./colours";
import { element, format } from "./dom";
import { reach } from "./metadata";
import { resample, type Grid, type Vec3, type Volume } from "./volume";

const MOST = 11;

/** Round values across a field's slider. */
export function valuesOf(field: Field): number[] {
  const [low, high] = reach(field);
  if (field.scale === "log" && low > 0) {
    return Array.from({ length: MOST }, (_, i) => Number((low * (high / low) ** (i / (MOST - 1))).toPrecision(2)));
  }
  const step = Math.max(1, Math.ceil((high - low) / (MOST - 1)));
  return Array.from({ length: Math.floor((high - low) / step) + 1 }, (_, i) => low + i * step);
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
    const flat = (of: Grid): Grid => ({
      shape: [of.shape[0], of.shape[1], 1],
      origin: [of.origin[0], of.origin[1], mm[2]],
      step: [of.step[0], of.step[1], 1],
    });
    const plane = flat(template);
    const below = planeOf(template, mm[2]);
    const [low, high] = field.trained ?? [-Infinity, Infinity];
    this.row.replaceChildren(...values.map((value, i) => {
      const over = resample({ ...flat(grid), values: strip.slices[i]! }, plane);
      const beyond = value < low || value > high;
      const button = element("button", { type: "button", title: beyond ? `extrapolated: training saw ${format(low)} to ${format(high)}` : "" },
        drawn(plane, below, colour(over, "mean", limits)), element("span", {}, format(value)));
      if (beyond) button.append(element("small", {}, "extrapolated"));
      button.classList.toggle("beyond", beyond);
      if (value === now) button.setAttribute("aria-current", "true");
      button.addEventListener("click", () => this.onPick(value));
      return button;
    }));
  }

  clear(): void {
    this.title.textContent = "";
    this.row.replaceChildren();
  }
}

function planeOf({ shape: [nx, ny, nz], origin, step, values }: Volume, z: number): Float32Array {
  const k = Math.min(Math.max(Math.round((z - origin[2]) / step[2]), 0), nz - 1);
  return values.subarray(k * nx * ny, (k + 1) * nx * ny);
}

/** A slice as a picture: left is left, front is up. */
function drawn({ shape: [nx, ny], step }: Grid, below: Float32Array, over: Uint8Array): HTMLCanvasElement {
  const canvas = element("canvas", { width: nx, height: ny });
  const image = new ImageData(nx, ny);
  for (let j = 0; j < ny; j++) {
    for (let i = 0; i < nx; i++) {
      const from = (step[0] > 0 ? i : nx - 1 - i) + nx * (step[1] > 0 ? ny - 1 - j : j);
      const to = 4 * (i + nx * j);
      const grey = Math.min(Math.max((below[from]! - 20) / 240, 0), 1) * 255;
      const alpha = over[4 * from + 3]! / 255;
      for (let c = 0; c < 3; c++) image.data[to + c] = grey * (1 - alpha) + over[4 * from + c]! * alpha;
      image.data[to + 3] = 255;
    }
  }
  canvas.getContext("2d")?.putImageData(image, 0, 0);
  return canvas;
}
