// An agent chat: it connects when its page loads, and speaks, with its token in each message, when its user does. Its effect
// closes nothing, so that Strict Mode leaves a second socket behind.
import { StrictMode, createElement, useEffect, useRef, useState } from 'react';
import { createRoot } from 'react-dom/client';

function Chat() {
  const [lines, setLines] = useState([]);
  const [problem, setProblem] = useState('');
  const socket = useRef(null);
  useEffect(() => {
    const connect = () => {
      const it = new WebSocket(`ws://${location.host}/chat`);
      socket.current = it;
      it.onmessage = ({ data }) => {
        const said = JSON.parse(data);
        if (said.type === 'error') setProblem(said.message);
        else setLines((before) => [...before, said.answer]);
      };
      it.onclose = ({ code }) => {
        window.closes.push(code);
        if (code !== 1000 && code !== 1008) setTimeout(connect, 1_000);
      };
    };
    connect();
  }, []);
  window.ask = (prompt) => socket.current.send(JSON.stringify({ prompt, auth_token: window.token }));
  return createElement('main', null,
    createElement('h1', null, 'Chat'),
    createElement('p', { id: 'problem' }, problem),
    createElement('ul', { id: 'lines' }, lines.map((line, n) => createElement('li', { key: n }, line))));
}

window.closes = [];
createRoot(document.getElementById('root')).render(createElement(StrictMode, null, createElement(Chat)));
