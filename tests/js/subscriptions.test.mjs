/** Subscribing: one subscription on the wire a topic, again on each connection, and handlers apart from each other. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { RealtimeError } from "../../realtime/static/realtime/realtime.js";
import { opened, settled, started } from "./fakes.mjs";

/** Return a list, and functions that put what they are called with into it. */
function recorder() {
  const calls = [];
  const note = (name) => (...values) => void calls.push([name, ...values]);
  const options = { onSubscribed: note("subscribed"), onError: note("error"), onGap: note("gap") };
  return { calls, handler: (data) => void calls.push(data), note, options };
}

/** Return the frames that a socket has sent, as short texts. */
const frames = ({ sent }) => sent.map(({ type, topic }) => `${type.replace("_request", "")} ${topic}`);

describe("subscribing", () => {
  test("waits for the connection, then asks in the order of the calls", async () => {
    const all = await started();
    all.client.subscribe("b", () => {});
    all.client.subscribe("a", () => {});
    assert.deepEqual(all.socket.sent, []);
    all.socket.open();
    all.client.subscribe("c", () => {});
    assert.deepEqual(frames(all.socket), ["subscribe b", "subscribe a", "subscribe c"]);
  });

  test("hands on what is published, with the topic and the time", async () => {
    const all = await opened();
    const calls = [];
    all.client.subscribe("orders.42", (...values) => calls.push(values));
    all.socket.answer();
    all.socket.publish("orders.42", { status: "paid" }, "2026-11-22T17:08:01.670383Z");
    all.socket.publish("orders.42", null, "later");
    all.socket.publish("orders.43", "of no concern");
    assert.deepEqual(calls, [
      [{ status: "paid" }, { topic: "orders.42", timestamp: "2026-11-22T17:08:01.670383Z" }],
      [null, { topic: "orders.42", timestamp: "later" }],
    ]);
  });

  test("to heartbeat hands on the beats", async () => {
    const all = await opened();
    const calls = [];
    all.client.subscribe("heartbeat", (...values) => calls.push(values));
    all.socket.answer();
    const beat = { type: "heartbeat", timestamp: "now", uptime_seconds: "0" };
    all.socket.receive(beat);
    assert.deepEqual(calls, [[beat, { topic: "heartbeat", timestamp: "now" }]]);
  });

  test("tells of gaps to those who want to know", async () => {
    const all = await opened();
    const { calls, handler, options } = recorder();
    all.client.subscribe("news", handler, options);
    all.client.subscribe("news", handler);
    all.socket.answer();
    all.socket.receive({ type: "gap", topic: "news" }, { type: "gap", topic: "other" });
    assert.deepEqual(calls, [["subscribed", { topic: "news" }], ["gap", { topic: "news" }]]);
    assert.deepEqual(all.window.errors, []);
  });

  test("keeps the order of a thousand publications", async () => {
    const all = await opened();
    const { calls, handler } = recorder();
    all.client.subscribe("news", handler);
    all.socket.answer();
    const numbers = Array.from({ length: 1_000 }, (_, number) => number);
    for (const number of numbers) all.socket.publish("news", number);
    assert.deepEqual(calls, numbers);
  });

  test("takes any name, also one that objects have", async () => {
    const all = await opened();
    const { calls, handler } = recorder();
    for (const name of ["__proto__", "constructor", "ödd ☂"]) {
      all.client.subscribe(name, handler);
      all.socket.answer();
      all.socket.publish(name, name);
    }
    assert.deepEqual(calls, ["__proto__", "constructor", "ödd ☂"]);
  });

  test("without a name or a handler is a mistake, told at once", async () => {
    const { client } = await opened();
    assert.throws(() => client.subscribe("news"), TypeError);
    assert.throws(() => client.subscribe(42, () => {}), TypeError);
  });

  test("ignores types and frames that it does not know", async () => {
    const all = await opened();
    all.socket.receive({ type: "something_new", topic: "news" }, null, 42, [], "text", {});
    assert.deepEqual(all.window.errors, []);
    all.socket.onmessage({ data: "no JSON" });
    assert.equal(all.window.errors[0].name, "SyntaxError");
    assert.equal(all.client.state, "open");
  });
});

