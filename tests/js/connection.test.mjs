/** Connecting, coming back, staying away, and letting go. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { opened, settled, started } from "./fakes.mjs";

/** Fail so many connections before they open, and return the delays that were told. */
async function delaysOf(all, count, code = 1006) {
  for (let round = 0; round < count; round += 1) {
    all.socket.end(code);
    const made = all.sockets.length;
    await all.clock.pass(all.closes.at(-1).delay);
    assert.equal(all.sockets.length, made + 1);
  }
  return all.closes.map(({ delay }) => delay);
}

describe("where to", () => {
  for (const [url, scriptUrl, expected] of [
    [undefined, undefined, "wss://example.com/ws/"],
    [undefined, "/prefix/ws/", "wss://example.com/prefix/ws/"],
    ["/other/", "/prefix/ws/", "wss://example.com/other/"],
    ["live/", undefined, "wss://example.com/shop/orders/live/"],
    ["http://localhost:8080/", undefined, "ws://localhost:8080/"],
    ["wss://live.example.com/ws/?a=b#c", undefined, "wss://live.example.com/ws/?a=b"],
    [new URL("https://example.org/ws/"), undefined, "wss://example.org/ws/"],
  ]) {
    test(`${url} and ${scriptUrl} in the page is ${expected}`, async () => {
      assert.equal((await started({ url, scriptUrl })).socket.url, expected);
    });
  }

  test("a page that is not secure is connected to in the same way", async () => {
    assert.equal((await started({ page: "http://localhost:8080/" })).socket.url, "ws://localhost:8080/ws/");
  });

  test("a URL that is none is told at once", async () => {
    await assert.rejects(started({ url: "https://" }), TypeError);
  });
});

describe("the token", () => {
  test("is left out where there is none", async () => {
    for (const token of [undefined, null, "", () => null, async () => ""]) {
      assert.deepEqual((await started({ token })).socket.protocols, ["demows.v1"]);
    }
  });

  test("is offered as a subprotocol", async () => {
    assert.deepEqual((await started({ token: "abc" })).socket.protocols, ["demows.v1", "token.abc"]);
  });

  test("is asked for before each connection", async () => {
    let asked = 0;
    const all = await started({ token: async () => `t${++asked}` });
    all.socket.end(1012);
    await all.clock.pass(1_000);
    assert.deepEqual(all.sockets.map(({ protocols }) => protocols[1]), ["token.t1", "token.t2"]);
  });

  test("that cannot be had is asked for again later", async () => {
    const error = new Error("401");
    const all = await started({ token: () => Promise.reject(error) });
    assert.deepEqual(all.window.errors, [error]);
    assert.deepEqual(all.closes, [
      { code: 1006, reason: "the page's token function failed", willReconnect: true, delay: 500 },
    ]);
    await all.clock.pass(500);
    assert.equal(all.closes.length, 2);
    assert.equal(all.sockets.length, 0);
  });

  test("that comes when its connection was given up is not used", async () => {
    const given = [];
    const all = await started({ token: () => new Promise((...settle) => given.push(settle)) });
    await all.clock.pass(10_000);
    assert.equal(all.client.state, "waiting");
    await all.clock.pass(500);
    given[0][0]("late");
    await settled();
    assert.equal(all.sockets.length, 0);
    given[1][0]("current");
    await settled();
    assert.deepEqual(all.socket.protocols, ["demows.v1", "token.current"]);
    assert.deepEqual(all.window.errors, []);
  });

  test("that fails when the client was closed is nobody's concern", async () => {
    let fail;
    const all = await started({ token: () => new Promise((_, reject) => (fail = reject)) });
    all.client.close();
    fail(new Error("too late"));
    await settled();
    assert.deepEqual(all.window.errors, []);
    assert.equal(all.events.length, 2);
  });

  test("that no subprotocol can hold ends it, as trying again would not help", async () => {
    const all = await started({ token: "no spaces" });
    assert.equal(all.client.state, "closed");
    assert.equal(all.window.errors[0].name, "SyntaxError");
    assert.deepEqual(all.closes, [
      { code: 1006, reason: "the browser refuses to connect", willReconnect: false, delay: null },
    ]);
  });
});

