// Places in a volume: its local maxima, the region at a point, a slice through it. As
// atlas/explore/peaks.py, regions.py and strip.py have them.

import type { Regions } from "./backend";
import type { Vec3, Volume } from "./volume";

const PEAK_MM = 8; // a peak is the largest value this far along each axis
const LEAST = 1; // the uniform density: below it, nothing rises
const REGION_MM = 4; // a cell may lie beside the thin labels

/** Local maxima above the uniform density, highest first. */
export function highest({ shape: [nx, ny, nz], origin, step, values }: Volume, most: number): { index: number; mm: Vec3; value: number }[] {
  const reach = step.map((mm) => Math.round(PEAK_MM / Math.abs(mm))) as Vec3;
  const span = (at: number, axis: 0 | 1 | 2, n: number): [number, number] => [
    Math.max(at - reach[axis], 0), Math.min(at + reach[axis], n - 1)];
  const isPeak = (x: number, y: number, z: number, value: number): boolean => {
    const [[x0, x1], [y0, y1], [z0, z1]] = [span(x, 0, nx), span(y, 1, ny), span(z, 2, nz)];
    for (let k = z0; k <= z1; k++)
      for (let j = y0; j <= y1; j++)
        for (let i = x0; i <= x1; i++) if (values[i + nx * (j + ny * k)]! > value) return false;
    return true;
  };
  const found: { index: number; mm: Vec3; value: number }[] = [];
  for (let x = 0; x < nx; x++)
    for (let y = 0; y < ny; y++)
      for (let z = 0; z < nz; z++) {
        const index = x + nx * (y + ny * z);
        const value = values[index]!;
        if (value <= LEAST || !isPeak(x, y, z, value)) continue;
        found.push({ index, mm: [x, y, z].map((at, a) => origin[a]! + at * step[a]!) as Vec3, value });
      }
  return found.sort((a, b) => b.value - a.value).slice(0, most);
}

/** The nearest region within reach of a point. */
export function regionAt({ names, labels: { shape, origin, step, values } }: Regions, mm: Vec3): string | null {
  const ends = [0, 1, 2].map((a) => {
    const at = (mm[a]! - origin[a]!) / step[a]!;
    const reach = REGION_MM / Math.abs(step[a]!);
    return [Math.max(Math.ceil(at - reach), 0), Math.min(Math.floor(at + reach), shape[a]! - 1)];
  }) as [number, number][];
  const squared = (axis: number, at: number): number => (origin[axis]! + at * step[axis]! - mm[axis]!) ** 2;
  let [best, nearest] = [0, REGION_MM ** 2];
  for (let k = ends[2]![0]; k <= ends[2]![1]; k++)
    for (let j = ends[1]![0]; j <= ends[1]![1]; j++)
      for (let i = ends[0]![0]; i <= ends[0]![1]; i++) {
        const label = values[i + shape[0] * (j + shape[1] * k)]!;
        const distance = squared(0, i) + squared(1, j) + squared(2, k);
        if (!label || distance > nearest || (distance === nearest && best)) continue;
        [best, nearest] = [label, distance];
      }
  return names[best] ?? null;
}

/** One slice across an axis, linear between planes of cells; of the axes left, the first is fastest. */
export function slice({ shape, origin, step, values }: Volume, axis: 0 | 1 | 2, mm: number): Float32Array {
  const last = shape[axis] - 1;
  const free = (mm - origin[axis]) / step[axis];
  if (!(free >= -0.5 && free <= last + 0.5)) throw new Error(`mm: ${mm} on axis ${"xyz"[axis]} lies outside the volume`);
  const place = Math.min(Math.max(free, 0), last);
  const low = Math.min(Math.floor(place), last - 1);
  const strides = [1, shape[0], shape[0] * shape[1]] as const;
  const [first, second] = [0, 1, 2].filter((a) => a !== axis) as [0 | 1 | 2, 0 | 1 | 2];
  const out = new Float32Array(shape[first] * shape[second]);
  for (let b = 0; b < shape[second]; b++)
    for (let a = 0; a < shape[first]; a++) {
      const at = a * strides[first] + b * strides[second] + low * strides[axis];
      const [below, above] = [values[at]!, values[at + strides[axis]]!];
      out[a + shape[first] * b] = below + (place - low) * (above - below);
    }
  return out;
}
