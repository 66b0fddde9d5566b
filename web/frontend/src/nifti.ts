// A volume as a NIfTI-1 file in gzip: header of 348 bytes, four that say that nothing extends it,
// float32 values.

import type { Volume } from "./volume";

const MNI = 4; // code of the space
const MM = 2;
const FLOAT32 = 16;

export function toNifti({ shape, origin, step, values }: Volume): Promise<Blob> {
  const header = new DataView(new ArrayBuffer(352));
  const int16 = (at: number, value: number): void => header.setInt16(at, value, true);
  const float = (at: number, value: number): void => header.setFloat32(at, value, true);
  header.setInt32(0, 348, true);
  [3, ...shape, 1, 1, 1, 1].forEach((n, i) => int16(40 + 2 * i, n));
  int16(70, FLOAT32);
  int16(72, 32); // bits
  [1, ...step.map(Math.abs), 1, 1, 1, 1].forEach((size, i) => float(76 + 4 * i, size));
  float(108, 352); // where the values begin
  float(112, 1); // slope
  header.setUint8(123, MM);
  int16(252, MNI); // qform: no rotation, so its quaternion is 0 and the offset is all
  int16(254, MNI); // sform
  origin.forEach((mm, i) => float(268 + 4 * i, mm));
  step.forEach((mm, row) => {
    float(280 + 16 * row + 4 * row, mm);
    float(280 + 16 * row + 12, origin[row]!);
  });
  "n+1\0".split("").forEach((letter, i) => header.setUint8(344 + i, letter.charCodeAt(0)));
  const data = new DataView(new ArrayBuffer(4 * values.length));
  values.forEach((value, i) => data.setFloat32(4 * i, value, true));
  const whole = new Blob([header, data]).stream().pipeThrough(new CompressionStream("gzip"));
  return new Response(whole, { headers: { "Content-Type": "application/gzip" } }).blob();
}
