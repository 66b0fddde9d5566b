// The page: controls on the left change one state, which three views show and the address keeps.
// Tests read the data attributes of <body>: painted, ready, settled, decodes, view, mm, value, sums, times.

import "./style.css";
import type { Answer, Backend, Changes, Field, Model, Part, Point, Quantity, Regions } from "./backend";
import { showCoverage, showEffect, showPeaks } from "./details";
import { connect } from "./connect";
import { byId, element, format, hasWebGL2, paintTrack } from "./dom";
import { standalone } from "./download";
import { LatentControls } from "./latent";
import { Latest } from "./latest";
import { legal, MetadataControls } from "./metadata";
import { loadTemplate, type Template } from "./nifti";
import { Panel, type Picture } from "./panel";
import { regionAt } from "./places";
import { picture, python, save } from "./save";
import { load, StartPanel, type Loaded } from "./start";
import { fromAddress, PARTS, quantityOf, toAddress, VIEWS, type State, type View } from "./state";
import { StripView, valuesOf } from "./strip";
import { combined, confidenceOf, peakOf, resample, type Vec3, type Volume } from "./volume";

const REST = 250; // ms without a move after which a slider counts as released
const TOPICS = 30_000; // ms after which a server has found what the directions go along with
const SAMPLES = 24;
const PEAKS = 20;
const PANELS: Record<View, number> = { latent: 1, counterfactual: 3, confidence: 2 };
const PART_NAMES: Record<Part, string> = {
  decoder: "one study around its map",
  posterior: "the code of the study",
  imputation: "the unknown metadata",
};

const page = document.body.dataset;

function report(text: string, failed = false): void {
  const status = byId("status");
  status.setAttribute("aria-live", failed ? "assertive" : "off"); // each map's time is no news
  status.textContent = text;
  status.classList.toggle("failed", failed);
}

function stop(text: string): void {
  const notice = byId("notice");
  notice.textContent = text;
  notice.hidden = false;
  report("");
}

interface Job {
  view: View;
  point: Point;
  changes: Changes;
  quantity: Quantity;
}

class Page {
  private readonly panels: Panel[] = [];
  private readonly latent: LatentControls;
  private readonly facts: MetadataControls;
  private readonly changes: MetadataControls;
  private readonly start: StartPanel;
  private readonly strip: StripView;
  private readonly latest: Latest<Job, [Job, Answer]>;
  private readonly parts = new Map<Part, HTMLInputElement>();
  private readonly fade = element("input", { type: "range", id: "fade", min: "0", max: "3", step: "0.1", value: "0" });
  private readonly faded = element("output", { className: "number" });
  private loaded: Loaded = { start: { kind: "prior" }, code: null, metadata: {}, title: "" };
  private answer: Answer | null = null;
  private answered: Job | null = null;
  private regions: Regions | null = null;
  private readonly limits: Record<"mean" | "sd", [number, number]>; // fixed: a colour means the same everywhere
  private mm: Vec3 = [0, 0, 0];
  private opening: Promise<void> = Promise.resolve(); // of the graphics that the view needs
  private resting: number | undefined;
  private following: number | undefined;
  private webgl2: boolean | null = null; // null: not asked yet
  private asked = 0; // counts what was asked, so that late details do not show

  constructor(
    private readonly backend: Backend,
    private readonly model: Model,
    private readonly template: Template,
    private state: State,
  ) {
    this.limits = { mean: [model.display.low, model.display.high], sd: [0, model.display.high] };
    const moved = (): void => this.moved();
    this.latent = new LatentControls(byId("latent"), model.latent, () => {
      this.state.code = { mean: this.latent.code(), sd: this.spread() };
      this.moved();
    });
    this.facts = new MetadataControls(byId("metadata"), model, "facts", () => {
      this.state.metadata = this.facts.known();
      this.moved();
    });
    this.changes = new MetadataControls(byId("changes"), model, "changes", () => {
      this.state.changes = this.changes.get();
      this.moved();
    });
    this.start = new StartPanel(byId("start"), backend, model, (loaded) => this.begin(loaded), (random) => {
      const { metadata } = this.point(); // of the study that was here: still what is asked for
      this.state.metadata = Object.keys(metadata).length ? metadata : null;
      this.state.start = random.start;
      this.latent.sample();
      const mean = this.latent.code();
      this.state.code = { mean, sd: mean.map(() => 0) }; // known exactly, unlike a study's
      this.loaded = { ...random, code: this.state.code };
      this.ask();
    });
    this.strip = new StripView(byId("years"), (value) => {
      const field = this.moving();
      if (!field) return;
      this.state.changes = { ...this.state.changes, [field.name]: value };
      this.changes.set(this.state.changes);
      this.ask();
    });
    this.latest = new Latest(
      (job) => this.decode(job),
      ([job, answer]) => this.show(job, answer),
      (error) => report(error.message, true),
      () => {
        this.resting = window.setTimeout(() => void this.rest(), REST);
      },
    );
    this.confidenceControls(moved);
    this.buttons();
    byId("model-name").textContent = `${model.name} · ${model.version}`;
    document.title = `atlas · ${model.name}`;
    showCoverage(model);
  }

