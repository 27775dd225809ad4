// A token from the demo's issuer, a session from Vestibule, and on to where someone wanted to go.
const said = document.querySelector("#said");

// A path of this origin, whatever the link says.
const wanted = () => {
  const url = new URL(new URLSearchParams(location.search).get("return") ?? "/", location.origin);
  return url.origin === location.origin ? url.href : "/";
};

const post = async (path, options) => {
  const answer = await fetch(path, { method: "POST", ...options });
  if (!answer.ok) throw new Error(`${path} answered ${answer.status}`);
  return answer.json();
};

const signIn = async (user) => {
  said.textContent = `Signing in as ${user}…`;
  try {
    // Someone else's session must end first.
    await fetch("/.vestibule/session", { method: "DELETE" });
    const { token } = await post("/vestibule-demo/token", { body: JSON.stringify({ user }) });
    await post("/.vestibule/session", { headers: { Authorization: `Bearer ${token}` } });
    location.replace(wanted());
  } catch (problem) {
    said.textContent = `That did not work: ${problem.message}`;
  }
};

for (const button of document.querySelectorAll("[data-user]")) {
  button.addEventListener("click", () => signIn(button.dataset.user));
}
