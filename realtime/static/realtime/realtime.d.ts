/** What a client does after a close code: nothing, come back with backoff, or come back after at least 10 s. */
export type Reconnect = "stay_away" | "backoff" | "later";

/** Return what a client does after a close with `code`. */
export function reconnectAfter(code: number): Reconnect;

/** Codes of errors: the server's, and the client's own TIMEOUT, ABORTED, CLOSED and UNKNOWN. */
export type ErrorCode =
  | "ALREADY_SUBSCRIBED"
  | "NOT_SUBSCRIBED"
  | "TOPIC_NOT_FOUND"
  | "ASKED_BY_CLIENT"
  | "UNKNOWN_MESSAGE_TYPE"
  | "BAD_REQUEST"
  | "FORBIDDEN"
  | "TOO_MANY_SUBSCRIPTIONS"
  | "RATE_LIMITED"
  | "INTERNAL_ERROR"
  | "TIMEOUT"
  | "ABORTED"
  | "CLOSED"
  | "UNKNOWN"
  | (string & {});

/** What requests and subscriptions fail with. */
export class RealtimeError extends Error {
  constructor(code: ErrorCode, message?: string, options?: { cause?: unknown });
  readonly name: "RealtimeError";
  readonly code: ErrorCode;
}

export type Token = string | null | undefined;

export interface ConnectOptions {
  /** Where to connect to: ws(s), http(s) or relative to the page. By default what `{% realtime_client %}` says, or `/ws/`. */
  url?: string | URL;
  /** The token to send, or a function that returns one and is called before each connection. */
  token?: Token | (() => Token | Promise<Token>);
  /**
   * In ms. A connection is tried again after a random time of up to `base` (1,000), which doubles with each failure
   * up to `max` (30,000), and is `base` again once a connection has lasted for `stable` (10,000).
   */
  backoff?: { base?: number; max?: number; stable?: number };
  /** For tests: the time, in ms, and timers. */
  clock?: {
    now?: () => number;
    setTimeout?: (callback: () => void, delay: number) => unknown;
    clearTimeout?: (timer: any) => void;
  };
  /** For tests: returns numbers from 0 to 1. */
  random?: () => number;
  /** For tests: what the events, the page's URL, `navigator` and `reportError()` are taken from. */
  window?: object;
  /** For tests: what to make connections with. */
  WebSocket?: new (url: string, protocols: string[]) => any;
}

/** connecting; open; waiting to connect again; offline, until the browser is online; closed, until `reconnect()`. */
export type State = "connecting" | "open" | "waiting" | "offline" | "closed";

export interface Meta {
  topic: string;
  /** When it was published: RFC 3339 in UTC, with microseconds. */
  timestamp: string;
}

/** What the handlers of the topic `heartbeat` get. */
export interface Heartbeat {
  type: "heartbeat";
  timestamp: string;
  /** The connection's age in whole seconds. */
  uptime_seconds: string;
}

export interface SubscribeOptions {
  /** The server refused, and is asked again only on the next connection. Without this, `reportError()` gets the error. */
  onError?: (error: RealtimeError, about: { topic: string }) => void;
  /** All that is published from now on will arrive. Called anew on each connection: load what may have been missed. */
  onSubscribed?: (about: { topic: string }) => void;
  /** Something published on this topic was lost on the way (for topics that report it). */
  onGap?: (about: { topic: string }) => void;
}

export interface Subscription {
  readonly topic: string;
  /** Let go of the handler; may be called more than once. */
  unsubscribe(): void;
}

export interface RequestOptions {
  /** In ms, for waiting and for the answer together: 10,000 by default; Infinity for no end. */
  timeout?: number;
  signal?: AbortSignal;
}

export interface CloseDetail {
  code: number;
  reason: string;
  willReconnect: boolean;
  /** ms until the next attempt; null when there is none, or none before the browser is online or the page shown. */
  delay: number | null;
}

export interface RealtimeEventMap {
  state: CustomEvent<{ state: State; previous: State }>;
  open: CustomEvent<Record<string, never>>;
  /** The connection ended, or the attempt to make one. */
  close: CustomEvent<CloseDetail>;
  /** Every frame that comes in, parsed. */
  message: CustomEvent<any>;
  /** Every frame that goes out. */
  send: CustomEvent<{ type: string; reqId: string; [field: string]: unknown }>;
}

export interface RealtimeClient extends EventTarget {
  readonly state: State;
  /** Call `handler` with whatever is published on a topic, on this connection and all later ones. */
  subscribe(
    topic: "heartbeat",
    handler: (beat: Heartbeat, meta: Meta) => void,
    options?: SubscribeOptions,
  ): Subscription;
  subscribe<Data = any>(
    topic: string,
    handler: (data: Data, meta: Meta) => void,
    options?: SubscribeOptions,
  ): Subscription;
  /** Send a request, now or when there is a connection; resolves to the answer's `data`, rejects with a RealtimeError. */
  request<Data = any>(type: string, fields?: object, options?: RequestOptions): Promise<Data>;
  /** Resolves to `text`, as the server sends it back. */
  echo(text: string, options?: RequestOptions): Promise<string>;
  /** Connect again after a close that the client stays away after; while it waits, do so now. */
  reconnect(): void;
  /** End the connection for good and let go of all handlers. `code` is 1000 or from 3000 to 4999. */
  close(code?: number, reason?: string): void;

  addEventListener<Type extends keyof RealtimeEventMap>(
    type: Type,
    listener: (event: RealtimeEventMap[Type]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<Type extends keyof RealtimeEventMap>(
    type: Type,
    listener: (event: RealtimeEventMap[Type]) => void,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

/** Connect to the page's site, or to `options.url`: at once, and again and again until `close()`. */
export function connect(options?: ConnectOptions): RealtimeClient;