describe("coming back", () => {
  test("goes through the states", async () => {
    const all = await opened();
    all.socket.end(1012, "deploy");
    await all.clock.pass(500);
    all.socket.open();
    assert.deepEqual(all.events, [
      ["state", "open"],
      ["open", {}],
      ["state", "waiting"],
      ["close", { code: 1012, reason: "deploy", willReconnect: true, delay: 500 }],
      ["state", "connecting"],
      ["state", "open"],
      ["open", {}],
    ]);
  });

  test("waits twice as long each time, up to the longest", async () => {
    const expected = [1, 2, 4, 8, 16, 30, 30].map((seconds) => seconds * 1_000);
    assert.deepEqual(await delaysOf(await started({ random: 1 }), 7), expected);
  });

  test("has full jitter", async () => {
    assert.deepEqual(await delaysOf(await started({ random: 0 }), 3), [0, 0, 0]);
    assert.deepEqual(await delaysOf(await started({ random: 0.25 }), 3), [250, 500, 1_000]);
  });

  test("has no limit to how often it failed", async () => {
    const delays = await delaysOf(await started({ random: 1 }), 1_100);
    assert.equal(delays.at(-1), 30_000);
  });

  test("can be set", async () => {
    const backoff = { base: 10, max: 25 };
    assert.deepEqual(await delaysOf(await started({ random: 1, backoff }), 4), [10, 20, 25, 25]);
  });

  test("is slower and slower where the server closes what it has just accepted", async () => {
    const all = await started({ random: 1 });
    for (const delay of [1_000, 2_000, 4_000]) {
      all.socket.open();
      await all.clock.pass(9_999);
      all.socket.end(1011);
      assert.equal(all.closes.at(-1).delay, delay);
      await all.clock.pass(delay);
    }
  });

  test("begins anew after a connection that lasted", async () => {
    const all = await started({ random: 1 });
    await delaysOf(all, 3);
    all.socket.open();
    await all.clock.pass(10_000);
    all.socket.end(1001);
    assert.equal(all.closes.at(-1).delay, 1_000);
    await all.clock.pass(1_000);
    assert.deepEqual((await delaysOf(all, 3)).slice(-3), [2_000, 4_000, 8_000]);
  });

  test("begins anew after a connection that lasted until the browser was offline", async () => {
    const all = await started({ random: 1 });
    await delaysOf(all, 3);
    all.socket.open();
    await all.clock.pass(10_000);
    all.window.setOnline(false);
    all.window.setOnline(true);
    await settled();
    all.socket.end(1006);
    assert.equal(all.closes.at(-1).delay, 1_000);
  });

  test("takes at least 10 s after 1013, and clients that were refused together come apart", async () => {
    assert.deepEqual(await delaysOf(await started({ random: 0 }), 2, 1013), [10_000, 10_000]);
    assert.deepEqual(await delaysOf(await started({ random: 1 }), 6, 1013), [
      20_000, 20_000, 20_000, 20_000, 26_000, 40_000,
    ]);
  });

  test("after 1013 is not hurried by anything", async () => {
    const all = await started({ random: 0 });
    all.socket.end(1013);
    await all.clock.pass(1_000);
    all.window.show(true);
    all.client.reconnect();
    all.window.setOnline(false);
    assert.equal(all.client.state, "offline");
    all.window.setOnline(true);
    assert.equal(all.client.state, "waiting");
    await all.clock.pass(8_999);
    assert.equal(all.sockets.length, 1);
    await all.clock.pass(1);
    assert.equal(all.sockets.length, 2);
    const states = all.events.filter(([type]) => type === "state").map(([, state]) => state);
    assert.deepEqual(states, ["waiting", "offline", "waiting", "connecting"]);
  });

  test("gives up an attempt that takes 10 s", async () => {
    const all = await started();
    await all.clock.pass(9_999);
    assert.equal(all.client.state, "connecting");
    await all.clock.pass(1);
    assert.deepEqual(all.socket.closed, []);
    assert.deepEqual(all.closes[0], { code: 1006, reason: "no connection in time", willReconnect: true, delay: 500 });
    all.sockets[0].open(); // too late
    assert.equal(all.client.state, "waiting");
    await all.clock.pass(500);
    assert.equal(all.sockets.length, 2);
  });

  test("is done now by reconnect(), without waiting", async () => {
    const all = await started();
    all.socket.end(1006);
    all.client.reconnect();
    await settled();
    assert.equal(all.client.state, "connecting");
    assert.equal(all.sockets.length, 2);
    all.client.reconnect();
    all.socket.open();
    all.client.reconnect();
    await settled();
    assert.equal(all.sockets.length, 2);
    assert.equal(all.client.state, "open");
    assert.equal(all.window.listening, 5);
  });
});