  /** Take the state of the address and show it. */
  async open(): Promise<void> {
    const { state } = this;
    let failure: unknown = null;
    const loaded = await load(this.backend, state.start).catch((error: unknown) => {
      failure = error; // a study that is not here: the centre then
      state.start = { kind: "prior" };
      return load(this.backend, state.start);
    });
    if (state !== this.state) return; // another address came meanwhile
    this.loaded = loaded;
    const { code, metadata, changes } = this.state;
    if (code && code.mean.length !== this.model.latent.size) this.state.code = null;
    this.state.metadata = metadata && legal(this.model, metadata);
    this.state.changes = legal(this.model, changes);
    this.start.show(this.loaded);
    if (failure) this.start.fail(failure);
    this.spreadControls();
    this.switchTo(this.state.view);
  }

  // ------------------------------------------------------------------ what is asked for

  private point(): Point {
    const code = this.state.code ?? this.loaded.code;
    const sd = code?.sd.some((x) => x > 0) ? code.sd : null;
    return { z: code?.mean ?? null, sd, metadata: this.state.metadata ?? this.loaded.metadata };
  }

  private spread(): number[] {
    return (this.state.code ?? this.loaded.code)?.sd ?? new Array<number>(this.model.latent.size).fill(0);
  }

  private begin(loaded: Loaded): void {
    this.loaded = loaded;
    this.state.start = loaded.start;
    this.state.code = loaded.start.kind === "peaks" ? loaded.code : null;
    this.state.metadata = null;
    this.spreadControls();
    this.ask();
  }

  /** Bring the controls to the state. */
  private spreadControls(): void {
    const { z, metadata } = this.point();
    this.latent.set(z ?? new Array<number>(this.model.latent.size).fill(0));
    this.facts.set(metadata);
    this.changes.set(this.state.changes);
    for (const [part, box] of this.parts) box.checked = this.state.parts.includes(part);
    this.showFade();
    for (const radio of document.querySelectorAll<HTMLInputElement>("input[name=quantity]")) {
      radio.checked = radio.value === this.state.quantity;
    }
    for (const radio of document.querySelectorAll<HTMLInputElement>("input[name=zoom]")) {
      radio.checked = Number(radio.value) === this.state.zoom;
    }
  }

  private ask(): void {
    window.clearTimeout(this.resting);
    page["settled"] = "false";
    this.asked += 1;
    const { view, quantity, changes } = this.state;
    if (this.whyNot(view)) return;
    this.latest.ask({ view, point: this.point(), changes, quantity });
  }

  private moved(): void {
    for (const panel of this.panels) panel.setMoving(true);
    this.ask();
  }

  private async decode(job: Job): Promise<[Job, Answer]> {
    const { view, point, changes, quantity } = job;
    const answer = await (
      view === "counterfactual" ? this.backend.counterfactual(point, changes)
      : view === "confidence" ? this.backend.uncertainty(point, SAMPLES)
      : this.backend.decode(point, quantity));
    return [job, answer];
  }

  // ------------------------------------------------------------------ what is shown

  private show(job: Job, answer: Answer): void {
    if (job.view !== this.state.view) return; // switched meanwhile; the other is on its way
    if (job.view === "latent" && job.quantity !== this.state.quantity) return;
    const start = performance.now();
    [this.answered, this.answer] = [job, answer];
    this.facts.showImputed(answer.imputed);
    this.changes.showImputed(answer.imputed);
    const first = !this.state.mm;
    this.draw();
    if (first && this.panels[0]?.picture) this.goTo(peakOf(this.panels[0].picture.map));
    const beyond = answer.extrapolated.map((name) => this.field(name)?.label ?? name);
    report(`decoded in ${answer.milliseconds.toFixed(0)} ms` + (beyond.length ? ` · extrapolated: ${beyond.join(", ")}` : ""));
    page["decodes"] = String(Number(page["decodes"] ?? 0) + 1);
    page["times"] = JSON.stringify({ answer: answer.milliseconds, draw: performance.now() - start });
    page["painted"] = "true";
    this.opening = this.openGraphics().catch((error: Error) => report(`The graphics did not start: ${error.message}. Reload the page.`, true));
  }

