import { $, element, explain, say } from "./dom.js";

// As in demows_project/topics.py.
const [WIDTH, HEIGHT] = [12, 8];
const COLOURS = ["none", "blue", "green", "yellow", "red", "violet"];
const MARKS = ".bgyrv";
const TOPIC = "board";
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

/** The board: it shows what is published on the topic `board`, and a click asks the server to change a cell. */
export class Board {
  #link;
  #version = 0;
  #cells = []; // rows of buttons
  #colour = "blue";

  constructor(link, topics) {
    this.#link = link;
    $("palette").append(...COLOURS.map((colour) => this.#choice(colour)));
    for (let row = 0; row < HEIGHT; row += 1) {
      this.#cells.push(Array.from({ length: WIDTH }, (_, column) => this.#cell(row, column)));
      $("board").append(element("div", { role: "row" }, ...this.#cells[row]));
    }
    this.#cells[0][0].tabIndex = 0;
    this.#live(false);
    topics.addEventListener("joined", ({ detail }) => detail.topic === TOPIC && this.#live(true));
    topics.addEventListener("left", ({ detail }) => detail.topic === TOPIC && this.#live(false));
    topics.addEventListener("data", ({ detail }) => detail.topic === TOPIC && this.#draw(detail.data));
    link.addEventListener("close", () => this.#live(false));
    $("board").addEventListener("keydown", (event) => this.#move(event));
  }

  #choice(colour) {
    const input = element("input", { type: "radio", name: "colour", value: colour, checked: colour === this.#colour });
    input.addEventListener("change", () => (this.#colour = colour));
    const name = element("span", { className: "unseen" }, colour);
    return element("label", { className: "swatch", "data-colour": colour, title: colour }, input, name);
  }

  #cell(row, column) {
    const cell = element("button", { type: "button", role: "gridcell", tabIndex: -1 });
    cell.addEventListener("click", () => this.#paint(row, column));
    cell.addEventListener("focus", () => {
      for (const other of $("board").querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
      cell.tabIndex = 0;
    });
    this.#fill(cell, row, column, "none");
    return cell;
  }

  #fill(cell, row, column, colour) {
    if (cell.dataset.colour === colour) return;
    cell.dataset.colour = colour;
    cell.setAttribute("aria-label", `Row ${row + 1}, column ${column + 1}: ${colour}`);
  }

  /** Show whether what is on the board is what the others see. */
  #live(live) {
    this.#version = 0; // the next connection begins with a snapshot
    $("board").dataset.live = live;
    const why = this.#link.state === "open" ? "Not subscribed" : "Not connected";
    say($("painted"), "", live ? "" : `${why}: the board is as it was.`);
  }

  /** Show a board, unless a newer one is shown already: those of different servers may overtake each other. */
  #draw({ version, rows }) {
    if (version < this.#version) return;
    this.#version = version;
    this.#cells.forEach((cells, row) =>
      cells.forEach((cell, column) => this.#fill(cell, row, column, COLOURS[MARKS.indexOf(rows[row][column])])),
    );
  }

  async #paint(row, column) {
    const same = this.#cells[row][column].dataset.colour === this.#colour;
    try {
      await this.#link.request("board_set_request", { row, column, colour: same ? "none" : this.#colour });
      if ($("painted").dataset.kind === "bad") say($("painted"), "");
    } catch (error) {
      say($("painted"), "bad", ...explain(error));
    }
  }

  /** Move the focus with the arrow keys. */
  #move(event) {
    const step = STEPS[event.key];
    const row = this.#cells.findIndex((cells) => cells.includes(event.target));
    if (!step || row < 0) return;
    event.preventDefault();
    const column = this.#cells[row].indexOf(event.target);
    this.#cells[row + step[0]]?.[column + step[1]]?.focus();
  }
}
