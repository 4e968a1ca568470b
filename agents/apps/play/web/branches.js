// Every future that was kept: one row each, its shared past dashed. A click goes there.
const SHORTEST = 20; // steps across; a short walk does not fill the width

export default {
  template: `
    <div class="branches">
      <div v-for="(b, i) in rows" :key="b.label" class="branch" :class="{ on: i === on }">
        <button type="button" :aria-current="i === on" :title="'To the tip of branch ' + b.label"
          :data-branch="b.label" @click="go(i, b.tip)">{{ b.label }}</button>
        <div class="track" @click="pick(i, $event)" :title="'Branch ' + b.label + ': click to go there'">
          <i class="past" :style="span(0, b.fork)"></i>
          <i class="own" :style="span(b.fork, b.tip)"></i>
          <i v-if="i === on" class="here" :style="{ left: at(depth) }"></i>
        </div>
        <span class="length">{{ b.tip }}</span>
      </div>
    </div>`,
  emits: ["jump"],
  data: () => ({ rows: [], on: 0, depth: 0 }),
  computed: {
    most() {
      return Math.max(SHORTEST, ...this.rows.map((b) => b.tip));
    },
  },
  methods: {
    show(state) {
      Object.assign(this, state);
      if (this.last !== this.on) {
        this.last = this.on;
        this.$nextTick(() => this.reveal());
      }
    },
    // Not scrollIntoView, which would move the whole page on a phone.
    reveal() {
      const row = this.$el.querySelector(".on");
      if (!row) return;
      const top = row.offsetTop - this.$el.offsetTop;
      const low = top + row.offsetHeight - this.$el.clientHeight;
      this.$el.scrollTop = Math.min(top, Math.max(low, this.$el.scrollTop));
    },
    at(depth) {
      return (100 * depth) / this.most + "%";
    },
    span(from, to) {
      return { left: this.at(from), width: this.at(to - from) };
    },
    go(branch, depth) {
      this.$emit("jump", { branch, depth });
    },
    pick(branch, event) {
      const box = event.currentTarget.getBoundingClientRect();
      const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      this.go(branch, Math.round(share * this.most));
    },
  },
};