describe("several handlers of a topic", () => {
  test("share one subscription, which the last one ends", async () => {
    const all = await opened();
    const { calls, note } = recorder();
    const one = all.client.subscribe("news", note("one"));
    const two = all.client.subscribe("news", note("two"));
    all.socket.answer();
    all.socket.publish("news", 1);
    one.unsubscribe();
    one.unsubscribe();
    all.socket.publish("news", 2);
    assert.deepEqual(frames(all.socket), ["subscribe news"]);
    two.unsubscribe();
    two.unsubscribe();
    all.socket.publish("news", 3);
    all.socket.answer();
    assert.deepEqual(frames(all.socket), ["subscribe news", "unsubscribe news"]);
    assert.deepEqual(calls.map(([name, data]) => `${name} ${data}`), ["one 1", "two 1", "two 2"]);
  });

  test("may be one function, subscribed twice", async () => {
    const all = await opened();
    const { calls, handler } = recorder();
    const one = all.client.subscribe("news", handler);
    all.client.subscribe("news", handler);
    all.socket.answer();
    all.socket.publish("news", 1);
    one.unsubscribe();
    all.socket.publish("news", 2);
    assert.deepEqual(calls, [1, 1, 2]);
  });

  test("are each told that they are subscribed, also those who come later", async () => {
    const all = await opened();
    const { calls, handler, note } = recorder();
    const subscribe = (name) => all.client.subscribe("news", handler, { onSubscribed: note(name) });
    subscribe("one");
    subscribe("two");
    all.socket.answer();
    subscribe("three");
    subscribe("four").unsubscribe();
    assert.equal(calls.length, 2); // not before subscribe() has returned
    await settled();
    assert.deepEqual(calls, ["one", "two", "three"].map((name) => [name, { topic: "news" }]));
  });

  test("are not disturbed by one that throws", async () => {
    const all = await opened();
    const { calls, handler } = recorder();
    const fail = () => {
      throw new Error("of the page");
    };
    all.client.subscribe("news", fail, { onSubscribed: fail, onGap: fail });
    all.client.subscribe("news", handler, { onGap: handler, onSubscribed: handler });
    all.socket.answer();
    all.socket.publish("news", 1);
    all.socket.receive({ type: "gap", topic: "news" });
    assert.deepEqual(calls, [{ topic: "news" }, 1, { topic: "news" }]);
    assert.equal(all.window.errors.length, 3);
    assert.equal(all.client.state, "open");
  });

  test("may come and go while a publication is handed on", async () => {
    const all = await opened();
    const { calls, handler } = recorder();
    const subscriptions = [];
    const first = all.client.subscribe("news", (data) => {
      first.unsubscribe();
      subscriptions[0].unsubscribe();
      all.client.subscribe("news", (later) => calls.push(["new", later]));
      calls.push(["first", data]);
    });
    subscriptions.push(all.client.subscribe("news", () => calls.push("never")));
    all.client.subscribe("news", handler);
    all.socket.answer();
    all.socket.publish("news", 1);
    assert.deepEqual(calls, [["first", 1], 1]);
    all.socket.publish("news", 2);
    assert.deepEqual(calls.slice(2), [2, ["new", 2]]);
    assert.deepEqual(frames(all.socket), ["subscribe news"]);
  });

  test("get nothing more once the client was closed by one of them", async () => {
    const all = await opened();
    const { calls, handler } = recorder();
    all.client.subscribe("news", () => all.client.close());
    all.client.subscribe("news", handler);
    all.socket.answer();
    all.socket.publish("news", 1);
    assert.deepEqual(calls, []);
  });
});

describe("unsubscribing", () => {
  test("before the connection asks for nothing", async () => {
    const all = await started();
    all.client.subscribe("news", () => {}).unsubscribe();
    all.socket.open();
    assert.deepEqual(all.socket.sent, []);
  });

  test("before the answer ends it, whatever the answer is", async () => {
    const all = await opened();
    const { calls, handler, options } = recorder();
    for (const answer of [() => all.socket.answer(), () => all.socket.refuse("FORBIDDEN")]) {
      all.client.subscribe("news", handler, options).unsubscribe();
      answer();
      all.socket.refuse("NOT_SUBSCRIBED");
    }
    assert.equal(all.socket.sent.length, 4);
    assert.deepEqual(calls, []);
    assert.deepEqual(all.window.errors, []);
  });

  test("and subscribing again begins anew, without what was still on its way", async () => {
    const all = await opened();
    const { calls, handler, note } = recorder();
    const onSubscribed = note("subscribed");
    const one = all.client.subscribe("news", handler, { onSubscribed });
    all.socket.answer();
    all.socket.publish("news", "old");
    one.unsubscribe();
    all.client.subscribe("news", handler, { onSubscribed });
    assert.deepEqual(frames(all.socket), ["subscribe news", "unsubscribe news", "subscribe news"]);
    all.socket.publish("news", "on its way");
    all.socket.answer();
    all.socket.publish("news", "cannot be");
    all.socket.answer();
    all.socket.publish("news", "new");
    assert.deepEqual(calls, [["subscribed", { topic: "news" }], "old", ["subscribed", { topic: "news" }], "new"]);
    one.unsubscribe();
    assert.equal(all.socket.sent.length, 3);
  });

  test("while there is no connection keeps it from being asked for again", async () => {
    const all = await opened();
    const one = all.client.subscribe("one", () => {});
    all.client.subscribe("two", () => {});
    all.socket.end(1012);
    one.unsubscribe();
    await all.clock.pass(500);
    all.socket.open();
    assert.deepEqual(frames(all.socket), ["subscribe two"]);
  });
});

