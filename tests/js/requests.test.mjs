/** Requests: each gets its answer, or a reason why there is none. */

import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { RealtimeError } from "../../realtime/static/realtime/realtime.js";
import { opened, started } from "./fakes.mjs";

const failure = (code) => ({ name: "RealtimeError", code });

describe("a request", () => {
  test("resolves to the data of its answer", async () => {
    const all = await opened();
    const answer = all.client.request("price_request", { item: 7 });
    const [{ reqId, ...sent }] = all.socket.sent;
    assert.deepEqual(sent, { type: "price_request", item: 7 });
    assert.equal(typeof reqId, "string");
    all.socket.receive({ type: "price_response", reqId, status: "OK", data: { price: 3 } });
    assert.deepEqual(await answer, { price: 3 });
  });

  test("finds its answer among others", async () => {
    const all = await opened();
    const answers = ["a", "b", "c"].map((text) => all.client.echo(text));
    const ids = all.socket.sent.map(({ reqId }) => reqId);
    assert.equal(new Set(ids).size, 3);
    for (const index of [2, 0, 1]) {
      const data = { echo: `${index}` };
      all.socket.receive({ type: "echo_response", reqId: ids[index], status: "OK", data });
    }
    assert.deepEqual(await Promise.all(answers), ["0", "1", "2"]);
  });

  test("cannot be given another type or id by its fields", async () => {
    const all = await opened();
    const answer = all.client.request("echo_request", { type: "x", reqId: "x", echo: "y" });
    const [{ type, reqId }] = all.socket.sent;
    assert.equal(type, "echo_request");
    assert.notEqual(reqId, "x");
    all.socket.answer({ data: 1 });
    assert.equal(await answer, 1);
  });

  test("rejects with the server's error", async () => {
    const all = await opened();
    const answer = all.client.echo("a");
    all.socket.refuse("ASKED_BY_CLIENT", "client asked for it");
    await assert.rejects(answer, new RealtimeError("ASKED_BY_CLIENT", "client asked for it"));
    assert.ok((await answer.catch((error) => error)) instanceof Error);
  });

  test("rejects with an error that has no code, and with one that says nothing", async () => {
    const all = await opened();
    const one = all.client.request("own_request");
    all.socket.answer({ status: "ERROR", error: { message: "because" } });
    await assert.rejects(one, new RealtimeError("UNKNOWN", "because"));
    const two = all.client.request("own_request");
    all.socket.answer({ status: "ERROR" });
    await assert.rejects(two, failure("UNKNOWN"));
  });

  test("rejects with a flat error, by its id or else in turn", async () => {
    const all = await opened();
    const [one, two, three] = ["a", "b", "c"].map((type) => all.client.request(type));
    const settled = Promise.all([
      assert.rejects(one, failure("UNKNOWN_MESSAGE_TYPE")),
      assert.rejects(two, failure("BAD_REQUEST")),
      assert.rejects(three, failure("UNKNOWN_MESSAGE_TYPE")),
    ]);
    all.socket.receive({ type: "error", code: "BAD_REQUEST", message: "field", reqId: all.socket.sent[1].reqId });
    all.socket.receive({ type: "something_new" });
    all.socket.receive({ type: "error", code: "UNKNOWN_MESSAGE_TYPE", message: "unknown message type 'a'" });
    all.socket.receive({ type: "error", code: "UNKNOWN_MESSAGE_TYPE", message: "unknown message type 'c'" });
    all.socket.receive({ type: "error", code: "UNKNOWN_MESSAGE_TYPE", message: "nobody's" });
    await settled;
  });

  test("that was given up still has its turn", async () => {
    const all = await opened();
    const one = assert.rejects(all.client.request("a", {}, { timeout: 10 }), failure("TIMEOUT"));
    await all.clock.pass(10);
    const two = all.client.echo("b");
    all.socket.receive({ type: "error", code: "UNKNOWN_MESSAGE_TYPE", message: "unknown message type 'a'" });
    all.socket.receive({ type: "echo_response", reqId: all.socket.sent[1].reqId, data: { echo: "b" } });
    await one;
    assert.equal(await two, "b");
  });

  test("of the connection before has none on this one", async () => {
    const all = await opened();
    const one = assert.rejects(all.client.request("a"), failure("CLOSED"));
    all.socket.end(1012);
    await all.clock.pass(500);
    all.socket.open();
    const two = assert.rejects(all.client.request("b"), failure("UNKNOWN_MESSAGE_TYPE"));
    all.socket.receive({ type: "error", code: "UNKNOWN_MESSAGE_TYPE", message: "unknown message type 'b'" });
    await Promise.all([one, two]);
  });

  test("that is no JSON rejects at once", async () => {
    const all = await opened();
    const loop = {};
    loop.loop = loop;
    await assert.rejects(all.client.request("a", loop), TypeError);
    await assert.rejects(all.client.request("a", { big: 1n }), TypeError);
    assert.deepEqual(all.socket.sent, []);
    assert.equal(all.clock.timers.size, 1); // of the silence
  });
});

