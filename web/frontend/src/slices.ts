// Slices as plain pictures: the strip's, and the first map's while the graphics start.

import { colourOn } from "./colours";
import { element } from "./dom";
import { arrange, type Side } from "./tiles";
import type { Shown } from "./viewer";
import { resample, type Grid, type Vec3, type Volume } from "./volume";

const AXES: Record<Exclude<Side, "solid">, 0 | 1 | 2> = { sagittal: 0, coronal: 1, axial: 2 };
export const GREY: [number, number] = [20, 260]; // of the template, in NiiVue as here

/** A grid's plane across an axis, one voxel thick. */
export function planeOf({ shape, origin, step }: Grid, axis: 0 | 1 | 2, mm: number): Grid {
  const across = <T,>(values: readonly T[], value: T): [T, T, T] => values.map((x, a) => (a === axis ? value : x)) as [T, T, T];
  return { shape: across(shape, 1), origin: across(origin, mm), step: across(step, 1) };
}

/** Colours over a slice of the template: left is left, up is up, front is up or right. */
export function painted({ shape, step }: Grid, below: Float32Array, over: Uint8Array): HTMLCanvasElement {
  const [first, second] = ([0, 1, 2] as const).filter((axis) => shape[axis] > 1) as [0 | 1 | 2, 0 | 1 | 2];
  const [nx, ny] = [shape[first], shape[second]];
  const canvas = element("canvas", { width: nx, height: ny });
  const image = new ImageData(nx, ny);
  for (let j = 0; j < ny; j++) {
    for (let i = 0; i < nx; i++) {
      const from = (step[first] > 0 ? i : nx - 1 - i) + nx * (step[second] > 0 ? ny - 1 - j : j);
      const to = 4 * (i + nx * j);
      const grey = Math.min(Math.max((below[from]! - GREY[0]) / (GREY[1] - GREY[0]), 0), 1) * 255;
      const alpha = over[4 * from + 3]! / 255;
      for (let c = 0; c < 3; c++) image.data[to + c] = grey * (1 - alpha) + over[4 * from + c]! * alpha;
      image.data[to + 3] = 255;
    }
  }
  canvas.getContext("2d")?.putImageData(image, 0, 0);
  return canvas;
}

/** The three slices of a map as NiiVue will show them, until it does. */
export class Preview {
  readonly canvas = element("canvas", {});
  private shown: Shown | null = null;
  private mm: Vec3 = [0, 0, 0];

  constructor(private readonly template: Volume, private readonly solid: () => boolean) {
    this.canvas.setAttribute("aria-hidden", "true");
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  show(shown: Shown): void {
    this.shown = shown;
    this.draw();
  }

  goTo(mm: Vec3): void {
    this.mm = mm;
    this.draw();
  }

  private draw(): void {
    const { width: W, height: H } = this.canvas.getBoundingClientRect();
    const context = this.canvas.getContext("2d");
    if (!this.shown || !context || W < 1 || H < 1) return;
    const { map, palette, limits, opacity } = this.shown;
    [this.canvas.width, this.canvas.height] = [W, H].map((x) => Math.round(x * devicePixelRatio)) as [number, number];
    context.scale(devicePixelRatio, devicePixelRatio);
    context.imageSmoothingQuality = "high";
    for (const { side, left, top, width, height } of arrange(this.template, W, H, this.solid()).tiles) {
      if (side === "solid") continue;
      const plane = planeOf(this.template, AXES[side], this.mm[AXES[side]]);
      const faded = opacity ? resample({ ...this.template, values: opacity }, plane) : null;
      const slice = painted(plane, resample(this.template, plane), colourOn(plane, map, palette, limits, faded));
      context.drawImage(slice, left, top, width, height);
    }
  }
}
