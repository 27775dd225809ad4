// phoenix.js and Supabase's realtime-js as they come from their packages, with the example of docs/dialects. A
// Phoenix server is no package of any of our registries: the upstream answers its protocol as documented.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RealtimeClient } from '@supabase/realtime-js';
import { Socket } from 'phoenix';
import { WebSocket } from 'ws';
import { example, queue, startFixture, within } from './fixture.mjs';

async function served(t) {
  const messages = [];
  const here = await startFixture(t, example('phoenix'), (socket, request) => {
    socket.on('message', (data) => {
      // Binary frames are pushes of serializer 2.0.0: kind, four lengths, then the parts.
      if (data[0] === 3) {
        const [, join, reference, topic] = data;
        const part = (from, length) => String(data.subarray(from, from + length));
        const [joined, referred] = [part(7, join), part(7 + join, reference)];
        const reply = { status: 'ok', response: {} };
        return socket.send(JSON.stringify([joined, referred, part(7 + join + reference, topic), 'phx_reply', reply]));
      }
      const message = JSON.parse(String(data));
      messages.push(message);
      if (!Array.isArray(message)) {
        const payload = { status: 'ok', response: {} };
        return socket.send(JSON.stringify({ ...message, event: 'phx_reply', payload }));
      }
      const [join, reference, topic, event, payload] = message;
      const response = event === 'phx_join' ? { user: request.headers['x-user-id'] } : { echo: payload };
      socket.send(JSON.stringify([join, reference, topic, 'phx_reply', { status: 'ok', response }]));
    });
  });
  return { ...here, messages };
}

const reply = (push, what) =>
  within(what, new Promise((resolve) => {
    push.receive('ok', (value) => resolve({ ok: value })).receive('error', (value) => resolve({ error: value }));
  }));

test('phoenix: the token comes with the first join and goes no further', async (t) => {
  const here = await served(t);
  const socket = new Socket(`${here.url}/socket`, { transport: WebSocket });
  t.after(() => socket.disconnect());
  socket.connect();
  const room = socket.channel('room:lobby', () => ({ token: here.token('alice'), lang: 'de' }));
  assert.deepEqual(await reply(room.join(), 'the join'), { ok: { user: 'alice' } });
  assert.deepEqual(await reply(room.push('shout', { n: 1 }), 'a push'), { ok: { echo: { n: 1 } } });
  // A second channel needs no token.
  const other = socket.channel('room:other', { lang: 'fr' });
  assert.deepEqual(await reply(other.join(), 'the second join'), { ok: { user: 'alice' } });
  // A heartbeat by hand: with a short interval a busy machine would be taken for a dead server.
  await within('the answer to a heartbeat', new Promise((resolve) => assert(socket.ping(resolve))));
  const joins = here.messages.filter(([, , , event]) => event === 'phx_join').map(([, , , , payload]) => payload);
  assert.deepEqual(joins, [{ lang: 'de' }, { lang: 'fr' }]);
  assert(!here.messages.some(([, , topic]) => topic === 'phoenix'), 'heartbeats are answered on the way');
  here.assertNoTokenLeaked();
  socket.disconnect();
});

test('phoenix: heartbeats before the first join keep it waiting, a refused join says so', async (t) => {
  const here = await served(t);
  const socket = new Socket(`${here.url}/socket`, { transport: WebSocket });
  const opened = queue();
  socket.onOpen(() => opened.push());
  socket.connect();
  await opened.next('the socket');
  socket.sendHeartbeat();
  const room = socket.channel('room:lobby', { token: here.expired('alice') });
  assert.deepEqual(await reply(room.join(), 'the join'), { error: { reason: 'Token has expired' } });
  assert.equal(here.seen.length, 0, 'the upstream was not touched');
  socket.disconnect();
});

test('phoenix: authToken comes in a subprotocol, and a token that ends brings it back with a fresh one', async (t) => {
  const here = await served(t);
  let asked = 0;
  const socket = new Socket(`${here.url}/socket`, {
    transport: WebSocket,
    authToken: () => (asked++ === 0 ? here.nearlyExpired('alice') : here.token('alice')),
    reconnectAfterMs: () => 50,
    rejoinAfterMs: () => 50,
  });
  const closed = queue();
  socket.onClose(({ code }) => closed.push(code));
  socket.connect();
  const joined = queue();
  const room = socket.channel('room:lobby', {});
  room.join().receive('ok', (value) => joined.push(value));
  assert.deepEqual(await joined.next('the join'), { user: 'alice' });
  assert.equal(await closed.next('the end of its token'), 4401);
  assert.deepEqual(await joined.next('the rejoin'), { user: 'alice' });
  assert.equal(here.seen.length, 2);
  here.assertNoTokenLeaked();
  socket.disconnect();
});

for (const [vsn, path] of [
  ['2.0.0', 'realtime/v1'],
  ['1.0.0', 'realtime/v1/objects'],
]) {
  test(`supabase realtime, serializer ${vsn}: joins with accessToken and renews it while it is open`, async (t) => {
    const here = await served(t);
    const client = new RealtimeClient(`${here.url}/${path}`, {
      params: { apikey: 'anon' },
      vsn,
      transport: WebSocket,
      accessToken: async () => here.token('alice'),
    });
    await client.setAuth();
    const statuses = queue();
    const channel = client.channel('room', { config: { broadcast: { ack: true } } });
    channel.subscribe((status) => statuses.push(status));
    assert.equal(await statuses.next('a status'), 'SUBSCRIBED');
    await client.setAuth(here.token('alice', { jti: 'newer' }));
    assert.equal(await channel.send({ type: 'broadcast', event: 'x', payload: { n: 1 } }), 'ok');
    assert(!JSON.stringify(here.messages).includes('eyJ'), JSON.stringify(here.messages));
    await client.disconnect();
  });
}
