// The demo's page. What it sends it says itself; the other two columns come from the server.
const $ = (id) => document.getElementById(id);
const state = { user: null, token: null, socket: null, waiting: null };

const NAMES = { browser: "Browser sent", vestibule: "Vestibule did", backend: "Backend saw" };

function tell(column, text) {
  const list = $("story");
  // What the browser sends begins an event; what Vestibule and the backend say of it stands beside it.
  if (column === "browser" || !list.lastChild) {
    const row = document.createElement("li");
    for (const [cell, name] of Object.entries(NAMES)) {
      const part = document.createElement("div");
      part.dataset.column = cell;
      part.dataset.name = name;
      row.append(part);
    }
    list.append(row);
  }
  const line = document.createElement("span");
  line.textContent = text;
  list.lastChild.querySelector(`[data-column="${column}"]`).append(line);
  while (list.children.length > 100) list.firstChild.remove();
  list.scrollTop = list.scrollHeight;
}

/** A token is shown by its ends only, here as everywhere. */
const short = (text) => text.replace(/eyJ[\w.-]+/g, (token) => `${token.slice(0, 6)}…${token.slice(-4)}`);

new EventSource("/demo/events").onmessage = (event) => {
  const { column, text } = JSON.parse(event.data);
  tell(column, text);
};

function verdict(sentence, configuration) {
  const box = $("verdict");
  box.hidden = false;
  box.textContent = sentence;
  const code = document.createElement("code");
  code.textContent = configuration;
  box.append(code);
}

async function signIn(user, ttl = 60) {
  const answer = await fetch("/demo/sign-in", { method: "POST", body: JSON.stringify({ user, ttl }) });
  if (!answer.ok) throw new Error(`the issuer answered ${answer.status}`);
  return (await answer.json()).token;
}

function say(text) {
  tell("browser", `message: ${short(text)}`);
  state.socket.send(text);
}

/** Waits for the next message or close that fits. */
function next(fits) {
  return new Promise((resolve) => {
    state.waiting = (event) => {
      if (!fits(event)) return;
      state.waiting = null;
      resolve(event);
    };
  });
}

function open(path, first) {
  state.socket?.close();
  tell("browser", `socket ${short(path)}`);
  const socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}${path}`);
  state.socket = socket;
  socket.onopen = () => first && say(first);
  socket.onmessage = (event) => {
    if (socket !== state.socket) return;
    const message = JSON.parse(event.data);
    if (message.type === "authenticated") shown(`Signed in as ${message.user_id}; the token ends in ${message.expires_in} s.`);
    if (message.type === "auth_refreshed") shown(`Signed in as ${state.user}; the token ends in ${message.expires_in} s.`);
    if (message.type === "output") $("output").textContent = message.error ?? message.value;
    state.waiting?.(message);
  };
  socket.onclose = (event) => {
    if (socket !== state.socket) return;
    shown(`The socket is closed: ${event.code} ${event.reason}`);
    state.waiting?.({ type: "close", code: event.code, reason: event.reason });
  };
}

function shown(text) {
  $("state").textContent = text;
}

const authenticate = () => JSON.stringify({ type: "authenticate", token: state.token });

async function enter(user) {
  state.user = user;
  state.token = await signIn(user);
  $("door").hidden = true;
  $("cell").hidden = false;
  $("verdict").hidden = true;
  $("output").textContent = "";
  open("/ws", authenticate());
}

async function reopened() {
  if (state.socket?.readyState === WebSocket.OPEN) return;
  state.token = await signIn(state.user);
  open("/ws", authenticate());
  await next((event) => event.type === "authenticated");
}

const tries = {
  async refresh() {
    await reopened();
    state.token = await signIn(state.user);
    say(JSON.stringify({ type: "refresh_auth", token: state.token }));
    const answer = await next((event) => event.type !== "output");
    verdict(
      answer.type === "auth_refreshed"
        ? `The socket stayed open and its end moved to ${answer.expires_in} s from now; the backend saw nothing of it.`
        : `The refresh was refused: ${answer.message ?? answer.reason}`,
      "websocket: { dialect: vestibule }",
    );
  },
  async expire() {
    state.token = await signIn(state.user, 1);
    open("/ws", authenticate());
    shown("Waiting for a token of one second to end, five seconds of clock skew included…");
    const end = await next((event) => event.type === "close");
    verdict(`Its token ended and nobody refreshed it, so the socket was closed with ${end.code} ${end.reason}.`, "websocket: { on_expiry: close, grace: 2s }");
  },
  async forge() {
    state.token = await signIn(state.user);
    tell("browser", "GET /api/whoami with X-User-Id: mallory, x_user_id: mallory");
    const headers = { Authorization: `Bearer ${state.token}`, "X-User-Id": "mallory", x_user_id: "mallory" };
    const answer = await fetch("/api/whoami", { headers });
    const name = (await answer.text()).trim();
    verdict(`The forged names were taken out; the backend saw exactly one user: ${name}.`, "identity: { headers: { X-User-Id: sub } }");
  },
  async url() {
    state.token = await signIn(state.user);
    open(`/ws?token=${state.token}&cell=1`);
    await new Promise((resolve) => (state.socket.onopen = resolve));
    $("code").value = "1 + 1";
    say(JSON.stringify({ cell: $("code").value }));
    await next((event) => event.type === "output");
    shown(`Signed in as ${state.user}.`);
    verdict("The token was moved out of the URL before anything logged or forwarded it: the backend saw /ws?cell=1.", "token_from: { query: { name: token, mode: move } }   # mode: deny refuses it");
  },
  async stop() {
    await reopened();
    const lost = next((event) => event.type === "close");
    await fetch("/demo/stop", { method: "POST" });
    const end = await lost;
    tell("browser", "GET /api/whoami");
    const answer = await fetch("/api/whoami", { headers: { Authorization: `Bearer ${state.token}` } });
    verdict(`The backend went away: the socket was closed with ${end.code} ${end.reason}, and a request got ${answer.status}. It is back in a few seconds.`, "upstream: { url: …, connect_timeout: 5s }");
  },
  async out() {
    const socket = state.socket;
    state.socket = null;
    socket?.close(1000);
    state.token = null;
    $("cell").hidden = true;
    $("door").hidden = false;
  },
};

$("door").addEventListener("click", (event) => event.target.dataset.user && enter(event.target.dataset.user).catch((error) => shown(String(error))));

// A result stands beside the text that it is of.
$("code").addEventListener("input", () => ($("output").textContent = ""));

$("run").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("output").textContent = "";
  await reopened();
  say(JSON.stringify({ cell: $("code").value }));
});

$("tries").addEventListener("click", async (event) => {
  const name = event.target.dataset.try;
  if (!name) return;
  const buttons = [...$("tries").querySelectorAll("button")];
  buttons.forEach((button) => (button.disabled = true));
  $("output").textContent = "";
  try {
    await tries[name]();
  } catch (error) {
    verdict(`That did not work: ${error.message}`, "");
  } finally {
    buttons.forEach((button) => (button.disabled = false));
  }
});
