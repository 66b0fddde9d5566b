// Float16, read and written: older browsers have no Float16Array.

// Every float16 there is, by its bits: quicker than decoding.
const VALUES = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
});

/** Little-endian float16 values times a scale. */
export function fromFloat16(buffer: ArrayBuffer, scale = 1, offset = 0, length = buffer.byteLength / 2): Float32Array {
  const view = new DataView(buffer, offset);
  const values = new Float32Array(length);
  for (let i = 0; i < length; i++) values[i] = VALUES[view.getUint16(2 * i, true)]! * scale;
  return values;
}

/** The nearest float16, half way to even, as its bits. */
function bitsOf(value: number): number {
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const size = Math.abs(value);
  if (Number.isNaN(size)) return 0x7e00;
  const exponent = size < 2 ** -14 ? -14 : Math.floor(Math.log2(size));
  const unit = 2 ** (exponent - 10);
  const steps = size / unit;
  let whole = Math.floor(steps);
  if (steps - whole > 0.5 || (steps - whole === 0.5 && whole % 2 === 1)) whole += 1;
  const bits = size < 2 ** -14 ? whole : ((exponent + 14) << 10) + whole; // a carry moves the exponent
  return sign | Math.min(bits, 0x7c00);
}

export function toFloat16(values: ArrayLike<number>): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(2 * values.length);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < values.length; i++) view.setUint16(2 * i, bitsOf(values[i]!), true);
  return bytes;
}

/** As text for an address: base64 without +, / and =. */
export function toText(values: ArrayLike<number>): string {
  const letters = String.fromCharCode(...toFloat16(values));
  return btoa(letters).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

/** Back from `toText`; null if it is none. */
export function fromText(text: string): number[] | null {
  if (!/^[\w-]*$/.test(text)) return null;
  try {
    const letters = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
    if (bytes.length % 2) return null;
    const values = Array.from(fromFloat16(bytes.buffer));
    return values.every(Number.isFinite) ? values : null;
  } catch {
    return null;
  }
}
