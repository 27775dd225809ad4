//! Tests the state that instances share: a made-up session is revoked, and every running instance has to report that it
//! applied the revocation.

use std::time::Duration;

use super::{Line, Outcome, Target, random_user};
use crate::auth::digest::DigestKeys;
use crate::auth::{RevocationTarget, Revocations};
use crate::shared::{Written, write_entry};

/// The time for which the made-up session is revoked.
const KEEP: Duration = Duration::from_secs(60);

/// Runs the check where `shared` is configured.
pub(super) async fn run_checks(target: &Target<'_>) -> Option<Line> {
    let spec = target.policy.shared.as_ref()?;
    let limits = &target.policy.limits;
    let made_up = RevocationTarget::Session(random_user().ok()?);
    let revocations = Revocations::with_keys(DigestKeys::derived(&spec.secrets, &spec.name)?);
    let entry = |now| revocations.entry_of("vestibule doctor", &made_up, now, KEEP);
    let outcome = match write_entry(spec, limits.shared_entries(), entry).await {
        Ok(Written { live: 0, .. }) => Outcome::Failed(
            "the engine answers, and no running instance shares through it with this name and secret".to_owned(),
        ),
        Ok(Written { taken, live }) if taken < live => Outcome::Failed(format!(
            "{taken} of {live} running instances have taken a revocation of a made-up session within 2 s; /status of the others says why"
        )),
        Ok(Written { live, .. }) => {
            Outcome::Passed(format!("all {live} running instances have taken a revocation of a made-up session"))
        }
        Err(error) => Outcome::Failed(format!("{error}; what is revoked at one instance is not at the others")),
    };
    Some(("shared".to_owned(), outcome))
}