  /** Start what draws, after the page has shown the map without it. */
  private async openGraphics(): Promise<void> {
    await new Promise((painted) => requestAnimationFrame(() => window.setTimeout(painted)));
    if (this.webgl2 === null && !(this.webgl2 = hasWebGL2())) {
      stop("This browser has no WebGL2, which the viewer draws with: these are plain slices. Try another browser, or switch hardware acceleration on.");
    }
    if (!this.webgl2) return;
    for (const panel of this.panels.slice(0, PANELS[this.state.view])) {
      await panel.open((mm) => this.goTo(mm, panel), () => stop("The browser dropped the graphics. Reload the page."));
    }
    page["ready"] = "true";
  }

  /** Draw the answer that is here, and read its values. */
  private draw(): void {
    this.pictures().forEach((shown, i) => this.panels[i]!.show(shown));
    this.goTo(this.mm, null, false);
    const sums = this.panels.map(({ picture: shown }) => shown?.map.values.reduce((sum, x) => sum + x, 0) ?? 0);
    page["sums"] = JSON.stringify(sums.slice(0, PANELS[this.state.view]));
  }

  private pictures(): Picture[] {
    if (!this.answer || !this.answered) return [];
    const { maps } = this.answer;
    const unit = this.model.unit;
    const mean = (title: string, map: Volume): Picture => ({ title, map, palette: "mean", limits: this.limits.mean, unit });
    if (this.answered.view === "latent") {
      return maps["sd"]
        ? [{ title: "Uncertainty", map: maps["sd"], palette: "sd", limits: this.limits.sd, unit: `± ${unit}` }]
        : [mean("Map", maps["mean"]!)];
    }
    if (this.answered.view === "counterfactual") {
      const high = (this.limits.mean[1] - this.limits.mean[0]) / this.state.zoom;
      return [
        mean("As it is", maps["factual"]!),
        mean("If it were", maps["counterfactual"]!),
        { title: "Difference", map: maps["difference"]!, palette: "difference", limits: [0, high], unit },
      ];
    }
    const total = combined(this.state.parts.map((part) => maps[part]!), maps["mean"]!);
    const { template } = this;
    const fade = this.state.fade;
    const opacity = fade > 0 ? confidenceOf(resample(maps["mean"]!, template), resample(total, template), fade) : null;
    return [
      { ...mean("Map", maps["mean"]!), opacity },
      { title: "Uncertainty", map: total, palette: "sd", limits: this.limits.sd, unit: `± ${unit}` },
    ];
  }

  private goTo(mm: Vec3, from: Panel | null = null, move = true): void {
    this.mm = mm;
    const count = PANELS[this.state.view];
    const values = this.panels.slice(0, count).map((panel) => panel.goTo(mm, move && panel !== from));
    this.state.mm = mm.map(Math.round) as Vec3;
    byId("mm").textContent = `${mm.map((x) => x.toFixed(0)).join(", ")} mm`;
    byId("value").textContent = values.map((v) => (v === null ? "–" : v.toFixed(Math.abs(v) < 0.095 ? 3 : 2))).join(" · ");
    byId("region").textContent = this.regions ? (regionAt(this.regions, mm) ?? "–") : "–";
    page["mm"] = JSON.stringify(mm);
    page["value"] = String(values[0]);
    if (move) this.follow();
  }

  /** Once the crosshair rests, the address and the strip's slice go where it is. */
  private follow(): void {
    window.clearTimeout(this.following);
    this.following = window.setTimeout(() => {
      this.keepAddress();
      if (this.state.view !== "counterfactual" || page["settled"] !== "true") return; // else the strip is to come
      this.showStrip(this.asked).catch((error: Error) => report(error.message, true));
    }, REST);
  }

  /** Nothing moves any more: the 3-D view, the address, and what stands below the maps. */
  private async rest(): Promise<void> {
    this.keepAddress();
    const mine = this.asked;
    const opened = this.opening.then(() => {
      if (mine === this.asked) for (const panel of this.panels) panel.setMoving(false);
    });
    try {
      if (this.state.view === "counterfactual") await this.compare(mine);
      if (this.state.view === "confidence") {
        const peaks = await this.backend.peaks(this.point(), this.state.parts, PEAKS);
        if (mine === this.asked) showPeaks(peaks, (mm) => this.goTo(mm));
      }
    } catch (error) {
      if (mine === this.asked) report((error as Error).message, true);
    }
    await opened;
    if (mine === this.asked) page["settled"] = "true";
  }

