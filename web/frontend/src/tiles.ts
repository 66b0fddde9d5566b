// Where the slices of one panel stand: to one scale of millimetres, in the row, square or column that
// shows them largest.

import type { Grid, Vec3 } from "./volume";

export type Side = "coronal" | "sagittal" | "axial" | "solid";

export interface Tile {
  side: Side;
  left: number;
  top: number;
  width: number;
  height: number;
}

const GAP = 8; // CSS pixels between the tiles

type Size = Pick<Tile, "side" | "width" | "height">;

/** Tiles in the middle of W x H, with room for the 3-D view where `solid`, and pixels a millimetre. */
export function arrange({ shape, step }: Grid, W: number, H: number, solid: boolean): { tiles: Tile[]; scale: number } {
  const [x, y, z] = [0, 1, 2].map((a) => Math.abs(shape[a]! * step[a]!)) as Vec3;
  const coronal: Size = { side: "coronal", width: x, height: z };
  const sagittal: Size = { side: "sagittal", width: y, height: z };
  const axial: Size = { side: "axial", width: x, height: y };
  const view: Size[] = solid ? [{ side: "solid", width: y, height: y }] : [];
  const ways: Size[][][] = [
    [[coronal, sagittal, axial, ...view]],
    [[coronal, sagittal], [axial, ...view]],
    [[coronal], [sagittal], [axial], ...view.map((tile) => [tile])],
  ];
  const scaled = ways.map((rows) => ({ rows, scale: scaleOf(rows, W, H) }));
  const { rows, scale } = scaled.reduce((best, way) => (way.scale > best.scale ? way : best));
  return { tiles: place(rows, scale, W, H), scale };
}

const sum = (values: number[]): number => values.reduce((a, b) => a + b, 0);
const widthOf = (row: Size[]): number => sum(row.map((tile) => tile.width));
const heightOf = (row: Size[]): number => Math.max(...row.map((tile) => tile.height));

/** Pixels a millimetre at which rows of tiles fill W x H. */
function scaleOf(rows: Size[][], W: number, H: number): number {
  const across = rows.map((row) => (W - (row.length - 1) * GAP) / widthOf(row));
  return Math.min(...across, (H - (rows.length - 1) * GAP) / sum(rows.map(heightOf)));
}

function place(rows: Size[][], scale: number, W: number, H: number): Tile[] {
  const total = sum(rows.map(heightOf)) * scale + (rows.length - 1) * GAP;
  const widest = Math.max(...rows.map((row) => widthOf(row) * scale + (row.length - 1) * GAP));
  let top = (H - total) / 2;
  const tiles: Tile[] = [];
  for (const row of rows) {
    let left = (W - widest) / 2;
    for (const { side, width, height } of row) {
      const [w, h] = [width * scale, height * scale];
      tiles.push({ side, left, top, width: w, height: h });
      left += w + GAP;
    }
    top += heightOf(row) * scale + GAP;
  }
  return tiles;
}
