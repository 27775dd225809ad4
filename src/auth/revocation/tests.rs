//! Tests of revocations.

use super::*;

const KEEP: Duration = Duration::from_secs(60);

fn example_keys(of: &Revocations, issued_at: Option<u64>) -> RevocationKeys {
    let key = |target| of.key(0, "https://i", &target);
    RevocationKeys {
        user: key(RevocationTarget::User("alice".into())),
        subject: None,
        session: Some(key(RevocationTarget::Session("s".into()))),
        token: Some(key(RevocationTarget::Token("t".into()))),
        browser_session: None,
        issued_at,
        clock_skew: 5,
        former: None,
    }
}

fn revoke(revocations: &Revocations, issuer: &str, target: &RevocationTarget) {
    let revoked = revocations.revoke(issuer, target, 100, KEEP, 10).expect("room");
    revoked.save().expect("no file to fail");
}

#[test]
fn a_user_s_tokens_until_now_and_none_issued_later() {
    let revocations = Revocations::default();
    assert_eq!(revocations.revoked(&example_keys(&revocations, Some(100)), 100), None);
    revoke(&revocations, "https://i", &RevocationTarget::User("alice".into()));
    for (issued_at, expected) in [
        (Some(90), Some("sub")),
        (Some(100), Some("sub")),
        (Some(105), Some("sub")),
        (Some(106), None),
        (None, Some("sub")),
    ] {
        assert_eq!(revocations.revoked(&example_keys(&revocations, issued_at), 101), expected, "{issued_at:?}");
    }
    assert_eq!(revocations.revoked(&example_keys(&revocations, Some(90)), 160), None, "kept no longer than promised");
}

#[test]
fn a_clock_that_was_set_back_takes_nothing_back() {
    let revocations = Revocations::default();
    let alice = RevocationTarget::User("alice".into());
    revoke(&revocations, "https://i", &alice);
    let again = revocations.revoke("https://i", &alice, 50, KEEP, 10).expect("room");
    again.save().expect("no file to fail");
    assert_eq!(revocations.revoked(&example_keys(&revocations, Some(100)), 150), Some("sub"));
}

#[test]
fn a_session_and_a_token_whenever_they_were_issued_and_of_their_issuer_only() {
    let revocations = Revocations::default();
    revoke(&revocations, "https://other", &RevocationTarget::Session("s".into()));
    revoke(&revocations, "https://i", &RevocationTarget::User("s".into()));
    assert_eq!(revocations.revoked(&example_keys(&revocations, Some(90)), 101), None);
    revoke(&revocations, "https://i", &RevocationTarget::Token("t".into()));
    assert_eq!(revocations.revoked(&example_keys(&revocations, Some(900)), 101), Some("jti"));
    revoke(&revocations, "https://i", &RevocationTarget::Session("s".into()));
    assert_eq!(revocations.revoked(&example_keys(&revocations, Some(900)), 101), Some("sid"));
}

#[test]
fn when_full_nothing_is_forgotten_and_the_over_make_room() {
    let revocations = Revocations::default();
    let revoke = |id: &str, now| revocations.revoke("https://i", &RevocationTarget::Session(id.into()), now, KEEP, 2);
    assert!(revoke("a", 100).is_ok() && revoke("b", 110).is_ok());
    assert!(revoke("c", 120).is_err());
    assert!(revoke("a", 120).is_ok(), "one that is in force needs no room");
    assert!(revoke("c", 171).is_ok(), "b is over");
    assert!(revoke("d", 171).is_err());
}
