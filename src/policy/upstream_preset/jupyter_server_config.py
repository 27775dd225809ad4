"""JupyterLab behind Vestibule: users have their own names, and kernels cannot read the server's token.

X-User-Id is believed only beside the token, which Vestibule adds for verified callers (upstream.credential).
"""

import ctypes
import hmac
import os

from jupyter_server.auth.identity import IdentityProvider, User

PR_SET_DUMPABLE = 4

# Kernels do not inherit what is taken out of the environment here.
secret = os.environ.pop("JUPYTER_TOKEN")
# Kernels run as the same user as this server. After this call they can read neither its first environment
# (/proc/1/environ) nor its memory.
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
    raise OSError(ctypes.get_errno(), "prctl")


class Vestibule(IdentityProvider):
    auth_enabled = True

    async def get_user(self, handler):
        sent = handler.request.headers.get("Authorization", "")
        name = handler.request.headers.get("X-User-Id")
        if not name or not hmac.compare_digest(sent.encode(), f"token {secret}".encode()):
            return None
        handler._token_authenticated = True
        return User(username=name, name=name, display_name=name)


c.ServerApp.identity_provider_class = Vestibule  # noqa: F821
c.IdentityProvider.token = ""  # noqa: F821
