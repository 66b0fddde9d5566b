// Volumes on grids with a diagonal affine, as every grid of this project has. Pure functions.

export type Vec3 = [number, number, number];

export interface Grid {
  shape: Vec3;
  origin: Vec3; // centre of voxel (0, 0, 0), mm
  step: Vec3; // mm per voxel, either sign
}

export interface Volume extends Grid {
  values: Float32Array; // x fastest
}

export function gridOf(shape: number[], affine: number[][]): Grid {
  const at = (row: number, column: number): number => affine[row]?.[column] ?? NaN;
  const offDiagonal = [at(0, 1), at(0, 2), at(1, 0), at(1, 2), at(2, 0), at(2, 1)];
  if (shape.length !== 3 || offDiagonal.some((x) => Math.abs(x) > 1e-6)) {
    throw new Error("the viewer needs a three-dimensional grid along the axes");
  }
  return {
    shape: shape as Vec3,
    origin: [at(0, 3), at(1, 3), at(2, 3)],
    step: [at(0, 0), at(1, 1), at(2, 2)],
  };
}

/** Where a coordinate lies between the voxels of one axis; null half a voxel or more outside. */
function locate(mm: number, grid: Grid, axis: 0 | 1 | 2): [number, number, number] | null {
  const last = grid.shape[axis] - 1;
  const position = (mm - grid.origin[axis]) / grid.step[axis];
  if (position < -0.5 || position > last + 0.5) return null;
  const clamped = Math.min(Math.max(position, 0), last);
  const low = Math.min(Math.floor(clamped), Math.max(last - 1, 0));
  return [low, Math.min(low + 1, last), clamped - low];
}

/** The value at a point, trilinear; null outside. */
export function valueAt(volume: Volume, mm: Vec3): number | null {
  const x = locate(mm[0], volume, 0);
  const y = locate(mm[1], volume, 1);
  const z = locate(mm[2], volume, 2);
  if (!x || !y || !z) return null;
  const [nx, ny] = volume.shape;
  const at = (i: number, j: number, k: number): number => volume.values[i + nx * (j + ny * k)] ?? 0;
  const mix = (a: number, b: number, t: number): number => a + (b - a) * t;
  const row = (j: number, k: number): number => mix(at(x[0], j, k), at(x[1], j, k), x[2]);
  const plane = (k: number): number => mix(row(y[0], k), row(y[1], k), y[2]);
  return mix(plane(z[0]), plane(z[1]), z[2]);
}

/** Trilinear interpolation onto another grid, one axis after the other; 0 outside. */
export function resample(volume: Volume, target: Grid): Float32Array {
  let { values } = volume;
  const shape: Vec3 = [...volume.shape];
  for (const axis of [0, 1, 2] as const) {
    const inner = shape.slice(0, axis).reduce((a, b) => a * b, 1); // values per step along the axis
    const outer = shape.slice(axis + 1).reduce((a, b) => a * b, 1);
    const n = target.shape[axis];
    const out = new Float32Array(inner * n * outer);
    for (let i = 0; i < n; i++) {
      const place = locate(target.origin[axis] + i * target.step[axis], volume, axis);
      if (!place) continue;
      const [low, high, t] = place;
      for (let o = 0; o < outer; o++) {
        const a = (o * shape[axis] + low) * inner;
        const b = (o * shape[axis] + high) * inner;
        const to = (o * n + i) * inner;
        for (let k = 0; k < inner; k++) out[to + k] = values[a + k]! * (1 - t) + values[b + k]! * t;
      }
    }
    values = out;
    shape[axis] = n;
  }
  return values;
}

/** Where the largest value lies, mm. */
export function peakOf(volume: Volume): Vec3 {
  let best = 0;
  for (let i = 1; i < volume.values.length; i++) {
    if (volume.values[i]! > volume.values[best]!) best = i;
  }
  const [nx, ny] = volume.shape;
  const index = [best % nx, Math.floor(best / nx) % ny, Math.floor(best / (nx * ny))] as const;
  return [0, 1, 2].map((a) => volume.origin[a]! + index[a]! * volume.step[a]!) as Vec3;
}

/** Standard deviations that add up as variances. */
export function combined(parts: Volume[], like: Volume): Volume {
  const values = new Float32Array(like.values.length);
  for (const part of parts) for (let i = 0; i < values.length; i++) values[i]! += part.values[i]! ** 2;
  for (let i = 0; i < values.length; i++) values[i] = Math.sqrt(values[i]!);
  return { ...like, values };
}

/** How solid a value is, 0 to 1: fully where the mean is `enough` standard deviations or more. */
export function confidenceOf(mean: Float32Array, sd: Float32Array, enough: number): Float32Array {
  return mean.map((value, i) => Math.min(1, value / (enough * sd[i]! + 1e-12)));
}
