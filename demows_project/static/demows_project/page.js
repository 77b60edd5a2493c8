/** The demo's page: what is on it, and the one connection that all of it shares. */

import { Board } from "./board.js";
import { Chart } from "./chart.js";
import { addCopyButtons } from "./copy.js";
import { Echo } from "./echo.js";
import { Frames } from "./frames.js";
import { Link } from "./link.js";
import { Status } from "./status.js";
import { Topics } from "./topics.js";

const link = new Link();
const topics = new Topics(link);
new Status(link);
new Frames(link);
new Chart(link, topics);
new Echo(link);
new Board(link, topics);
addCopyButtons();

link.connect();
topics.add("heartbeat");
topics.add("board");
