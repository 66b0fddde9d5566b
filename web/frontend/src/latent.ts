// One slider for every latent direction, the most active first. A slider stands for the spread of
// the training studies' codes; the code itself may lie beyond its ends.

import type { Direction, Model } from "./backend";
import { element, format, paintTrack } from "./dom";

const SHOWN = 8; // the others wait behind "more"
const REACH = 3; // standard deviations to either side

interface Row {
  node: HTMLElement;
  direction: Direction;
  show(deviations: number): void;
  name(topics: Direction["topics"]): void;
}

export class LatentControls {
  private readonly rows: Row[];
  private z: number[];

  constructor(container: HTMLElement, private readonly latent: Model["latent"], private readonly onChange: () => void) {
    const strongest = Math.max(...latent.directions.map((d) => d.activity), 1e-9);
    this.z = new Array<number>(latent.size).fill(0);
    this.rows = latent.directions.map((d) => this.row(d, d.activity / strongest));
    const nodes = this.rows.map((row) => row.node);
    container.append(...nodes.slice(0, SHOWN));
    if (nodes.length > SHOWN) {
      container.append(
        element("details", {},
          element("summary", {}, `${nodes.length - SHOWN} more`),
          ...nodes.slice(SHOWN)),
      );
    }
  }

  code(): number[] {
    return [...this.z];
  }

  set(z: readonly number[]): void {
    this.z = [...z];
    for (const { direction, show } of this.rows) show(this.z[direction.index]! / direction.sd || 0);
  }

  /** Say what the directions go along with, where that is known later than the page. */
  name(directions: Direction[]): void {
    const topics = new Map(directions.map((direction) => [direction.index, direction.topics]));
    for (const row of this.rows) row.name(topics.get(row.direction.index) ?? []);
  }

  /** Draw a code: every direction from a normal distribution of the training studies' spread. */
  sample(): void {
    const z = [...this.z];
    for (const { index, sd } of this.latent.directions) {
      z[index] = sd * Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
    }
    this.set(z);
  }

  private row(direction: Direction, share: number): Row {
    const id = `z-${direction.index}`;
    const slider = element("input", {
      id, type: "range", min: String(-REACH), max: String(REACH), step: "0.1", value: "0",
      title: "Double-click: back to 0",
    });
    const output = element("output", { className: "number" });
    output.htmlFor.add(id);
    const along = element("span", { className: "topics" });
    const label = element("label", { htmlFor: id }, `z${direction.index}`, element("i", { className: "activity" }), along);
    label.style.setProperty("--share", String(share));
    const name = (topics: Direction["topics"]): void => {
      along.textContent = topics.map((topic) => `${topic.r < 0 ? "−" : "+"}${topic.label}`).join(", ");
      const correlations = topics.map((topic) => `\n${topic.label}: r ${topic.r.toFixed(2)}`);
      label.title = `activity ${format(direction.activity)}${correlations.join("")}`;
    };
    const show = (deviations: number): void => {
      slider.valueAsNumber = deviations;
      output.value = Math.abs(deviations) < 0.05 ? "0" : `${deviations > 0 ? "+" : "−"}${Math.abs(deviations).toFixed(1)}`;
      slider.setAttribute("aria-valuetext", `${deviations.toFixed(1)} standard deviations`);
      paintTrack(slider);
    };
    const move = (deviations: number): void => {
      this.z[direction.index] = deviations * direction.sd;
      show(deviations);
      this.onChange();
    };
    slider.addEventListener("input", () => move(slider.valueAsNumber));
    slider.addEventListener("dblclick", () => move(0));
    show(0);
    name(direction.topics);
    return { direction, show, name, node: element("div", { className: "latent-row" }, label, slider, output) };
  }
}
