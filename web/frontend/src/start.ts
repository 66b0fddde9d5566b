// Where a code comes from: the prior, a study, peaks or a map of one's own, or the way between two
// studies.

import type { Backend, Code, Entry, Metadata, Model, Query, Study, StudyRow } from "./backend";
import { element } from "./dom";
import type { Start } from "./state";
import type { Vec3 } from "./volume";

const PAUSE = 150; // ms after the last letter before a search is sent
const FOUND = 20;

/** A start with what it gives. */
export interface Loaded {
  start: Start;
  code: Code | null; // null: the centre
  metadata: Metadata;
  title: string;
  ends?: [Study, Study]; // of the way between two
}

type Tab = "prior" | "study" | "peaks" | "between";
const TABS: Record<Tab, string> = { prior: "Prior", study: "Study", peaks: "Peaks", between: "Between" };

const PRIOR: Loaded = { start: { kind: "prior" }, code: null, metadata: {}, title: "Centre of the prior" };
const RANDOM: Loaded = { ...PRIOR, title: "Random brain" };

/** What a start of an address gives; peaks are not in it, their code is. */
export async function load(backend: Backend, start: Start): Promise<Loaded> {
  if (start.kind === "prior") return PRIOR;
  if (start.kind === "peaks") return { start, code: null, metadata: {}, title: start.label };
  if (start.kind === "study") return ofStudy(await backend.study(start.id));
  const ends = await Promise.all([backend.study(start.from), backend.study(start.to)]);
  return between(ends[0], ends[1], start.share);
}

function ofStudy(study: Study): Loaded {
  const title = `${study.title} (${[study.year, `${study.peaks} peaks`].filter(Boolean).join(", ")})`;
  return { start: { kind: "study", id: study.id }, code: study.code, metadata: study.metadata, title };
}

function between(from: Study, to: Study, share: number): Loaded {
  const mix = (a: number[], b: number[]): number[] => a.map((x, i) => x * (1 - share) + b[i]! * share);
  return {
    start: { kind: "between", from: from.id, to: to.id, share },
    code: { mean: mix(from.code.mean, to.code.mean), sd: mix(from.code.sd, to.code.sd) },
    metadata: {},
    title: `${Math.round(100 * share)} % of the way from “${from.title}” to “${to.title}”`,
    ends: [from, to],
  };
}

export class StartPanel {
  private readonly tabs: Record<Tab, HTMLElement>;
  private readonly radios = new Map<Tab, HTMLInputElement>();
  private readonly title = element("p", { className: "start-title", id: "start-title" });
  private readonly note = element("p", { className: "hint", id: "start-note", role: "status" });
  private readonly choices = element("ul", { className: "found" }); // the studies of a file
  private attempts = 0; // an answer that comes after something newer was begun is dropped
  private readonly ends: Record<"from" | "to", { study: Study | null; node: HTMLElement }> = {
    from: { study: null, node: element("dd", {}, "none yet") },
    to: { study: null, node: element("dd", {}, "none yet") },
  };
  private readonly share = element("input", { type: "range", id: "share", min: "0", max: "100", value: "50" });

  constructor(
    container: HTMLElement,
    private readonly backend: Backend,
    private readonly model: Model,
    private readonly onStart: (loaded: Loaded) => void,
    onRandom: (loaded: Loaded) => void,
  ) {
    const centre = element("button", { type: "button", id: "reset", title: "All directions at 0, all metadata unknown" }, "Centre");
    const random = element("button", { type: "button", id: "sample", title: "Every direction drawn from the spread of the training studies" }, "Random brain");
    centre.addEventListener("click", () => this.begin(PRIOR));
    random.addEventListener("click", () => {
      this.show(RANDOM); // no longer the study that was here
      onRandom(RANDOM);
    });
    this.tabs = {
      prior: element("div", { className: "buttons" }, centre, random),
      study: this.search("search", (row) => [
        this.button(row.title, "row", () => void this.attempt(async () => ofStudy(await backend.study(row.id)))),
      ]),
      peaks: this.ownPeaks(),
      between: this.interpolation(),
    };
    const choice = element("fieldset", { className: "segmented" }, element("legend", {}, "Start from"));
    for (const [name, text] of Object.entries(TABS) as [Tab, string][]) {
      const radio = element("input", { type: "radio", name: "start", value: name, checked: name === "prior" });
      radio.addEventListener("change", () => this.open(name));
      this.radios.set(name, radio);
      choice.append(element("label", {}, radio, element("span", {}, text)));
    }
    container.append(choice, ...Object.values(this.tabs), this.note, this.title);
    this.open("prior");
    this.acceptDrops();
  }