describe("a new connection", () => {
  test("is asked for all topics, and each handler is told", async () => {
    const all = await opened();
    const { calls, handler, options } = recorder();
    all.client.subscribe("a", handler, options);
    all.client.subscribe("b", handler, options);
    all.socket.answer();
    all.socket.end(1006); // b was not answered
    all.client.subscribe("c", handler, options);
    await all.clock.pass(500);
    all.socket.open();
    assert.deepEqual(frames(all.socket), ["subscribe a", "subscribe b", "subscribe c"]);
    all.socket.publish("a", "before the answer");
    for (const topic of ["a", "b", "c"]) {
      all.socket.answer();
      all.socket.publish(topic, topic.toUpperCase());
    }
    const told = (topic) => ["subscribed", { topic }];
    assert.deepEqual(calls, [told("a"), told("a"), "A", told("b"), "B", told("c"), "C"]);
  });

  test("is asked after reconnect() too", async () => {
    const all = await opened();
    const { calls, handler } = recorder();
    all.client.subscribe("news", handler);
    all.socket.end(4500);
    all.client.subscribe("more", handler);
    all.client.reconnect();
    await settled();
    all.socket.open();
    assert.deepEqual(frames(all.socket), ["subscribe news", "subscribe more"]);
    all.socket.answer();
    all.socket.publish("news", 1);
    assert.deepEqual(calls, [1]);
  });

  test("is asked once, also for what a listener subscribes to as it opens", async () => {
    const all = await started();
    all.client.subscribe("a", () => {});
    for (const type of ["state", "open"]) {
      all.client.addEventListener(type, () => all.client.subscribe(type, () => {}));
    }
    all.client.addEventListener("send", () => all.client.subscribe("send", () => {}));
    all.socket.open();
    assert.deepEqual(frames(all.socket).sort(), ["a", "open", "send", "state"].map((name) => `subscribe ${name}`));
  });
});

describe("a subscription that is refused", () => {
  test("is told to each handler, and not asked for again on this connection", async () => {
    const all = await opened();
    const { calls, handler, note } = recorder();
    all.client.subscribe("secret", handler, { onError: note("one"), onSubscribed: note("never") });
    all.client.subscribe("secret", handler, { onError: note("two") });
    all.socket.refuse("FORBIDDEN", "not allowed to subscribe to this topic");
    all.client.subscribe("secret", handler, { onError: note("three") });
    await settled();
    assert.deepEqual(calls.map(([name]) => name), ["one", "two", "three"]);
    for (const [, error, about] of calls) {
      assert.ok(error instanceof RealtimeError);
      assert.equal(error.code, "FORBIDDEN");
      assert.equal(error.message, "not allowed to subscribe to this topic");
      assert.deepEqual(about, { topic: "secret" });
    }
    await all.clock.pass(20_000);
    assert.deepEqual(frames(all.socket), ["subscribe secret"]);
    assert.deepEqual(all.window.errors, []);
  });

  for (const code of ["INTERNAL_ERROR", "FORBIDDEN", "TOPIC_NOT_FOUND", "TOO_MANY_SUBSCRIPTIONS"]) {
    test(`with ${code} is asked for again on the next connection`, async () => {
      const all = await opened();
      const { calls, handler, options } = recorder();
      all.client.subscribe("news", handler, options);
      all.socket.refuse(code);
      all.socket.end(1012);
      await all.clock.pass(500);
      all.socket.open();
      all.socket.answer();
      all.socket.publish("news", 1);
      assert.deepEqual(calls.map((call) => call[0] ?? call), ["error", "subscribed", 1]);
    });
  }

  test("is reported like an error that nobody caught, where there is no onError", async () => {
    const all = await opened();
    all.client.subscribe("news", () => {});
    all.socket.refuse("TOPIC_NOT_FOUND", "no such topic");
    assert.deepEqual(all.window.errors, [new RealtimeError("TOPIC_NOT_FOUND", "no such topic")]);
  });

  test("asks for nothing when it is given up, and is asked for anew by who wants to", async () => {
    const all = await opened();
    const { calls, handler, options } = recorder();
    const one = all.client.subscribe("news", handler, options);
    all.socket.refuse("FORBIDDEN");
    one.unsubscribe();
    assert.deepEqual(frames(all.socket), ["subscribe news"]);
    all.client.subscribe("news", handler, options);
    all.socket.answer();
    assert.deepEqual(calls.map(([name]) => name), ["error", "subscribed"]);
  });

  test("by a flat error is one too", async () => {
    const all = await opened();
    const { calls, handler, options } = recorder();
    all.client.subscribe("news", handler, options);
    all.socket.receive({ type: "error", code: "RATE_LIMITED", message: "slow down", reqId: all.socket.sent[0].reqId });
    assert.equal(calls[0][1].code, "RATE_LIMITED");
  });

  test("is none when the connection has it already", async () => {
    const all = await opened();
    const { calls, handler, options } = recorder();
    const own = all.client.request("subscribe_request", { topic: "news" });
    all.client.subscribe("news", handler, options);
    all.socket.answer();
    all.socket.refuse("ALREADY_SUBSCRIBED");
    all.socket.publish("news", 1);
    assert.deepEqual(await own, { topic: "news" });
    assert.deepEqual(calls, [["subscribed", { topic: "news" }], 1]);
  });
});
