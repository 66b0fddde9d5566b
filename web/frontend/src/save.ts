// Files for the reader: a picture of the stage, the code of a map, and how a browser saves them.

import type { Point } from "./backend";
import { element } from "./dom";
import type { Panel } from "./panel";
import { quantityOf, type State } from "./state";

export function save(blob: Blob, name: string): void {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  window.setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const HEAD = 34;
const FOOT = 40;

/** The panels side by side with their titles, colours and limits, as a PNG at the screen's pixels. */
export function picture(panels: Panel[], caption: string): Promise<Blob> {
  const drawn = panels.map((panel) => panel.drawn());
  const width = drawn.reduce((sum, { slices }) => sum + slices.width, 0);
  const height = Math.max(...drawn.map(({ slices }) => slices.height));
  const canvas = element("canvas", { width, height: height + HEAD + 2 * FOOT });
  const context = canvas.getContext("2d")!;
  context.fillStyle = "#000";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#e7eaee";
  context.font = "15px system-ui, sans-serif";
  let left = 0;
  drawn.forEach(({ slices, bar }, i) => {
    const { title, palette, limits: [low, high], unit } = panels[i]!.picture!;
    context.fillText(title, left + 10, 22, slices.width - 20);
    context.drawImage(slices, left, HEAD);
    const y = HEAD + height + 12;
    const from = (palette === "difference" ? -high : low).toPrecision(2);
    context.fillText(from, left + 10, y + 12);
    context.drawImage(bar, left + 60, y, Math.min(220, slices.width / 2), 14);
    context.fillText(`${Number(high.toPrecision(3))} ${unit}`, left + 70 + Math.min(220, slices.width / 2), y + 12);
    left += slices.width;
  });
  context.fillStyle = "#9aa5b1";
  context.font = "12px system-ui, sans-serif";
  context.fillText(caption, 10, canvas.height - 12, width - 20);
  return new Promise((resolve, reject) =>
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The browser could not write the picture."))), "image/png"));
}

/** Python that decodes what is shown. */
export function python(point: Point, state: State, run: string | null): string {
  const numbers = (values: number[]): string => `[${values.map((x) => String(Number(x.toPrecision(5)))).join(", ")}]`;
  const text = (value: unknown): string => JSON.stringify(value).replaceAll("null", "None");
  const lines = [
    ...(state.view === "confidence" ? ["from atlas.explore.uncertainty import uncertainty"] : []),
    "from atlas.inference import Atlas",
    "",
    `atlas = Atlas.load(${run === null ? "" : JSON.stringify(run)})`,
    `z = ${point.z ? numbers(point.z) : "None  # the centre"}`,
    `metadata = ${text(point.metadata)}`,
  ];
  if (state.view === "counterfactual" && Object.keys(state.changes).length) {
    lines.push(
      `both = atlas.counterfactual(z, metadata, ${text(state.changes)})`,
      'both.difference.to_filename("difference.nii.gz")');
  } else if (state.view === "confidence") {
    lines.push(
      `sd = ${point.sd ? numbers(point.sd) : "None  # the code is known exactly"}`,
      "parts = uncertainty(atlas, z, sd, metadata)",
      `total = parts.total(${text(state.parts)})  # variances add up`,
      'atlas.space.image(atlas.space.volume(parts.mean)).to_filename("mean.nii.gz")',
      'atlas.space.image(atlas.space.volume(total)).to_filename("sd.nii.gz")');
  } else {
    const quantity = quantityOf(state);
    lines.push("maps = atlas.decode(z, metadata)", `maps.${quantity}.to_filename("${quantity}.nii.gz")`);
  }
  return lines.join("\n") + "\n";
}
