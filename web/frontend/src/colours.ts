// Two colour maps, one a quantity, for the overlay and for the bar below it. The bar shows the
// alpha that the viewer's fade gives.

import type { Quantity } from "./api";

export interface ColourMap {
  I: number[]; // position, 0 to 255
  R: number[];
  G: number[];
  B: number[];
  A: number[];
}

export const COLOUR_MAPS: Record<Quantity, ColourMap> = {
  mean: {
    I: [0, 40, 100, 160, 210, 255],
    R: [70, 120, 195, 240, 252, 252],
    G: [10, 28, 55, 110, 185, 255],
    B: [105, 110, 85, 35, 50, 200],
    A: [0, 255, 255, 255, 255, 255],
  },
  sd: {
    I: [0, 40, 100, 160, 210, 255],
    R: [60, 55, 35, 50, 130, 235],
    G: [20, 75, 125, 180, 215, 245],
    B: [110, 140, 142, 122, 80, 130],
    A: [0, 255, 255, 255, 255, 255],
  },
};

/** Share of the colours over which a map fades out; of the uncertainty only the high end hides
 * the anatomy. */
export const FADE: Record<Quantity, number> = { mean: 0.2, sd: 0.6 };

export function paintBar(canvas: HTMLCanvasElement, quantity: Quantity): void {
  const context = canvas.getContext("2d");
  if (!context) return;
  const { I, R, G, B } = COLOUR_MAPS[quantity];
  const gradient = context.createLinearGradient(0, 0, canvas.width, 0);
  I.forEach((position, i) => gradient.addColorStop(position / 255, `rgb(${R[i]},${G[i]},${B[i]})`));
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = gradient;
  for (let x = 0; x < canvas.width; x++) {
    context.globalAlpha = Math.min(1, x / canvas.width / FADE[quantity]) ** 2;
    context.fillRect(x, 0, 1, canvas.height);
  }
}
