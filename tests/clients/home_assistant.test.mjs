// home-assistant-js-websocket as it comes from its package, with the example of docs/dialects.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { WebSocket } from 'ws';
import { example, queue, startFixture } from './fixture.mjs';

globalThis.WebSocket = WebSocket;
const { Auth, createConnection, ERR_INVALID_AUTH } = await import('home-assistant-js-websocket');

async function served(t) {
  const messages = [];
  const here = await startFixture(t, example('home-assistant'), (socket, request) => {
    socket.on('message', (data) => {
      const list = [JSON.parse(String(data))].flat();
      messages.push(...list);
      for (const message of list) {
        if (message.type === 'ping') socket.send(JSON.stringify({ id: message.id, type: 'pong' }));
        else if (message.id) socket.send(JSON.stringify({ id: message.id, type: 'result', success: true, result: request.headers['x-user-id'] }));
      }
    });
  });
  return { ...here, messages };
}

class OurAuth extends Auth {
  constructor(here, fresh) {
    super({ hassUrl: here.url.replace('ws:', 'http:'), clientId: null, expires: Date.now() + 1e6, access_token: '', refresh_token: '', expires_in: 1e3 });
    this.fresh = fresh;
  }
  get accessToken() {
    return this.fresh();
  }
  async refreshAccessToken() {}
}

test('it is greeted, authenticates and calls as the verified user', async (t) => {
  const here = await served(t);
  const connection = await createConnection({ auth: new OurAuth(here, () => here.token('alice')) });
  assert.equal(await connection.sendMessagePromise({ type: 'whoami' }), 'alice');
  await connection.ping();
  assert(!JSON.stringify(here.messages).match(/eyJ|access_token/));
  here.assertNoTokenLeaked();
  connection.close();
});

test('a refused token is its own invalid auth', async (t) => {
  const here = await served(t);
  const auth = new OurAuth(here, () => here.expired('alice'));
  assert.equal(await createConnection({ auth }).then(assert.fail, (error) => error), ERR_INVALID_AUTH);
  assert.equal(here.seen.length, 0);
});

test('when its token ends it comes back by itself with a fresh one', async (t) => {
  const here = await served(t);
  let asked = 0;
  const auth = new OurAuth(here, () => (asked++ === 0 ? here.nearlyExpired('alice') : here.token('alice')));
  const connection = await createConnection({ auth });
  const ready = queue();
  connection.addEventListener('ready', () => ready.push());
  await ready.next('the second connection');
  assert.equal(await connection.sendMessagePromise({ type: 'whoami' }), 'alice');
  assert.equal(here.seen.length, 2);
  connection.close();
});