  private async compare(mine: number): Promise<void> {
    const { changes } = this.state;
    const why = this.backend.whyNot("effect");
    const changed = Object.keys(changes).length;
    if (why || changed !== 1) {
      showEffect(why ?? (changed ? "Chance is asked about one field at a time: change only one." : "Change a field to see how far the map moves."));
    } else {
      const effect = await this.backend.effect(this.point(), changes).catch((error: Error) => error.message);
      if (mine === this.asked) showEffect(effect);
    }
    await this.showStrip(mine);
  }

  private async showStrip(mine: number): Promise<void> {
    const { changes } = this.state;
    const field = this.moving();
    if (!field) return this.strip.clear();
    const values = valuesOf(field);
    const strip = await this.backend.strip(this.point(), field.name, values, 2, this.mm[2]);
    const grid = this.answer?.maps["factual"];
    if (mine !== this.asked || !grid) return;
    const now = changes[field.name] ?? this.point().metadata[field.name];
    this.strip.show(field, values, strip, grid, this.mm, this.template,
      this.limits.mean, typeof now === "number" ? now : null);
  }

  /** The number that is moved: the changed one, else the year, else the first. */
  private moving(): Field | null {
    const numbers = this.model.fields.filter((field) => field.available && field.kind === "number");
    const changed = numbers.find((field) => field.name in this.state.changes);
    return changed ?? numbers.find((field) => field.name === "year") ?? numbers[0] ?? null;
  }

  private field(name: string): Field | undefined {
    return this.model.fields.find((field) => field.name === name);
  }

  // ------------------------------------------------------------------ views

  private whyNot(view: View): string | null {
    if (view === "latent" || this.model.conditioned) return null;
    return "This model takes no metadata: there is nothing to change and nothing to impute. The Latent Slider shows what it has.";
  }

  private switchTo(view: View): void {
    this.state.view = view;
    page["view"] = view;
    page["settled"] = "false";
    for (const name of VIEWS) {
      const tab = byId(`tab-${name}`);
      tab.setAttribute("aria-selected", String(name === view));
      tab.tabIndex = name === view ? 0 : -1;
    }
    byId("view").setAttribute("aria-labelledby", `tab-${view}`);
    for (const node of document.querySelectorAll<HTMLElement>("[data-view]")) node.hidden = node.dataset["view"] !== view;
    const why = this.whyNot(view);
    byId("notice").hidden = !why;
    byId("details").hidden = Boolean(why);
    this.layPanels(why ? 0 : PANELS[view]);
    if (why) {
      stop(why);
      page["settled"] = "true";
    }
    this.ask();
  }

  /** As many panels as a view has; the 3-D view where there is but one. */
  private layPanels(count: number): void {
    const stage = byId("stage");
    while (this.panels.length < count) this.panels.push(new Panel(stage, this.panels.length, this.template));
    stage.dataset["panels"] = String(count);
    this.panels.forEach((panel, i) => {
      panel.node.hidden = i >= count;
      panel.setSolid(count === 1);
    });
    if (this.state.mm) this.mm = this.state.mm;
    for (const panel of this.panels.slice(0, count)) panel.goTo(this.mm, true);
  }

  private keepAddress(push = false): void {
    const address = `#${toAddress(this.state)}`;
    if (address === location.hash) return;
    if (push) history.pushState(null, "", address);
    else history.replaceState(null, "", address);
  }

  // ------------------------------------------------------------------ buttons

