// The few lines of DOM that the controls need.

export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  properties: Partial<HTMLElementTagNameMap[K]> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export function byId<T extends HTMLElement>(id: string): T {
  const node = document.getElementById(id);
  if (!node) throw new Error(`the page has no #${id}`);
  return node as T;
}

/** Three significant figures, years and counts whole. */
export function format(value: number): string {
  if (Math.abs(value) >= 100) return String(Math.round(value));
  return String(Number(value.toPrecision(3)));
}

/** Fill a slider's track up to its thumb (from the middle for a signed one). */
export function paintTrack(slider: HTMLInputElement): void {
  const [low, high] = [Number(slider.min), Number(slider.max)];
  const share = (x: number): number => (100 * (x - low)) / (high - low);
  const zero = low < 0 && high > 0 ? share(0) : 0;
  const here = share(slider.valueAsNumber);
  slider.style.setProperty("--from", `${Math.min(zero, here)}%`);
  slider.style.setProperty("--to", `${Math.max(zero, here)}%`);
}

export function hasWebGL2(): boolean {
  return element("canvas", {}).getContext("webgl2") !== null;
}