  /** Show where the page is, as an address said. */
  show(loaded: Loaded): void {
    this.attempts += 1;
    this.title.textContent = loaded.title;
    this.note.textContent = "";
    this.open(loaded.start.kind);
    if (loaded.start.kind === "between") this.share.valueAsNumber = 100 * loaded.start.share;
    loaded.ends?.forEach((study, i) => this.setEnd(i === 0 ? "from" : "to", study));
  }

  fail(error: unknown): void {
    this.note.textContent = error instanceof Error ? error.message : String(error);
  }

  private open(tab: Tab): void {
    this.radios.get(tab)!.checked = true;
    for (const [name, node] of Object.entries(this.tabs)) node.hidden = name !== tab;
  }

  private begin(loaded: Loaded): void {
    this.show(loaded);
    this.onStart(loaded);
  }

  private async attempt(work: () => Promise<Loaded | null>): Promise<void> {
    const mine = ++this.attempts;
    this.note.textContent = "Reading …";
    try {
      const loaded = await work();
      if (loaded && mine === this.attempts) this.begin(loaded);
    } catch (error) {
      if (mine === this.attempts) this.fail(error);
    }
  }

  private button(text: string, className: string, act: () => void): HTMLButtonElement {
    const button = element("button", { type: "button", className }, text);
    button.addEventListener("click", act);
    return button;
  }

  // ------------------------------------------------------------------ studies

  private search(id: string, choices: (row: StudyRow) => HTMLElement[]): HTMLElement {
    const { count, reason, source } = this.model.studies;
    if (!count) return element("p", { className: "note" }, reason ?? "There are no studies here.");
    const words = element("input", { type: "search", id, placeholder: "title, author or PMID", maxLength: 200 });
    words.setAttribute("aria-label", `Search ${count} studies`);
    const task = this.model.fields.find((field) => field.name === "task");
    const category = element("select", { id: `${id}-task` }, element("option", { value: "" }, "any task"),
      ...(task?.categories ?? []).map(({ value, label }) => element("option", { value }, label)));
    category.setAttribute("aria-label", "Task of the study");
    const [from, to] = ["from", "to"].map((end) => {
      const input = element("input", { type: "number", id: `${id}-${end}`, placeholder: end, min: "1900", max: "2100" });
      input.setAttribute("aria-label", `${end} year`);
      return input;
    }) as [HTMLInputElement, HTMLInputElement];
    const total = element("p", { className: "hint" });
    total.setAttribute("aria-live", "polite");
    const list = element("ul", { className: "found" });

    const year = (input: HTMLInputElement): number | null => (input.value ? input.valueAsNumber : null);
    let newest = 0;
    const ask = async (): Promise<void> => {
      const query: Query = { q: words.value, category: category.value || null, from: year(from), to: year(to), limit: FOUND };
      const mine = ++newest;
      try {
        const found = await this.backend.studies(query);
        if (mine !== newest) return;
        total.textContent = `${found.total} of ${count} studies` + (source ? ` of ${source}` : "");
        list.replaceChildren(...found.studies.map((row) =>
          element("li", {}, ...choices(row), element("small", {}, describe(row)))));
      } catch (error) {
        if (mine === newest) total.textContent = (error as Error).message;
      }
    };
    let timer: number | undefined;
    const soon = (): void => {
      window.clearTimeout(timer);
      timer = window.setTimeout(() => void ask(), PAUSE);
    };
    for (const input of [words, category, from, to]) {
      input.addEventListener("input", soon);
      input.addEventListener("focus", () => { if (!list.children.length) soon(); });
    }
    return element("div", { className: "search" }, words,
      element("div", { className: "filters" }, category, from, to), total, list);
  }

  private interpolation(): HTMLElement {
    const set = (end: "from" | "to", row: StudyRow): Promise<void> =>
      this.attempt(async () => {
        this.setEnd(end, await this.backend.study(row.id));
        this.note.textContent = "";
        const loaded = this.mixed();
        if (loaded) this.begin(loaded); // whichever end came last
        return null;
      });
    this.share.setAttribute("aria-label", "Share of the way from A to B");
    this.share.addEventListener("input", () => {
      const loaded = this.mixed();
      if (loaded) this.begin(loaded);
    });
    const bar = element("div", { className: "way" }, element("span", {}, "A"), this.share, element("span", {}, "B"));
    const ends = element("dl", { className: "ends" },
      element("dt", {}, "A"), this.ends.from.node, element("dt", {}, "B"), this.ends.to.node);
    return element("div", {}, ends, bar, this.search("search-between", (row) => [
      this.button("A", "end", () => void set("from", row)),
      this.button("B", "end", () => void set("to", row)),
      element("span", {}, row.title),
    ]));
  }

