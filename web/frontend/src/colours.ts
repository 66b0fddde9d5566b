// From values to colours: a palette's colours over its limits, fading out towards nothing, so that
// a map has no jagged edge and the anatomy stays visible below it.

import { interpolate, type Grid, type Volume } from "./volume";

export type Palette = "mean" | "sd" | "difference";

type Limits = readonly [number, number];

interface Stops {
  at: number[]; // 0 to 1, from the low limit to the high one
  rgb: [number, number, number][];
  fade: number; // share of the range over which colours fade out
  signed: boolean; // from -high to high, nothing in the middle
}

const PALETTES: Record<Palette, Stops> = {
  mean: {
    at: [0, 0.16, 0.39, 0.63, 0.82, 1],
    rgb: [[70, 10, 105], [120, 28, 110], [195, 55, 85], [240, 110, 35], [252, 185, 50], [252, 255, 200]],
    fade: 0.2,
    signed: false,
  },
  sd: {
    at: [0, 0.16, 0.39, 0.63, 0.82, 1],
    rgb: [[60, 20, 110], [55, 75, 140], [35, 125, 142], [50, 180, 122], [130, 215, 80], [235, 245, 130]],
    fade: 0.6,
    signed: false,
  },
  difference: {
    at: [0, 0.25, 0.5, 0.75, 1],
    rgb: [[150, 225, 255], [40, 130, 235], [60, 60, 80], [225, 70, 45], [255, 215, 110]],
    fade: 0.35,
    signed: true,
  },
};

const STEPS = 1024;
const tables = new Map<Palette, Uint32Array>();

/** Colour by step of the range, RGBA in the bytes of a word. */
function table(palette: Palette): Uint32Array {
  let words = tables.get(palette);
  if (words) return words;
  const { at, rgb, fade, signed } = PALETTES[palette];
  const bytes = new Uint8ClampedArray(4 * STEPS);
  for (let i = 0; i < STEPS; i++) {
    const x = i / (STEPS - 1);
    const right = Math.max(1, at.findIndex((stop) => stop >= x));
    const t = (x - at[right - 1]!) / (at[right]! - at[right - 1]!);
    const strength = signed ? Math.abs(2 * x - 1) : x;
    for (const c of [0, 1, 2] as const) bytes[4 * i + c] = rgb[right - 1]![c] * (1 - t) + rgb[right]![c] * t;
    bytes[4 * i + 3] = 255 * Math.min(1, strength / fade) ** 2;
  }
  words = new Uint32Array(bytes.buffer);
  tables.set(palette, words);
  return words;
}

/** What writes the colours of values into words, from `start` on. */
function painter(palette: Palette, [low, high]: Limits): (values: Float32Array, out: Uint32Array, start: number) => void {
  const words = table(palette);
  const from = PALETTES[palette].signed ? -high : low;
  const scale = (STEPS - 1) / (high - from || 1);
  return (values, out, start) => {
    for (let i = 0; i < values.length; i++) {
      const step = Math.min(Math.max((values[i]! - from) * scale, 0), STEPS - 1);
      out[start + i] = words[(step + 0.5) | 0]!;
    }
  };
}

/** Colours of values. */
function colour(values: Float32Array, palette: Palette, limits: Limits): Uint8Array<ArrayBuffer> {
  const out = new Uint32Array(values.length);
  painter(palette, limits)(values, out, 0);
  return new Uint8Array(out.buffer);
}

/**
 * Colours of a map on another grid.
 *
 * `opacity`, 0 to 1 by voxel of that grid, makes what is uncertain transparent.
 */
export function colourOn(
  grid: Grid, map: Volume, palette: Palette, limits: Limits, opacity: Float32Array | null = null,
): Uint8Array<ArrayBuffer> {
  const out = new Uint32Array(grid.shape[0] * grid.shape[1] * grid.shape[2]); // nothing is transparent in every palette
  const paint = painter(palette, limits);
  interpolate(map, grid, (row, start) => paint(row, out, start));
  const bytes = new Uint8Array(out.buffer);
  if (opacity) for (let i = 0; i < opacity.length; i++) bytes[4 * i + 3]! *= opacity[i]!;
  return bytes;
}

/** Draw the bar of a palette, as the colours look over grey. */
export function paintBar(canvas: HTMLCanvasElement, palette: Palette): void {
  const ramp = Float32Array.from({ length: canvas.width }, (_, x) => x / (canvas.width - 1));
  const limits = [0, 1] as const;
  const values = PALETTES[palette].signed ? ramp.map((x) => 2 * x - 1) : ramp;
  const pixels = new Uint8ClampedArray(colour(values, palette, limits).buffer);
  canvas.getContext("2d")?.putImageData(new ImageData(pixels, canvas.width, 1), 0, 0);
}