describe("staying away", () => {
  for (const code of [1000, 1002, 1005, 1008, 1009, 3500, 4500]) {
    test(`is what ${code} asks for`, async () => {
      const all = await opened();
      all.socket.end(code, "why");
      assert.equal(all.client.state, "closed");
      assert.deepEqual(all.closes, [{ code, reason: "why", willReconnect: false, delay: null }]);
      all.window.setOnline(true);
      all.window.show(true);
      await all.clock.pass(3_600_000);
      assert.equal(all.sockets.length, 1);
      assert.equal(all.clock.timers.size, 0);
      assert.equal(all.window.listening, 0);
    });
  }

  test("ends with reconnect(), also from the listener that is told", async () => {
    const all = await opened();
    all.client.addEventListener("close", ({ detail }) => detail.code === 1008 && all.client.reconnect());
    all.socket.end(1008, "token refused");
    await settled();
    assert.equal(all.client.state, "connecting");
    all.socket.open();
    assert.equal(all.client.state, "open");
    assert.equal(all.window.listening, 5);
  });

  test("is kept by reconnect() for a while, where the last one did not last either", async () => {
    const all = await opened({ random: 1 });
    all.client.addEventListener("close", () => all.client.reconnect());
    for (const delay of [0, 4_000, 8_000, 16_000, 30_000]) {
      const made = all.sockets.length;
      all.socket.end(1008, "token refused");
      await settled();
      if (delay) {
        assert.equal(all.client.state, "waiting");
        await all.clock.pass(delay - 1);
        assert.equal(all.sockets.length, made);
        await all.clock.pass(1);
      }
      assert.equal(all.sockets.length, made + 1);
      all.socket.open();
    }
    await all.clock.pass(10_000);
    all.socket.end(1008, "token refused");
    await settled();
    assert.equal(all.client.state, "connecting");
  });
});

describe("a server that is dead", () => {
  const question = { type: "echo_request", echo: "are you there?" };

  test("is asked after 25 s of silence, and left after 10 s more", async () => {
    const all = await opened();
    await all.clock.pass(24_999);
    assert.deepEqual(all.socket.sent, []);
    await all.clock.pass(1);
    assert.deepEqual(all.socket.sent, [{ ...question, reqId: all.socket.sent[0].reqId }]);
    await all.clock.pass(9_999);
    assert.equal(all.client.state, "open");
    await all.clock.pass(1);
    assert.equal(all.client.state, "waiting");
    assert.deepEqual(all.closes[0], { code: 1006, reason: "the server is silent", willReconnect: true, delay: 500 });
    assert.deepEqual(all.sockets[0].closed, []);
    await all.clock.pass(500);
    assert.equal(all.sockets.length, 2);
  });

  test("is not one that answers", async () => {
    const all = await opened();
    for (let round = 1; round < 20; round += 1) {
      await all.clock.pass(25_000 + 9_999);
      assert.equal(all.socket.sent.length, round);
      all.socket.answer();
    }
    assert.equal(all.client.state, "open");
  });

  test("is not one that sends anything, and such a one is not asked", async () => {
    const all = await opened();
    for (let round = 0; round < 20; round += 1) {
      await all.clock.pass(24_000);
      all.socket.receive({ type: "something_new" });
    }
    assert.deepEqual(all.socket.sent, []);
    assert.equal(all.client.state, "open");
  });

  test("is found out at once when somebody looks at the page", async () => {
    const all = await opened();
    all.window.show(false);
    assert.equal(all.socket.sent.length, 0);
    all.window.show(true);
    await all.clock.pass(5_000);
    all.window.show(true); // which gives it no more time
    assert.equal(all.socket.sent.length, 1);
    await all.clock.pass(5_000);
    assert.equal(all.client.state, "waiting");
  });

  test("is asked as often as somebody looks", async () => {
    const all = await opened();
    for (let round = 1; round < 4; round += 1) {
      all.window.show(true);
      assert.equal(all.socket.sent.length, round);
      all.socket.answer();
    }
  });
});

