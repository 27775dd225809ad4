/** The reason why a token is requested. */
export interface TokenRequest {
  /** If true, the provider's cached token must not be used: it was refused, or ends soon. */
  skipCache: boolean;
  /** `request`: a request or a socket needs a token; `refused`: the last token was refused; `expiring`: a socket renews. */
  reason: 'request' | 'refused' | 'expiring';
}

export interface AuthOptions {
  /**
   * Returns the token of your provider. `null`: nobody is signed in, or the provider still loads. `undefined`, or throwing: there is no answer
   * now, and it is called again.
   */
  getToken(request: TokenRequest): Promise<string | null | undefined> | string | null | undefined;
  /** Exactly these origins get the token; default: the page's own. */
  origins?: string[];
  /** The WebSockets of those origins that authenticate by the handshake; default: all. Others are the browser's own, unchanged. */
  sockets?: boolean | ((url: URL) => boolean);
  /** Called when a fresh token of a socket is refused too. A refused `fetch` returns its 401 instead. */
  onSignedOut?(): void;
  /** Called when a `fetch` gets 503: a token cannot be checked now, and nobody was signed out. */
  onUnavailable?(): void;
  /** If true, sockets reconnect by themselves; default: false. Leave it off if a library reconnects. */
  reconnect?: boolean;
  /** A call waits this many milliseconds for a first token; default: 10 000. */
  wait?: number;
}

/** Makes `fetch` and `WebSocket` carry the token. Returns a function that undoes this call. */
export function installAuth(options: AuthOptions): () => void;

/** A `WebSocket` that carries the token, for libraries that take a constructor. */
export class AuthenticatedWebSocket extends EventTarget implements WebSocket {
  constructor(url: string | URL, protocols?: string | string[]);
  static readonly CONNECTING: 0;
  static readonly OPEN: 1;
  static readonly CLOSING: 2;
  static readonly CLOSED: 3;
  readonly CONNECTING: 0;
  readonly OPEN: 1;
  readonly CLOSING: 2;
  readonly CLOSED: 3;
  readonly url: string;
  readonly readyState: 0 | 1 | 2 | 3;
  readonly protocol: string;
  readonly extensions: string;
  readonly bufferedAmount: number;
  binaryType: BinaryType;
  onopen: ((this: WebSocket, event: Event) => unknown) | null;
  onmessage: ((this: WebSocket, event: MessageEvent) => unknown) | null;
  onerror: ((this: WebSocket, event: Event) => unknown) | null;
  onclose: ((this: WebSocket, event: CloseEvent) => unknown) | null;
  send(data: string | ArrayBufferLike | Blob | ArrayBufferView): void;
  close(code?: number, reason?: string): void;
  addEventListener<K extends keyof WebSocketEventMap>(
    type: K,
    listener: (this: WebSocket, event: WebSocketEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | AddEventListenerOptions): void;
  removeEventListener<K extends keyof WebSocketEventMap>(
    type: K,
    listener: (this: WebSocket, event: WebSocketEventMap[K]) => unknown,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(type: string, listener: EventListenerOrEventListenerObject | null, options?: boolean | EventListenerOptions): void;
}
