// One slider for every latent direction, the most active first.

import type { Direction, Model } from "./api";
import { element, format, paintTrack } from "./dom";

const SHOWN = 8; // the others wait behind "more"
const REACH = 3; // standard deviations to either side

export class LatentControls {
  private readonly sliders: { direction: Direction; set: (deviations: number) => void; get: () => number }[];

  constructor(container: HTMLElement, private readonly latent: Model["latent"], onChange: () => void) {
    const strongest = Math.max(...latent.directions.map((d) => d.activity), 1e-9);
    const rows = latent.directions.map((d) => this.row(d, d.activity / strongest, onChange));
    this.sliders = rows.map(({ direction, set, get }) => ({ direction, set, get }));
    container.append(...rows.slice(0, SHOWN).map((row) => row.node));
    if (rows.length > SHOWN) {
      container.append(
        element("details", {},
          element("summary", {}, `${rows.length - SHOWN} more`),
          ...rows.slice(SHOWN).map((row) => row.node)),
      );
    }
  }

  /** The code; null where every slider rests at the centre. */
  code(): number[] | null {
    const z = new Array<number>(this.latent.size).fill(0);
    for (const { direction, get } of this.sliders) z[direction.index] = get() * direction.sd;
    return z.some((x) => x !== 0) ? z : null;
  }

  reset(): void {
    for (const slider of this.sliders) slider.set(0);
  }

  /** Draw a code: every direction from a normal distribution, cut at the sliders' ends. */
  sample(): void {
    for (const slider of this.sliders) {
      const normal = Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
      slider.set(Math.min(Math.max(normal, -REACH), REACH));
    }
  }

  private row(direction: Direction, share: number, onChange: () => void) {
    const id = `z-${direction.index}`;
    const slider = element("input", {
      id, type: "range", min: String(-REACH), max: String(REACH), step: "0.1", value: "0",
      title: "Double-click: back to 0",
    });
    const output = element("output", { className: "number" });
    output.htmlFor.add(id);
    const label = element("label", { htmlFor: id, title: `activity ${format(direction.activity)}` },
      `z${direction.index}`, element("i", { className: "activity" }));
    label.style.setProperty("--share", String(share));
    const refresh = (): void => {
      const value = slider.valueAsNumber;
      output.value = value === 0 ? "0" : `${value > 0 ? "+" : "−"}${Math.abs(value).toFixed(1)}`;
      slider.setAttribute("aria-valuetext", `${value.toFixed(1)} standard deviations`);
      paintTrack(slider);
    };
    const set = (deviations: number): void => {
      slider.valueAsNumber = deviations;
      refresh();
    };
    slider.addEventListener("input", () => { refresh(); onChange(); });
    slider.addEventListener("dblclick", () => { set(0); onChange(); });
    refresh();
    return {
      direction, set, get: () => slider.valueAsNumber,
      node: element("div", { className: "latent-row" }, label, slider, output),
    };
  }
}
