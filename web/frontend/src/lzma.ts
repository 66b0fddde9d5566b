// LZMA, unpacked. The runtime is 14 MB, 3.7 in gzip and 2.2 in LZMA, which no static host negotiates
// and no browser unpacks. The layout is that of Python's lzma.FORMAT_ALONE: five bytes of properties,
// eight of size, the range-coded stream (7-zip.org/sdk.html).

const HALF = 1024; // a probability of one half, of 2048
const POSITION_SLOTS = 64;
const END_OF_MODEL = 14; // slots from here on have direct bits

// Where each set of probabilities begins.
const MATCH = 0;
const REPEAT = MATCH + (12 << 4);
const REPEAT_0 = REPEAT + 12;
const REPEAT_1 = REPEAT_0 + 12;
const REPEAT_2 = REPEAT_1 + 12;
const REPEAT_0_LONG = REPEAT_2 + 12;
const SLOT = REPEAT_0_LONG + (12 << 4);
const SPECIAL = SLOT + 4 * POSITION_SLOTS;
const ALIGN = SPECIAL + 128;
const LENGTH = ALIGN + 16;
const LENGTH_SIZE = 2 + 2 * (16 << 3) + 256;
const REPEAT_LENGTH = LENGTH + LENGTH_SIZE;
const LITERAL = REPEAT_LENGTH + LENGTH_SIZE;

/** Unpack `size` bytes; an error where the stream is damaged or cut off. */
export function unpack(packed: Uint8Array, size: number): Uint8Array<ArrayBuffer> {
  const properties = packed[0] ?? 255;
  const lc = properties % 9;
  const lp = Math.floor(properties / 9) % 5;
  const pb = Math.floor(properties / 45);
  if (properties >= 225 || packed.length < 18 || packed[13] !== 0) throw new Error("not an LZMA file");
  const out = new Uint8Array(size);
  const chances = new Uint16Array(LITERAL + (0x300 << (lc + lp))).fill(HALF);
  let from = 18; // of the next byte
  let range = 0xffffffff;
  let code = ((packed[14]! << 24) | (packed[15]! << 16) | (packed[16]! << 8) | packed[17]!) >>> 0;

  const bit = (index: number): number => {
    const chance = chances[index]!;
    const bound = (range >>> 11) * chance;
    let found = 0;
    if (code < bound) {
      range = bound;
      chances[index] = chance + ((2048 - chance) >> 5);
    } else {
      range -= bound;
      code -= bound;
      chances[index] = chance - (chance >> 5);
      found = 1;
    }
    if (range < 0x1000000) {
      range = (range << 8) >>> 0;
      code = ((code << 8) | packed[from++]!) >>> 0;
    }
    return found;
  };
  const direct = (count: number): number => {
    let value = 0;
    for (; count > 0; count--) {
      range >>>= 1;
      const found = code >= range ? 1 : 0;
      if (found) code -= range;
      value = value * 2 + found;
      if (range < 0x1000000) {
        range = (range << 8) >>> 0;
        code = ((code << 8) | packed[from++]!) >>> 0;
      }
    }
    return value;
  };
  const tree = (base: number, bits: number): number => {
    let node = 1;
    for (let i = 0; i < bits; i++) node = (node << 1) | bit(base + node);
    return node - (1 << bits);
  };
  const backward = (base: number, bits: number): number => {
    let node = 1;
    let value = 0;
    for (let i = 0; i < bits; i++) {
      const found = bit(base + node);
      node = (node << 1) | found;
      value |= found << i;
    }
    return value;
  };
  const length = (base: number, place: number): number => {
    if (!bit(base)) return tree(base + 2 + (place << 3), 3);
    if (!bit(base + 1)) return 8 + tree(base + 2 + (16 << 3) + (place << 3), 3);
    return 16 + tree(base + 2 + 2 * (16 << 3), 8);
  };
  const distance = (lengthFound: number): number => {
    const slot = tree(SLOT + Math.min(lengthFound, 3) * POSITION_SLOTS, 6);
    if (slot < 4) return slot;
    const bits = (slot >> 1) - 1;
    const start = (2 | (slot & 1)) * 2 ** bits;
    if (slot < END_OF_MODEL) return start + backward(SPECIAL + start - slot, bits);
    return start + direct(bits - 4) * 16 + backward(ALIGN, 4);
  };

  let state = 0;
  let [rep0, rep1, rep2, rep3] = [0, 0, 0, 0];
  let at = 0;
  const literal = (): void => {
    const before = at > 0 ? out[at - 1]! : 0;
    const base = LITERAL + 0x300 * (((at & ((1 << lp) - 1)) << lc) + (before >> (8 - lc)));
    let symbol = 1;
    if (state >= 7) {
      let matched = out[at - rep0 - 1]!;
      while (symbol < 0x100) {
        const expected = (matched >> 7) & 1;
        matched <<= 1;
        const found = bit(base + ((1 + expected) << 8) + symbol);
        symbol = (symbol << 1) | found;
        if (found !== expected) break;
      }
    }
    while (symbol < 0x100) symbol = (symbol << 1) | bit(base + symbol);
    out[at++] = symbol;
    state = state < 4 ? 0 : state < 10 ? state - 3 : state - 6;
  };

  while (at < size) {
    if (from > packed.length + 4) throw new Error("the file is cut off");
    const place = at & ((1 << pb) - 1);
    if (!bit(MATCH + (state << 4) + place)) {
      literal();
      continue;
    }
    let count: number;
    if (!bit(REPEAT + state)) {
      [rep3, rep2, rep1] = [rep2, rep1, rep0];
      count = length(LENGTH, place);
      rep0 = distance(count);
      state = state < 7 ? 7 : 10;
    } else if (!bit(REPEAT_0 + state)) {
      const long = bit(REPEAT_0_LONG + (state << 4) + place);
      count = long ? length(REPEAT_LENGTH, place) : -1;
      state = long ? (state < 7 ? 8 : 11) : state < 7 ? 9 : 11;
    } else {
      let found = rep1;
      if (bit(REPEAT_1 + state)) {
        found = rep2;
        if (bit(REPEAT_2 + state)) [found, rep3] = [rep3, rep2];
        rep2 = rep1;
      }
      [rep1, rep0] = [rep0, found];
      count = length(REPEAT_LENGTH, place);
      state = state < 7 ? 8 : 11;
    }
    count += 2;
    if (rep0 >= at || at + count > size) throw new Error("the file is damaged");
    for (; count > 0; count--, at++) out[at] = out[at - rep0 - 1]!;
  }
  return out;
}