describe("a browser that is offline", () => {
  test("does not connect, and does at once when it is online", async () => {
    const all = await started({ online: false });
    assert.equal(all.client.state, "offline");
    assert.deepEqual(all.clock.delays, []);
    all.window.setOnline(true);
    await settled();
    assert.equal(all.client.state, "connecting");
    assert.equal(all.sockets.length, 1);
  });

  test("drops what it has, and comes back at once", async () => {
    for (const all of [await opened(), await started()]) {
      all.window.setOnline(false);
      assert.equal(all.client.state, "offline");
      assert.deepEqual(all.socket.closed, []);
      assert.deepEqual(all.clock.delays, []);
      assert.deepEqual(all.closes, [
        { code: 1006, reason: "the browser is offline", willReconnect: true, delay: null },
      ]);
      all.socket.end(1006); // as browsers tell when the closing was not answered
      all.window.setOnline(false);
      assert.equal(all.closes.length, 1);
      all.window.setOnline(true);
      await settled();
      all.socket.open();
      assert.equal(all.client.state, "open");
      assert.equal(all.sockets.length, 2);
    }
  });

  test("does not go on waiting", async () => {
    const all = await started();
    all.socket.end(1006);
    all.window.setOnline(false);
    assert.equal(all.client.state, "offline");
    assert.deepEqual(all.clock.delays, []);
    assert.equal(all.closes.length, 1);
  });

  test("is noticed before a connection, where the event was missed", async () => {
    for (const hurry of [false, true]) {
      const all = await started();
      all.socket.end(1006);
      all.window.navigator.onLine = false;
      if (hurry) all.window.show(true);
      else await all.clock.pass(500);
      assert.equal(all.client.state, "offline");
      assert.deepEqual(all.clock.delays, []);
      assert.equal(all.sockets.length, 1);
    }
  });

  test("stays closed", async () => {
    const all = await opened();
    all.socket.end(1000);
    all.client.reconnect();
    await settled();
    all.socket.end(1000);
    all.window.setOnline(false);
    assert.equal(all.client.state, "closed");
  });
});

describe("a page", () => {
  test("that is left has no connection, and one that is shown again has", async () => {
    const all = await opened();
    all.window.happen("pagehide", { persisted: true });
    assert.equal(all.client.state, "waiting");
    assert.deepEqual(all.socket.closed, []);
    assert.deepEqual(all.clock.delays, []);
    all.window.happen("pageshow", { persisted: true });
    await settled();
    assert.equal(all.sockets.length, 2);
  });

  test("that is shown for the first time changes nothing", async () => {
    const all = await opened();
    all.window.happen("pageshow", { persisted: false });
    await settled();
    assert.equal(all.sockets.length, 1);
    assert.equal(all.socket.sent.length, 0);
  });

  test("that somebody looks at does not wait", async () => {
    const all = await started();
    all.socket.end(1006);
    all.window.show(false);
    assert.equal(all.client.state, "waiting");
    all.window.show(true);
    await settled();
    assert.equal(all.sockets.length, 2);
  });

  test("needs no document: a worker has none", async () => {
    const window = { location: new URL("https://example.com/worker.js") };
    let made = 0;
    window.WebSocket = class {
      constructor() {
        made += 1;
      }
      close() {}
    };
    const { client } = await started({ window });
    assert.equal(made, 1);
    client.close();
  });
});

