// react-use-websocket beside client.js, with every reconnecting option on.
import { createElement, useState } from 'react';
import { createRoot } from 'react-dom/client';
import hook from 'react-use-websocket';
import { installAuth } from 'vestibule-client';

const useWebSocket = hook.default ?? hook;
window.events = [];

function App() {
  const [isShown, show] = useState(true);
  window.hide = () => show(false);
  return isShown && createElement(Socket);
}

function Socket() {
  const note = (text) => window.events.push(text);
  const { sendMessage, lastMessage } = useWebSocket(`ws://${location.host}/hook`, {
    onOpen: () => note('open'),
    onError: () => note('error'),
    onClose: ({ code }) => note(code),
    shouldReconnect: () => true,
    retryOnError: true,
    reconnectInterval: 500,
    reconnectAttempts: 1_000,
  });
  window.say = sendMessage;
  return createElement('p', { id: 'last' }, lastMessage?.data ?? '');
}

const { getToken, ...options } = window.options;
installAuth({ ...options, getToken: () => (getToken ? window.mint() : null) });
createRoot(document.getElementById('root')).render(createElement(App));
