//! The section of `/status` about the instances that share state, and the differences between them and this one. A
//! session secret that differs causes a login loop; the section shows it.

use std::fmt::Write as _;

use super::duration::shown;
use crate::page::Escaped;
use crate::shared::{Instance, Status};

/// Writes the section, and returns whether the engine cannot be used or the copy is not complete.
pub(super) fn section(body: &mut String, status: &Status) -> bool {
    let is_bad = !(status.is_up && status.is_complete);
    let state = match (status.is_up, status.is_complete) {
        (true, true) => "The engine of the shared state answers.",
        (true, false) => "The first copy of the shared revocations is not complete: credentials get 503.",
        (false, true) => "The engine of the shared state cannot be used; this instance serves by its last copy.",
        (false, false) => "The engine of the shared state cannot be used, and nothing was loaded: credentials get 503.",
    };
    // Writing into a string does not fail.
    let class = if is_bad { " class=\"bad\"" } else { "" };
    let _ = write!(body, "<h2>Instances</h2>\n<p{class}>{state}");
    if let Some(lag) = status.lag {
        let _ = write!(body, " The copy is {} old.", shown(lag));
    }
    if status.queued > 0 {
        let _ = write!(body, " {} revocations and sign-outs wait to be written.", status.queued);
    }
    if let Some(error) = &status.last_error {
        let _ = write!(body, " The last error: {}.", Escaped(error));
    }
    if let Some(refused) = &status.refused {
        let _ = write!(
            body,
            " {} entries in the engine were ignored, the last one {} ago: {}.",
            refused.count,
            shown(refused.at.elapsed()),
            refused.reason
        );
    }
    body.push_str("</p>\n");
    let Some(this) = status.instances.iter().find(|instance| instance.is_this) else { return is_bad };
    body.push_str("<div class=\"wide\"><table><tr><th>instance</th><th>version</th><th>configuration</th><th>last heartbeat</th><th></th></tr>\n");
    for instance in &status.instances {
        let _ = writeln!(
            body,
            "<tr><td>{}</td><td>{}</td><td><code>{}</code></td><td>{} ago</td><td>{}</td></tr>",
            Escaped(&instance.host),
            Escaped(&instance.version),
            Escaped(&instance.config),
            shown(instance.last_heartbeat_ago),
            notes(instance, this).join("; ")
        );
    }
    body.push_str("</table></div>\n");
    is_bad
}

fn notes(instance: &Instance, this: &Instance) -> Vec<&'static str> {
    [
        (instance.is_this, "this one"),
        (
            !instance.is_verified || instance.secret != this.secret,
            "has another shared secret: nothing is shared with it",
        ),
        (instance.session_secret != this.session_secret, "has another session secret: its sessions fail elsewhere"),
        (instance.config != this.config, "has another configuration"),
        (instance.version != this.version, "is another version"),
        (!instance.is_complete, "is not ready: its copy is not complete"),
    ]
    .into_iter()
    .filter_map(|(is_so, note)| is_so.then_some(note))
    .collect()
}
