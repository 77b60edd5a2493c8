// A peer that need not be there: Socket.IO, with a room for each topic. `node socketio_site.js PORT`
"use strict";
const { createServer } = require("http");
const { Server } = require("socket.io");
const { WebSocketServer } = require("ws");

const DATA = { symbol: "ACME", price: "12.34", volume: 5600 };
const PING_INTERVAL = 600_000; // milliseconds: the load answers none

const server = createServer();
const io = new Server(server, { transports: ["websocket"], pingInterval: PING_INTERVAL });
io.on("connection", (socket) => socket.join(socket.handshake.query.topic));

const trigger = new WebSocketServer({ noServer: true });
trigger.on("connection", (client) => {
  client.on("error", () => {}); // the load drops its connections
  client.on("message", (text) => {
    const topic = text.toString();
    io.to(topic).emit("publication", { topic, data: DATA, timestamp: new Date().toISOString() });
  });
});
server.on("upgrade", (request, socket, head) => {
  if (request.url !== "/publish") return;
  trigger.handleUpgrade(request, socket, head, (client) => trigger.emit("connection", client));
});
server.listen(Number(process.argv[2]), "127.0.0.1");
