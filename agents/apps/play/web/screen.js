// The pictures, the numbers and their curves. `show(state)` draws one moment (agents/play/show.py);
// `drawn` is sent back once it is on the screen, so that the server never runs ahead of the browser.
const TILES = [
  { name: "reward", title: "Reward", real: "real_reward", hint: "of the step that led here" },
  { name: "goes_on", title: "Continue", low: 0, high: 1, hint: "probability that the episode goes on" },
  { name: "value", title: "Value", hint: "discounted return that the critic expects" },
  { name: "surprise", title: "Surprise", low: 0, unit: "nats", hint: "KL between what the dream foretold and what the real frame says" },
];
const FEWEST = 30; // steps across a curve; a short one does not fill its tile
const ACTS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
const TYPING = "input, select, textarea, [contenteditable], [role=slider], [role=combobox], .q-dialog";

export default {
  template: `
    <div class="dream-screen" :data-step="s ? s.step : -1" :data-painted="painted">
      <section class="stage" aria-label="Pictures">
        <div v-if="s" class="shots" :class="'view-' + s.view">
          <figure v-for="p in s.pictures" :key="p.kind" :class="p.kind">
            <img :src="p.src" :alt="p.title + ', step ' + s.step" draggable="false" />
            <div v-if="s.cameras.length" class="cameras">
              <span v-for="name in s.cameras" :key="name">{{ name }}</span>
            </div>
            <figcaption>{{ p.title }}</figcaption>
          </figure>
        </div>
        <p v-if="s" class="where">
          <b>step {{ s.step }}</b><span>branch {{ s.branch }}</span><span>{{ s.about }}</span>
          <span v-if="rate" class="rate">{{ rate }} steps/s</span>
        </p>
        <p v-if="s && s.note" class="note" role="status">{{ s.note }}</p>
      </section>
      <section class="tiles" aria-label="Predictions">
        <div v-for="t in tiles" :key="t.name" class="tile" :title="t.hint" :data-name="t.name">
          <div class="head"><span>{{ t.title }}</span><span class="extra">{{ t.extra }}</span></div>
          <div class="number" :class="{ none: t.value === null }">
            {{ t.text }}<small v-if="t.value !== null && t.unit">{{ t.unit }}</small>
          </div>
          <div class="plot" aria-hidden="true">
            <svg viewBox="0 0 100 36" preserveAspectRatio="none">
              <line v-if="t.zero !== null" class="zero" x1="0" x2="100" :y1="t.zero" :y2="t.zero" />
              <path v-if="t.realPath" class="real" :d="t.realPath" />
              <path class="dream" :d="t.path" />
            </svg>
            <div v-if="t.top" class="scale"><span>{{ t.top }}</span><span>{{ t.bottom }}</span></div>
          </div>
        </div>
      </section>
    </div>`,
  emits: ["drawn", "key"],
  data: () => ({ s: null, painted: 0, times: [], rate: "" }),
  computed: {
    tiles() {
      return TILES.map((t) => this.tile(t));
    },
  },
  mounted() {
    this.onKey = (e) => this.key(e);
    this.onBlur = () => this.$emit("key", { key: "", down: false });
    document.addEventListener("keydown", this.onKey);
    document.addEventListener("keyup", this.onKey);
    window.addEventListener("blur", this.onBlur);
    this.clock = setInterval(() => this.measure(), 500);
    this.$emit("drawn", 0);
  },
  unmounted() {
    document.removeEventListener("keydown", this.onKey);
    document.removeEventListener("keyup", this.onKey);
    window.removeEventListener("blur", this.onBlur);
    clearInterval(this.clock);
  },
  methods: {
    settle() {
      document.getElementById("waiting")?.remove(); // what stood here before (page.py)
    },
    show(state) {
      this.settle();
      this.s = state;
      this.$nextTick(() =>
        requestAnimationFrame(() => {
          this.painted += 1;
          this.times.push(performance.now());
          this.$emit("drawn", state.n);
        }),
      );
    },
    measure() {
      const now = performance.now();
      this.times = this.times.filter((t) => now - t < 2000);
      const steady = this.times.length > 4 && now - this.times[this.times.length - 1] < 600;
      this.rate = steady
        ? (((this.times.length - 1) * 1000) / (this.times[this.times.length - 1] - this.times[0])).toFixed(0)
        : "";
    },
    key(e) {
      if (e.ctrlKey || e.metaKey || e.altKey) return;
      const focus = document.activeElement;
      if ((focus && focus.closest(TYPING)) || document.querySelector(".q-dialog")) return;
      const name = e.key.length === 1 ? e.key.toLowerCase() : e.key;
      if (!ACTS.includes(name) && name !== "Backspace" && !/^[a-z0-9?]$/.test(name)) return;
      if (ACTS.includes(name) || name === "Backspace") e.preventDefault();
      this.$emit("key", { key: name, down: e.type === "keydown", repeat: e.repeat, shift: e.shiftKey });
    },
    tile(t) {
      const s = this.s;
      const value = s ? s.numbers[t.name] : null;
      const line = s ? s.curves[t.name] : [];
      const real = s && t.real && s.curves[t.real] ? s.curves[t.real] : [];
      const all = [...line, ...real].filter((v) => v !== null);
      let low = t.low ?? Math.min(...all);
      let high = t.high ?? Math.max(...all);
      if (!all.length) [low, high] = [0, 1];
      if (high - low < 1e-6) [low, high] = t.low === 0 ? [0, Math.max(1, high)] : [low - 0.5, high + 0.5];
      const y = (v) => 33 - (30 * (v - low)) / (high - low);
      return {
        ...t,
        value,
        text: value === null ? "n/a" : number(value, t.name),
        extra: this.extra(t),
        zero: low < 0 && high > 0 ? y(0) : null,
        top: all.length ? number(high) : "",
        bottom: all.length ? number(low) : "",
        path: path(line, y),
        realPath: real.length ? path(real, y) : "",
      };
    },
    extra(t) {
      if (!this.s) return "";
      const n = this.s.numbers;
      if (this.s.view !== "dream" && t.real && n[t.real] !== null) return "real " + number(n[t.real], t.name);
      if (t.name === "surprise" && n.news !== null) return "one step " + number(n.news, t.name);
      if (t.name === "surprise" && n.surprise === null) return "needs reality";
      return "";
    },
  },
};

function number(v, name) {
  if (name === "goes_on") return v.toFixed(3);
  const size = Math.abs(v);
  if (name === undefined && Number.isInteger(v)) return String(v).replace("-", "\u2212");
  return v.toFixed(size < 10 ? 2 : size < 100 ? 1 : 0).replace("-", "\u2212");
}

// An SVG path through the values, broken where there is none.
function path(values, y) {
  const last = Math.max(values.length, FEWEST) - 1;
  let out = "";
  let pen = "M";
  values.forEach((v, i) => {
    if (v === null) {
      pen = "M";
      return;
    }
    out += `${pen}${((100 * i) / last).toFixed(2)} ${y(v).toFixed(2)}`;
    pen = "L";
  });
  return out;
}
