const [button, outcome, again] = ['sign-out', 'outcome', 'again'].map((id) => document.getElementById(id));
button.hidden = false;
button.addEventListener('click', async () => {
  button.disabled = true;
  let ended = false;
  try {
    ended = (await fetch('/.vestibule/session', { method: 'DELETE' })).ok;
  } catch {
    // Told below.
  }
  button.disabled = false;
  button.hidden = ended;
  again.hidden = !ended;
  outcome.textContent = ended ? 'You are signed out.' : 'Signing out failed. Try again in a moment.';
  if (ended) again.firstChild.focus();
});
