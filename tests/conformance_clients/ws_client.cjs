// A client on npm's ws with the usual few lines around it: it comes back by a doubling delay, whatever the code.
const WebSocket = require("ws");

const scale = Number(process.env.DEMOWS_SCALE ?? 1);
let failures = 0;
let socket;

function connect() {
  socket = new WebSocket(process.argv[2], { handshakeTimeout: 10_000 * scale });
  const waiting = new Map();
  let lastId = 0;
  let timer;
  let number = 0;

  const ask = (fields) =>
    new Promise((resolve, reject) => {
      const reqId = String(++lastId);
      waiting.set(reqId, resolve);
      setTimeout(() => reject(new Error(`no answer to ${fields.type}`)), 10_000 * scale);
      socket.send(JSON.stringify({ ...fields, reqId }));
    });
  const echo = (text) => ask({ type: "echo_request", echo: text }).then((data) => data.echo);
  const talk = async () => {
    const sent = [`echo ${number} a`, `echo ${number} b`];
    number += 1;
    const came = await Promise.all(sent.map(echo));
    await echo(`answered ${JSON.stringify(sent.map((text, index) => [text, came[index]]))}`);
  };
  const keepTalking = () => talk().catch(() => {}).finally(() => (timer = setTimeout(keepTalking, 1000 * scale)));

  // As the documentation of ws has it: without a sign of life for a while, the connection is broken.
  let alive;
  const heartbeat = () => {
    clearTimeout(alive);
    alive = setTimeout(() => socket.terminate(), 30_000 * scale);
  };

  socket.on("open", () => {
    failures = 0;
    heartbeat();
    ask({ type: "subscribe_request", topic: "heartbeat" }).catch(() => {});
    keepTalking();
  });
  socket.on("message", (data) => {
    heartbeat();
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return;
    }
    waiting.get(message?.reqId)?.(message.data);
    waiting.delete(message?.reqId);
  });
  socket.on("ping", heartbeat);
  socket.on("error", () => {});
  socket.on("close", () => {
    clearTimeout(timer);
    clearTimeout(alive);
    setTimeout(connect, Math.min(30_000, 1000 * 2 ** failures) * scale);
    failures += 1;
  });
}

process.on("SIGTERM", () => {
  socket.removeAllListeners("close");
  socket.on("close", () => process.exit());
  socket.close(1000);
});
connect();