  private buttons(): void {
    const tabs = VIEWS.map((view) => byId(`tab-${view}`));
    VIEWS.forEach((view, i) => {
      tabs[i]!.addEventListener("click", () => {
        if (view === this.state.view) return;
        this.state.view = view;
        this.keepAddress(true);
        this.switchTo(view);
      });
      tabs[i]!.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = tabs[(i + step + tabs.length) % tabs.length]!;
        next.focus();
        next.click();
      });
    });
    window.addEventListener("popstate", () => {
      this.state = fromAddress(location.hash.slice(1));
      void this.open();
    });
    for (const radio of document.querySelectorAll<HTMLInputElement>("input[name=quantity]")) {
      radio.addEventListener("change", () => {
        this.state.quantity = radio.value as Quantity;
        this.ask();
      });
    }
    for (const radio of document.querySelectorAll<HTMLInputElement>("input[name=zoom]")) {
      radio.addEventListener("change", () => {
        this.state.zoom = Number(radio.value);
        this.draw();
        this.keepAddress();
      });
    }
    byId("share-link").addEventListener("click", () => {
      this.keepAddress();
      void navigator.clipboard.writeText(location.href).then(
        () => report("The address is copied."), () => report("Copy it from the address bar."));
    });
    this.downloads();
  }

  private confidenceControls(moved: () => void): void {
    for (const part of PARTS) {
      const box = element("input", { type: "checkbox", id: `part-${part}`, checked: true });
      box.addEventListener("change", () => {
        this.state.parts = PARTS.filter((name) => this.parts.get(name)!.checked);
        moved();
      });
      this.parts.set(part, box);
      byId("confidence").append(element("label", { className: "part" }, box, PART_NAMES[part]));
    }
    const label = element("label", { htmlFor: "fade" }, "Fade out what is uncertain");
    this.fade.addEventListener("input", () => {
      this.state.fade = this.fade.valueAsNumber;
      this.showFade();
      this.draw();
      this.keepAddress();
    });
    byId("confidence").append(
      element("p", { className: "note" }, "Variances add up."),
      element("div", { className: "field" },
        element("div", { className: "field-head" }, label), element("div", { className: "slide" }, this.fade, this.faded)));
  }

  private showFade(): void {
    const { fade } = this.state;
    this.fade.valueAsNumber = fade;
    this.faded.value = fade > 0 ? `below ${format(fade)} sd` : "off";
    paintTrack(this.fade);
  }

  private downloads(): void {
    const name = (): string => `atlas-${this.model.name}-${this.state.view}`;
    const on = (id: string, work: () => Promise<void>): void =>
      byId(id).addEventListener("click", () => {
        byId<HTMLDetailsElement>("downloads").open = false;
        work().catch((error: Error) => report(error.message, true));
      });
    on("get-nifti", async () => {
      const why = this.backend.whyNot("nifti");
      if (why) throw new Error(why);
      const compared = this.state.view === "counterfactual" && Object.keys(this.state.changes).length > 0;
      const quantity = compared ? "difference" : quantityOf(this.state);
      save(await this.backend.nifti(this.point(), compared ? this.state.changes : null, quantity), `${name()}-${quantity}.nii.gz`);
    });
    on("get-png", async () => {
      const caption = `${this.title()} · ${this.model.name} ${this.model.version} · ${byId("mm").textContent ?? ""}`;
      save(await picture(this.shown(), caption), `${name()}.png`);
    });
    on("get-html", async () => {
      const title = this.title();
      const facts: [string, string][] = [
        ["Model", `${this.model.name} ${this.model.version}`],
        ["Code", title],
        ["Metadata", JSON.stringify(this.point().metadata)],
      ];
      if (this.state.view === "counterfactual") facts.push(["Changed to", JSON.stringify(this.state.changes)]);
      const maps = this.shown().map((panel) => panel.picture!);
      save(await standalone({ title: `atlas · ${title}`, maps, facts, mm: this.mm, template: this.backend.template() }), `${name()}.html`);
    });
    on("get-python", () => {
      const dialog = byId<HTMLDialogElement>("python");
      dialog.querySelector("pre")!.textContent = python(this.point(), this.state, this.model.run);
      dialog.showModal();
      return Promise.resolve();
    });
    byId("copy-python").addEventListener("click", () => {
      void navigator.clipboard.writeText(byId("python").querySelector("pre")!.textContent ?? "");
    });
  }

  /** Where the code comes from, and whether sliders have moved it since. */
  private title(): string {
    const { loaded: { code, title }, state } = this;
    const given = state.code === null || state.code === code || (state.start.kind === "peaks" && code === null);
    return given ? title : `${title}, directions moved`;
  }

  private shown(): Panel[] {
    return this.panels.slice(0, PANELS[this.state.view]).filter((panel) => panel.picture);
  }

  /** What may come after the first map: names of regions, and of directions. */
  async complete(): Promise<void> {
    if (this.model.regions.available) {
      this.regions = await this.backend.regions();
      if (this.answer) this.goTo(this.mm);
    }
    const nameless = this.model.latent.directions.every((direction) => !direction.topics.length);
    if (nameless && this.model.studies.count) {
      window.setTimeout(() => void this.backend.model().then(({ latent }) => this.latent.name(latent.directions)), TOPICS);
    }
  }
}

async function begin(): Promise<void> {
  const backend = await connect((text) => report(text ?? ""));
  const [model, template] = await Promise.all([backend.model(), loadTemplate(backend.template())]);
  const opened = new Page(backend, model, template, fromAddress(location.hash.slice(1)));
  Object.assign(window, { atlas: opened }); // for the console, and for what measures the page
  await opened.open();
  await opened.complete();
}

begin().catch((error: unknown) => stop(error instanceof Error ? error.message : String(error)));