describe("a request without a connection", () => {
  test("waits for it, and goes after the subscriptions", async () => {
    const all = await started();
    const answers = [all.client.echo("a"), all.client.echo("b")];
    all.client.subscribe("news", () => {});
    all.socket.open();
    assert.deepEqual(all.socket.sent.map(({ echo, topic }) => echo ?? topic), ["news", "a", "b"]);
    all.socket.answer();
    all.socket.answer({ data: { echo: "a" } });
    all.socket.answer({ data: { echo: "b" } });
    assert.deepEqual(await Promise.all(answers), ["a", "b"]);
  });

  test("is what it was when it was made", async () => {
    const all = await started();
    const fields = { list: [1] };
    all.client.request("a", fields).catch(() => {});
    fields.list.push(2);
    all.socket.open();
    assert.deepEqual(all.socket.sent[0].list, [1]);
    all.client.close();
  });

  test("waits through attempts that fail, and is sent once", async () => {
    const all = await started();
    const answer = all.client.echo("a");
    all.socket.end(1006);
    await all.clock.pass(500);
    all.socket.open();
    assert.equal(all.socket.sent.length, 1);
    all.socket.answer({ data: { echo: "a" } });
    assert.equal(await answer, "a");
    all.socket.end(1006);
    await all.clock.pass(2_000);
    all.socket.open();
    assert.deepEqual(all.socket.sent, []);
  });

  test("waits no longer than its timeout, and is not sent then", async () => {
    const all = await started({ online: false });
    const answer = assert.rejects(all.client.echo("a", { timeout: 5_000 }), failure("TIMEOUT"));
    await all.clock.pass(5_000);
    await answer;
    all.window.setOnline(true);
    await all.clock.pass(0);
    all.socket.open();
    assert.deepEqual(all.socket.sent, []);
  });

  test("rejects where there will be none", async () => {
    const all = await started();
    const waiting = assert.rejects(all.client.echo("a", { timeout: Infinity }), failure("CLOSED"));
    all.socket.end(1000);
    await waiting;
    await assert.rejects(all.client.echo("a"), failure("CLOSED"));
    assert.equal(all.clock.timers.size, 0);
  });
});

describe("a request that gets no answer", () => {
  test("rejects after 10 s, or as long as it was given", async () => {
    const all = await opened();
    const results = [];
    for (const [name, options] of [["default"], ["short", { timeout: 100 }], ["endless", { timeout: Infinity }]]) {
      all.client.echo("a", options).catch(({ code }) => results.push(`${name} ${code}`));
    }
    await all.clock.pass(100);
    assert.deepEqual(results, ["short TIMEOUT"]);
    await all.clock.pass(9_899);
    assert.equal(results.length, 1);
    await all.clock.pass(1);
    assert.deepEqual(results, ["short TIMEOUT", "default TIMEOUT"]);
    all.socket.answer();
    all.client.close();
  });

  test("rejects when the connection ends", async () => {
    for (const code of [1000, 1006, 1012]) {
      const all = await opened();
      const answer = assert.rejects(all.client.echo("a"), failure("CLOSED"));
      all.socket.end(code);
      await answer;
      await all.clock.pass(1_000);
      if (code !== 1000) {
        all.socket.open();
        assert.deepEqual(all.socket.sent, []); // it may have been handled: only the page knows whether to ask again
      }
    }
  });

  test("can be aborted, before and after it was sent", async () => {
    const all = await started();
    const controllers = [new AbortController(), new AbortController()];
    const [early, late] = controllers.map(({ signal }) => all.client.echo("a", { signal }));
    controllers[0].abort();
    await assert.rejects(early, failure("ABORTED"));
    all.socket.open();
    assert.equal(all.socket.sent.length, 1);
    const reason = new Error("enough");
    controllers[1].abort(reason);
    await assert.rejects(late, { code: "ABORTED", cause: reason });
    all.socket.answer();
    await assert.rejects(all.client.echo("a", { signal: AbortSignal.abort() }), failure("ABORTED"));
    assert.equal(all.socket.sent.length, 1);
    assert.equal(all.clock.timers.size, 1); // of the silence
  });

  test("leaves no listener on the signal, whatever it ends with", async () => {
    const all = await opened();
    const listeners = new Set();
    const signal = {
      aborted: false,
      addEventListener: (_, listener) => listeners.add(listener),
      removeEventListener: (_, listener) => listeners.delete(listener),
    };
    const one = all.client.echo("a", { signal });
    all.socket.answer({ data: { echo: "a" } });
    await one;
    const two = assert.rejects(all.client.echo("a", { signal, timeout: 1 }), failure("TIMEOUT"));
    const three = assert.rejects(all.client.echo("a", { signal }), failure("CLOSED"));
    await all.clock.pass(1);
    assert.equal(listeners.size, 1);
    all.client.close();
    await Promise.all([two, three]);
    assert.equal(listeners.size, 0);
  });
});

describe("events", () => {
  test("tell of every frame, in and out", async () => {
    const all = await opened();
    const seen = [];
    for (const type of ["send", "message"]) {
      all.client.addEventListener(type, ({ detail }) => seen.push([type, detail]));
    }
    const answer = all.client.echo("a");
    all.socket.answer({ data: { echo: "a" } });
    await answer;
    await all.clock.pass(25_000);
    const [one, two] = all.socket.sent;
    assert.deepEqual(seen, [
      ["send", one],
      ["message", { type: "echo_response", reqId: one.reqId, status: "OK", data: { echo: "a" } }],
      ["send", two],
    ]);
    assert.deepEqual(Object.keys(seen[0][1]), ["type", "reqId", "echo"]); // as it is read best
  });

  test("are events of an EventTarget", async () => {
    const { client } = await opened();
    assert.ok(client instanceof EventTarget);
  });
});
