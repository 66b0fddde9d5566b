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
  const part = (a: number, b: number, t: number): number => a + (b - a) * t;
  const row = (j: number, k: number): number => part(at(x[0], j, k), at(x[1], j, k), x[2]);
  const plane = (k: number): number => part(row(y[0], k), row(y[1], k), y[2]);
  return part(plane(z[0]), plane(z[1]), z[2]);
}

interface Between {
  low: Int32Array;
  high: Int32Array;
  t: Float32Array; // share of high
  inside: Uint8Array;
}

/** Between which voxels those of another grid lie, along one axis. */
function between(target: Grid, grid: Grid, axis: 0 | 1 | 2): Between {
  const n = target.shape[axis];
  const out = { low: new Int32Array(n), high: new Int32Array(n), t: new Float32Array(n), inside: new Uint8Array(n) };
  for (let i = 0; i < n; i++) {
    const place = locate(target.origin[axis] + i * target.step[axis], grid, axis);
    if (place) [out.low[i], out.high[i], out.t[i], out.inside[i]] = [...place, 1];
  }
  return out;
}

/** (1 - t) a + t b of stretches of one array; whether anything is there. */
function mix(from: Float32Array, a: number, b: number, t: number, out: Float32Array): boolean {
  let any = false;
  for (let i = 0; i < out.length; i++) {
    const value = from[a + i]! * (1 - t) + from[b + i]! * t;
    out[i] = value;
    any ||= value !== 0;
  }
  return any;
}

/**
 * Trilinear interpolation onto another grid, one axis after the other, row by row.
 *
 * `take` gets a row's values, which it may not keep, and where in the grid the row begins. Rows that
 * are 0 throughout, as most of those outside the brain are, are left out.
 */
export function interpolate(volume: Volume, target: Grid, take: (row: Float32Array, start: number) => void): void {
  const [nx, ny] = volume.shape;
  const [x, y, z] = ([0, 1, 2] as const).map((axis) => between(target, volume, axis)) as [Between, Between, Between];
  const plane = new Float32Array(nx * ny);
  const coarse = new Float32Array(nx);
  const row = new Float32Array(target.shape[0]);
  for (let k = 0; k < z.t.length; k++) {
    if (!z.inside[k] || !mix(volume.values, z.low[k]! * nx * ny, z.high[k]! * nx * ny, z.t[k]!, plane)) continue;
    for (let j = 0; j < y.t.length; j++) {
      if (!y.inside[j] || !mix(plane, y.low[j]! * nx, y.high[j]! * nx, y.t[j]!, coarse)) continue;
      for (let i = 0; i < row.length; i++) {
        const t = x.t[i]!;
        row[i] = x.inside[i] ? coarse[x.low[i]!]! * (1 - t) + coarse[x.high[i]!]! * t : 0;
      }
      take(row, row.length * (j + y.t.length * k));
    }
  }
}

/** Trilinear interpolation onto another grid; 0 outside. */
export function resample(volume: Volume, target: Grid): Float32Array {
  const out = new Float32Array(target.shape[0] * target.shape[1] * target.shape[2]);
  interpolate(volume, target, (row, start) => out.set(row, start));
  return out;
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