  private setEnd(end: "from" | "to", study: Study): void {
    this.ends[end].study = study;
    this.ends[end].node.textContent = study.title;
  }

  private mixed(): Loaded | null {
    const [from, to] = [this.ends.from.study, this.ends.to.study];
    return from && to ? between(from, to, this.share.valueAsNumber / 100) : null;
  }

  // ------------------------------------------------------------------ peaks and files

  private ownPeaks(): HTMLElement {
    const why = this.backend.whyNot("encode");
    if (why) return element("p", { className: "note" }, why);
    const text = element("textarea", { id: "peaks", rows: 4, placeholder: "-42 20 28\n44 -60 40" });
    text.setAttribute("aria-label", "Peaks in MNI mm, three numbers a line");
    const file = element("input", { type: "file", id: "file" });
    file.setAttribute("aria-label", "File of peaks or a statistic map");
    file.addEventListener("change", () => { if (file.files?.[0]) void this.readFile(file.files[0]); });
    return element("div", { className: "own" }, text,
      element("div", { className: "buttons" },
        this.button("Encode peaks", "", () => void this.readText(text.value)),
        file),
      element("p", { className: "note" }, "A file (also dropped onto the page): Sleuth, TSV or CSV with x, y, z, NIMADS, or a NIfTI map, whose local maxima are taken."),
      this.choices);
  }

  /** Bare numbers are MNI; Sleuth, a header or NIMADS says more (which space, whose peaks): read as a file. */
  private readText(text: string): Promise<void> {
    if (/^\s*(\/\/|[{a-z])/im.test(text)) return this.readFile(new File([text], "pasted.txt"));
    return this.attempt(async () => this.ofEntry(await this.backend.encode(peaksOf(text), {})));
  }

  private readFile(file: File): Promise<void> {
    this.open("peaks");
    this.choices.replaceChildren();
    return this.attempt(async () => {
      const mine = this.attempts;
      const { entries, note } = await this.backend.encodeFile(file);
      if (mine !== this.attempts) return null;
      if (entries.length === 1) this.begin(this.ofEntry(entries[0]!));
      else this.choices.replaceChildren(...entries.map((entry) => this.choice(entry)));
      this.note.textContent = note;
      return null;
    });
  }

  /** One study of a file; the list stays for the next choice. */
  private choice(entry: Entry): HTMLElement {
    return element("li", {}, this.button(entry.label, "row", () => this.begin(this.ofEntry(entry))),
      element("small", {}, `${entry.peaks} peaks`));
  }

  private ofEntry({ label, peaks, code }: Entry): Loaded {
    const title = label.includes("peaks") ? label : `${label} (${peaks} peaks)`;
    return { start: { kind: "peaks", label: title.slice(0, 80) }, code, metadata: {}, title };
  }

  private acceptDrops(): void {
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      const file = event.dataTransfer?.files[0];
      const why = this.backend.whyNot("encode");
      if (why) this.fail(why);
      else if (file) void this.readFile(file);
    });
  }
}

function describe({ authors, year, category, peaks, id }: StudyRow): string {
  return [authors, year, category?.replaceAll("_", " "), `${peaks} peaks`, id].filter(Boolean).join(" · ");
}

/** Three numbers a line, whatever stands between them. */
export function peaksOf(text: string): Vec3[] {
  const peaks: Vec3[] = [];
  text.split(/\r?\n/).forEach((line, i) => {
    if (!line.trim()) return;
    const numbers = line.replaceAll("−", "-").trim().split(/[\s,;]+/).map(Number);
    if (numbers.length !== 3 || !numbers.every(Number.isFinite)) {
      throw new Error(`Line ${i + 1}: expected three numbers (x y z in mm), got “${line.trim().slice(0, 40)}”.`);
    }
    peaks.push(numbers as Vec3);
  });
  if (!peaks.length) throw new Error("Paste peaks first: three numbers a line, MNI mm.");
  return peaks;
}
