// A peer that need not be there: Node's ws, with the broadcast of its README. `node ws_site.js PORT`
"use strict";
const { WebSocketServer } = require("ws");

const DATA = { symbol: "ACME", price: "12.34", volume: 5600 };
const subscribers = new Map(); // sets of WebSockets, by the topic in their path

function publish(topic) {
  const timestamp = new Date().toISOString();
  const text = JSON.stringify({ type: "publication", topic, data: DATA, timestamp });
  for (const client of subscribers.get(topic) ?? []) client.send(text);
}

function echo(client, text) {
  const request = JSON.parse(text);
  const data = { echo: request.echo };
  client.send(JSON.stringify({ type: "echo_response", reqId: request.reqId, status: "OK", data }));
}

const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[2]) });
server.on("connection", (client, request) => {
  client.on("error", () => {}); // the load drops its connections
  if (request.url === "/publish") {
    client.on("message", (text) => publish(text.toString()));
    return;
  }
  const topic = request.url.split("/")[2];
  if (!subscribers.has(topic)) subscribers.set(topic, new Set());
  subscribers.get(topic).add(client);
  client.on("message", (text) => echo(client, text));
  client.on("close", () => subscribers.get(topic).delete(client));
});
