import { $, milliseconds } from "./dom.js";

const SPAN = 60_000; // ms that are shown
const PERIOD = 5_000; // ms between two echoes
const TOP = 56; // where the line of the heart is
const [TRIPS, FLOOR] = [74, 116]; // between these are the round trips
const BAND = 126; // where the connection's state is
const BEAT = "l3,-3 l3,3 l2,0 l2,5 l4,-44 l4,50 l3,-11 l3,0"; // of a heart, from left to right
const WIDTH = 24; // of a beat
const SVG = "http://www.w3.org/2000/svg";

/** The last minute as a chart that moves: heartbeats, round trips, and how the connection was. */
export class Chart {
  #svg = $("chart");
  #beats = []; // when they came
  #total = 0;
  #trips = []; // {at, took}
  #asked = new Map(); // when echoes were sent, by reqId
  #states = [{ at: 0, state: "closed" }];
  #width = 300;
  #calm = matchMedia("(prefers-reduced-motion: reduce)");
  #link;

  constructor(link, topics) {
    this.#link = link;
    this.#build();
    topics.addEventListener("data", ({ detail }) => detail.topic === "heartbeat" && this.#beat());
    link.addEventListener("send", ({ detail }) => this.#sent(detail));
    link.addEventListener("message", ({ detail }) => this.#received(detail));
    link.addEventListener("open", () => setTimeout(() => this.#measure(), 1_000)); // when the page is less busy
    link.addEventListener("close", () => this.#asked.clear());
    link.addEventListener("state", ({ detail }) => this.#states.push({ at: performance.now(), state: detail.state }));
    setInterval(() => this.#measure(), PERIOD);
    setInterval(() => this.#draw(), this.#calm.matches ? 1_000 : 100);
    new ResizeObserver(([entry]) => this.#resize(entry.contentRect.width)).observe(this.#svg);
  }

  #beat() {
    this.#beats.push(performance.now());
    this.#total += 1;
    $("beats").textContent = this.#total;
    if (!this.#calm.matches) $("heart").animate([{ scale: 1.4 }, { scale: 1 }], 400);
  }

  #measure() {
    if (this.#link.state !== "open" || document.hidden || !$("measure").checked) return;
    this.#link.request("echo_request", { echo: "round trip" }).catch(() => {}); // the connection has ended
  }

  #sent({ type, reqId }) {
    if (type === "echo_request") this.#asked.set(reqId, performance.now());
  }

  #received({ reqId }) {
    const began = this.#asked.get(reqId);
    if (began === undefined) return;
    this.#asked.delete(reqId);
    const at = performance.now();
    this.#trips.push({ at, took: at - began });
    $("trip").textContent = milliseconds(at - began);
  }

  // The picture

  #build() {
    this.#add("line", { class: "axis", x1: 0, y1: FLOOR, x2: "100%", y2: FLOOR });
    this.#add("line", { class: "axis dashed", x1: 0, y1: TRIPS, x2: "100%", y2: TRIPS });
    this.#add("text", { id: "most", x: 0, y: TRIPS + 11 });
    this.#add("path", { id: "pulse" });
    this.#add("path", { id: "trips" });
    this.#add("path", { id: "trip-dots" });
    this.#add("g", { id: "band" });
  }

  #add(name, attributes, parent = this.#svg) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    parent.append(made);
  }

  #resize(width) {
    this.#width = width;
    this.#draw();
  }

  #draw() {
    if (document.hidden) return;
    const now = performance.now();
    const x = (at) => Math.max(0, Math.round((1 - (now - at) / SPAN) * this.#width * 10) / 10);
    this.#beats = this.#beats.filter((at) => now - at < SPAN);
    this.#trips = this.#trips.filter(({ at }) => now - at < SPAN);
    while (this.#states.length > 1 && now - this.#states[1].at > SPAN) this.#states.shift();
    this.#drawPulse(x);
    this.#drawTrips(x);
    this.#drawBand(x);
  }

  #drawPulse(x) {
    let path = `M0,${TOP}`;
    let end = 0;
    for (const at of this.#beats) {
      const begin = x(at) - WIDTH;
      if (begin < end) continue; // no room between this one and the one before
      path += ` L${begin},${TOP} ${BEAT}`;
      end = begin + WIDTH;
    }
    $("pulse").setAttribute("d", `${path} L${this.#width},${TOP}`);
  }

  #drawTrips(x) {
    const greatest = Math.max(1, ...this.#trips.map(({ took }) => took));
    const most = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000].find((step) => step >= greatest) ?? 10_000;
    let [line, dots, before] = ["", "", -Infinity];
    for (const { at, took } of this.#trips) {
      const point = `${x(at)},${(FLOOR - (took / most) * (FLOOR - TRIPS)).toFixed(1)}`;
      line += `${at - before < 2 * PERIOD ? "L" : "M"}${point} `; // none across a time without a connection
      dots += `M${point}h0 `;
      before = at;
    }
    $("trips").setAttribute("d", line);
    $("trip-dots").setAttribute("d", dots);
    $("most").textContent = `${most} ms`;
  }

  #drawBand(x) {
    $("band").replaceChildren();
    this.#states.forEach(({ at, state }, index) => {
      const [from, to] = [x(at), index + 1 < this.#states.length ? x(this.#states[index + 1].at) : this.#width];
      this.#add("line", { class: state, x1: from, y1: BAND, x2: to, y2: BAND }, $("band"));
    });
  }
}
