// A notebook's front end with a handshake of its own: it comes back on every close code but 1000 and 1008, with the token
// that it holds, and sends nothing before the server has said `authenticated`.
import { createElement, useEffect, useRef, useState } from 'react';
import { createRoot } from 'react-dom/client';

function useNotebook(url, token) {
  const [state, setState] = useState('connecting');
  const [cells, setCells] = useState([]);
  const socket = useRef(null);
  const queue = useRef([]);
  useEffect(() => {
    let [isMounted, timer] = [true, undefined];
    const connect = () => {
      const it = new WebSocket(url);
      let isAuthenticated = false;
      socket.current = (text) => (isAuthenticated ? it.send(text) : queue.current.push(text));
      it.onopen = () => it.send(JSON.stringify({ type: 'authenticate', token }));
      it.onmessage = ({ data }) => {
        const said = JSON.parse(data);
        if (said.type === 'authenticated') {
          isAuthenticated = true;
          setState('ready');
          queue.current.splice(0).forEach((text) => it.send(text));
        } else if (said.type === 'error') {
          setState(said.message);
        } else {
          setCells((before) => [...before, said.cell]);
        }
      };
      it.onclose = ({ code }) => {
        window.closes.push(code);
        if (!isMounted) return;
        socket.current = (text) => queue.current.push(text);
        if (code === 1008) setState('Please sign in again');
        else if (code !== 1000) {
          setState('reconnecting');
          timer = setTimeout(connect, 1_000);
        }
      };
    };
    connect();
    return () => {
      isMounted = false;
      clearTimeout(timer);
    };
  }, [url, token]);
  return { state, cells, run: (cell) => socket.current(JSON.stringify({ cell })) };
}

function Notebook() {
  const { state, cells, run } = useNotebook(`ws://${location.host}/notebook`, window.token);
  window.run = run;
  return createElement('main', null,
    createElement('p', { id: 'state' }, state),
    createElement('ol', { id: 'cells' }, cells.map((cell, n) => createElement('li', { key: n }, cell))));
}

window.closes = [];
const start = () => createRoot(document.getElementById('root')).render(createElement(Notebook));
if (!window.mint) start();
else {
  const { installAuth } = await import('vestibule-client');
  installAuth({ getToken: () => window.mint() });
  start();
}