describe("close()", () => {
  const stages = {
    connecting: async () => started(),
    "waiting for a token": async () => started({ token: () => new Promise(() => {}) }),
    open: async () => opened(),
    "asking whether the server is there": async () => {
      const all = await opened();
      await all.clock.pass(25_000);
      return all;
    },
    waiting: async () => {
      const all = await started();
      all.socket.end(1006);
      return all;
    },
    offline: async () => started({ online: false }),
    "closed by the server": async () => {
      const all = await opened();
      all.socket.end(1000);
      return all;
    },
  };
  for (const [stage, reach] of Object.entries(stages)) {
    test(`while ${stage} leaves nothing behind`, async () => {
      const all = await reach();
      const before = all.closes.length;
      const kept = new WeakRef(() => {});
      all.client.subscribe("news", kept.deref());
      const requests = [all.client.echo("a"), all.client.request("b", {}, { timeout: Infinity })];
      all.client.close(4000, "bye");
      assert.equal(all.client.state, "closed");
      assert.deepEqual(all.clock.delays, []);
      assert.equal(all.window.listening, 0);
      for (const request of requests) await assert.rejects(request, { name: "RealtimeError", code: "CLOSED" });
      for (const { onopen, onmessage, onclose } of all.sockets) {
        assert.deepEqual([onopen, onmessage, onclose], [null, null, null]);
      }
      if (stage !== "closed by the server") {
        assert.deepEqual(all.closes.slice(before), [
          { code: 4000, reason: "bye", willReconnect: false, delay: null },
        ]);
      }
      const { length } = all.events;
      all.client.close();
      all.window.setOnline(true);
      await all.clock.pass(3_600_000);
      assert.equal(all.events.length, length);
      assert.ok(all.sockets.length <= 1);
      if (globalThis.gc) {
        await settled();
        globalThis.gc();
        assert.equal(kept.deref(), undefined, "the handler is still referenced");
      }
    });
  }

  test("tells the server why", async () => {
    const all = await opened();
    all.client.close(4000, "bye");
    assert.deepEqual(all.socket.closed, [4000, "bye"]);
    const other = await opened();
    other.client.close();
    assert.deepEqual(other.socket.closed, [1000, ""]);
  });

  test("with a code that pages may not send changes nothing", async () => {
    const all = await opened();
    assert.throws(() => all.client.close(1001), /InvalidAccessError/);
    assert.equal(all.client.state, "open");
    assert.equal(all.window.listening, 5);
    all.client.close();
    assert.equal(all.client.state, "closed");
  });

  test("is for good", async () => {
    const all = await opened();
    all.client.close();
    const refused = { name: "RealtimeError", code: "CLOSED" };
    assert.throws(() => all.client.reconnect(), refused);
    assert.throws(() => all.client.subscribe("news", () => {}), refused);
    await assert.rejects(all.client.echo("a"), refused);
  });

  test("may come from any listener", async () => {
    for (const [type, act] of [
      ["state", (all) => all.socket.open()],
      ["open", (all) => all.socket.open()],
      ["send", (all) => all.socket.open()],
      ["message", (all) => (all.socket.open(), all.socket.receive({ type: "heartbeat" }))],
      ["close", (all) => all.socket.end(1012)],
    ]) {
      const all = await started();
      all.client.subscribe("a", () => {});
      all.client.subscribe("b", () => {});
      const pending = assert.rejects(all.client.echo("c"), { code: "CLOSED" });
      all.client.addEventListener(type, () => all.client.close());
      act(all);
      await pending;
      assert.equal(all.client.state, "closed");
      assert.deepEqual(all.clock.delays, [], type);
      assert.equal(all.window.listening, 0);
    }
  });
});
