// Volumes as NIfTI-1 files in gzip: header of 348 bytes, four that say that nothing extends it,
// values. Written are float32 ones; read is the template that comes with the page, uint8.

import { gridOf, type Volume } from "./volume";

const MNI = 4; // code of the space
const MM = 2;
const UINT8 = 2;
const FLOAT32 = 16;

/** The template: a volume, and the file without its gzip. */
export interface Template extends Volume {
  nifti: ArrayBuffer;
}

export async function loadTemplate(address: string): Promise<Template> {
  const answer = await fetch(address).catch(() => null);
  if (!answer?.ok) throw new Error("The page could not fetch the template that maps are shown on.");
  const nifti = await unzipped(await answer.arrayBuffer());
  const header = new DataView(nifti);
  if (header.getInt32(0, true) !== 348 || header.getInt16(70, true) !== UINT8) {
    throw new Error("The template is not the NIfTI file that it should be.");
  }
  const shape = [0, 1, 2].map((a) => header.getInt16(42 + 2 * a, true));
  const affine = [0, 1, 2].map((row) => [0, 1, 2, 3].map((column) => header.getFloat32(280 + 16 * row + 4 * column, true)));
  return { ...gridOf(shape, affine), values: Float32Array.from(new Uint8Array(nifti, header.getFloat32(108, true))), nifti };
}

/** Some hosts send a .gz file as what is in it. */
async function unzipped(bytes: ArrayBuffer): Promise<ArrayBuffer> {
  const [first, second] = new Uint8Array(bytes, 0, 2);
  if (first !== 0x1f || second !== 0x8b) return bytes;
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

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
