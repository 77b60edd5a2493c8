// Our browser client in Node, as the conformance report sees it: it subscribes, echoes each second, tells what it got.
import { connect } from "../../realtime/static/realtime/realtime.js";

const scale = Number(process.env.DEMOWS_SCALE ?? 1);
globalThis.reportError ??= (error) => console.error("reported:", String(error));

// A page's clock that runs faster, so that all of the client's delays shrink alike.
const clock = {
  now: () => performance.now() / scale,
  setTimeout: (callback, delay) => setTimeout(callback, delay * scale),
  clearTimeout: (timer) => clearTimeout(timer),
};

/** Return chance that is the same each time (mulberry32), for tests that must not fail by chance. */
function seeded(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

const { DEMOWS_SEED } = process.env;
const random = DEMOWS_SEED ? seeded(Number(DEMOWS_SEED)) : Math.random;
const client = connect({ url: process.argv[2], clock, random });
client.addEventListener("close", ({ detail }) => {
  if (!detail.willReconnect) process.exitCode = 0;
});
process.on("SIGTERM", () => client.close());
client.subscribe("heartbeat", () => {});

let number = 0;
const pause = () => new Promise((resolve) => setTimeout(resolve, 1000 * scale));
while (client.state !== "closed") {
  const sent = [`echo ${number} a`, `echo ${number} b`];
  number += 1;
  try {
    const came = await Promise.all(sent.map((text) => client.echo(text)));
    await client.echo(`answered ${JSON.stringify(sent.map((text, index) => [text, came[index]]))}`);
  } catch (error) {
    console.error(String(error));
  }
  await pause();
}
