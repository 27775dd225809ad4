/** Why a token is asked for. */
export interface TokenRequest {
  /** Not the one at hand: it was refused, or ends soon. */
  skipCache: boolean;
  reason: 'request' | 'refused' | 'expiring';
}

export interface AuthOptions {
  /**
   * The provider's token. `null`: nobody is signed in, or the provider still loads. `undefined`, or throwing: no answer now, and it is asked
   * again.
   */
  getToken(request: TokenRequest): Promise<string | null | undefined> | string | null | undefined;
  /** Exactly these get a token; default: the page's own. */
  origins?: string[];
  /** Which WebSockets of those origins speak the handshake; default: all. Where not, the platform's own, untouched. */
  sockets?: boolean | ((url: URL) => boolean);
  /** A fresh token was refused too. */
  onSignedOut?(): void;
  /** 503: nobody was signed out. */
  onUnavailable?(): void;
  /** Whether sockets come back by themselves; default: no. Leave it off beside a library that reconnects. */
  reconnect?: boolean;
  /** Milliseconds that a call waits for a first token; default 10 000. */
  wait?: number;
}

/** `fetch` and `WebSocket` show who you are from now on; returns what undoes this call. */
export function installAuth(options: AuthOptions): () => void;

/** For libraries that take a constructor. */
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
