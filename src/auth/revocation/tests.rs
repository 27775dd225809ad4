//! Tests of revocations.

use std::path::PathBuf;

use super::*;
use crate::auth::identity::{Expiry, VerifiedBy};
use crate::auth::kind::TokenKindHeader;
use crate::auth::{BrowserSession, KeyFingerprint, SessionScope};

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
        authenticated_at: None,
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
fn a_session_of_the_provider_until_its_user_authenticates_again() {
    let revocations = Revocations::default();
    let session = RevocationTarget::Session("s".into());
    let by = |authenticated_at, now| {
        // An ID token is issued anew within the same session, so its `iat` says nothing.
        let keys = RevocationKeys { authenticated_at, ..example_keys(&revocations, Some(900)) };
        revocations.revoked(&keys, now)
    };
    assert_eq!(by(None, 100), None);
    revoke(&revocations, "https://i", &session);
    for (authenticated_at, expected) in [
        (None, Some("sid")),
        (Some(0), Some("sid")),
        (Some(100), Some("sid")),
        (Some(105), Some("sid")),
        (Some(106), None),
    ] {
        assert_eq!(by(authenticated_at, 101), expected, "{authenticated_at:?}");
    }
    // A revocation that comes later, here or from another instance, covers what was newer than the former one.
    revocations.revoke("https://i", &session, 120, KEEP, 10).expect("room").save().expect("no file to fail");
    assert_eq!((by(Some(125), 130), by(Some(126), 130)), (Some("sid"), None));
    let key = revocations.key(0, "https://i", &session);
    let entry = |at: u64| RevokedAt { at, until: 200 }.entry(key);
    assert!(revocations.merge(&entry(140), 130));
    assert_eq!((by(Some(145), 150), by(Some(146), 150)), (Some("sid"), None));
    assert!(!revocations.merge(&entry(90), 130), "an older one takes nothing back");
    assert_eq!(by(Some(145), 150), Some("sid"));
    assert!(revocations.merge(&entry(u64::MAX), 150));
    assert_eq!(by(Some(u64::MAX / 2_000), 151), Some("sid"));
}

#[test]
fn a_later_authentication_counts_for_login_sessions_alone_and_under_each_secret() {
    let text = "{upstream: 'http://127.0.0.1:1', public_url: 'https://nb.example.com', providers: [{preset: oidc, issuer: 'https://i', audience: api}], browser: {login: {client_id: a}}}";
    let policy = crate::policy::validate(&crate::config::load_yaml(text).expect("loads").config).expect("valid");
    let (bearer, login) = (&policy.providers[0], &policy.browser.logins[0].provider_spec);
    let identity = |provider: &Arc<ProviderSpec>| {
        let claims =
            serde_json::json!({ "iss": "https://i", "sub": "alice", "sid": "s", "iat": 900, "auth_time": 900 });
        let Value::Object(claims) = claims else { unreachable!() };
        let by = VerifiedBy::Provider(KeyFingerprint::default());
        let kind = TokenKindHeader::default();
        Identity::new(Arc::clone(provider), "alice".into(), claims, Expiry::At(2_000), by, kind)
    };
    let session = |authenticated_at| BrowserSession {
        id: "a".into(),
        owner: "b".into(),
        browser: None,
        began: 0,
        last_end: 2_000,
        authenticated_at,
        key: KeyFingerprint::default(),
        cookie_times: None,
    };
    let secrets = [&b"new"[..], b"former"].map(crate::policy::Secret::for_tests);
    for revoked_under in [0, 1] {
        let revocations = Revocations::with_keys(DigestKeys::derived(&secrets, "test").expect("keys"));
        let target = RevocationTarget::Session("s".into());
        let key = revocations.key(revoked_under, "https://i", &target);
        assert!(revocations.merge(&RevokedAt { at: 100, until: 1_000 }.entry(key), 100));
        let is_revoked = |identity: &Identity| revocations.check(identity, 950).is_err();
        assert!(is_revoked(&identity(login)), "the claim alone decides nothing");
        assert!(!is_revoked(&identity(login).authenticated(Some(900))));
        assert!(is_revoked(&identity(login).authenticated(Some(100))));
        assert!(!is_revoked(&identity(login).in_session(Some(session(Some(900))))));
        assert!(is_revoked(&identity(login).in_session(Some(session(None)))));
        // The session decides, whatever a renewal said.
        assert!(is_revoked(&identity(login).authenticated(Some(900)).in_session(Some(session(Some(100))))));
        assert!(is_revoked(&identity(bearer).authenticated(Some(900))));
        assert!(is_revoked(&identity(bearer).in_session(Some(session(Some(900))))));
    }
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

#[test]
fn entries_of_other_instances_load_beyond_the_limit_and_go_when_they_have_expired() {
    let revocations = Revocations::default();
    let entry = |kind, key: u8, until| {
        let key = RevocationKey(crate::auth::digest::Digest([key; 16]));
        let owner = if kind == EntryKind::Revocation { RevocationKey::default() } else { key };
        SharedEntry { kind, owner, key, at: 100_000, until }
    };
    let limit = 2;
    for (key, until) in [(1, 150), (2, 150), (3, 300)] {
        for kind in [EntryKind::Revocation, EntryKind::SignOut] {
            assert!(revocations.merge(&entry(kind, key, until), 100));
        }
    }
    let all_sessions = SharedEntry { key: RevocationKey::default(), ..entry(EntryKind::AllSessions, 4, 160) };
    assert!(revocations.merge(&all_sessions, 100));
    assert_eq!((revocations.count(), revocations.sign_outs()), (3, 4));
    let revoke = |now| revocations.revoke("https://i", &RevocationTarget::Session("s".into()), now, KEEP, limit);
    assert!(revoke(100).is_err(), "a new one has no room");
    for (now, left) in [(149, (3, 4)), (150, (1, 2)), (160, (1, 1)), (299, (1, 1)), (300, (0, 0))] {
        revocations.remove_expired(now);
        assert_eq!((revocations.count(), revocations.sign_outs()), left, "{now}");
    }
    assert!(revoke(300).is_ok());
    assert!(!revocations.merge(&entry(EntryKind::Revocation, 1, 150), 300), "it has expired");
    revocations.remove_expired(300 + KEEP.as_secs());
    assert_eq!(revocations.count(), 0, "one of its own too");
}

/// A file with revocations that the test removes.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("vestibule-sign-outs-{name}-{}", std::process::id())))
    }

    fn attached(&self) -> Revocations {
        let revocations = Revocations::default();
        revocations.attach_file(&self.0, 10, 100).expect("opens");
        revocations
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for path in [self.0.clone(), self.0.with_extension("lock")] {
            let _ = std::fs::remove_file(path);
        }
    }
}

const LIMITS: SignOutLimits = SignOutLimits { all: 10, per_user: 3 };

fn browser_session(id: &str, browser: Option<&str>) -> BrowserSession {
    BrowserSession {
        id: id.into(),
        owner: "alice".into(),
        browser: browser.map(Arc::from),
        began: 50_000,
        last_end: 1_000,
        authenticated_at: None,
        key: KeyFingerprint::of(&[b"key"]),
        cookie_times: None,
    }
}

/// A publisher that keeps what it is given.
#[derive(Default)]
struct Published(Arc<Mutex<Vec<SharedEntry>>>);

impl Publish for Published {
    fn publish(&self, added: SharedEntry, removed: &[SharedEntry]) -> oneshot::Receiver<()> {
        assert_eq!(removed, [], "nothing is replaced");
        self.0.lock().expect("lock").push(added);
        oneshot::channel().1
    }
}

/// Earlier versions know a session by its own id alone: those at other instances, and one that reads the file after a
/// downgrade.
#[test]
fn a_sign_out_of_a_browser_ends_its_session_for_earlier_versions_too() {
    let file = Scratch::new("earlier");
    let revocations = file.attached();
    let published = Published::default();
    let entries = Arc::clone(&published.0);
    revocations.publish_by(Box::new(published));
    let (session, other) = (browser_session("one", Some("tabs")), browser_session("two", Some("tabs")));
    let ended = revocations.end_session(&session, SessionScope::Browser, 100_000, 1_000, LIMITS).expect("room");
    ended.save().expect("saved");
    assert_eq!(revocations.sign_outs(), 1);
    let received = Revocations { digests: Arc::clone(revocations.digests()), ..Revocations::default() };
    for entry in entries.lock().expect("lock").iter() {
        assert_eq!(entry.kind, EntryKind::SignOut);
        assert!(received.merge(entry, 100));
    }
    for known in [&revocations, &received, &file.attached()] {
        assert_eq!((known.sign_outs(), known.live(100).len()), (1, 2));
        assert!(known.is_ended(&session, 100) && known.is_ended(&other, 100));
        assert!(known.is_ended(&browser_session("one", None), 100), "as an earlier version sees it");
        assert!(!known.is_ended(&browser_session("two", None), 100));
        assert!(!known.is_ended(&browser_session("two", Some("another")), 100));
        assert!(known.has_signed_out("alice", "tabs", 100) && !known.has_signed_out("alice", "one", 100));
    }
    assert_eq!(received.copy_digest(0), revocations.copy_digest(0));
    // The end of a session alone neither ends its browser nor takes back that it has ended.
    let alone = revocations.end_session(&session, SessionScope::Session, 101_000, 1_000, LIMITS).expect("room");
    alone.save().expect("saved");
    assert!(file.attached().is_ended(&other, 100));
    let replaced = browser_session("three", Some("more tabs"));
    let _ = revocations.end_session(&replaced, SessionScope::Session, 100_000, 1_000, LIMITS).expect("room");
    assert!(revocations.is_ended(&replaced, 100) && !revocations.has_signed_out("alice", "more tabs", 100));
}

#[test]
fn one_revocation_that_cannot_be_written_keeps_no_other_from_the_file() {
    let file = Scratch::new("each");
    let revocations = file.attached();
    let targets = ["a", "b"].map(|id| RevocationTarget::Session(id.into()));
    let revoked = targets.map(|target| revocations.revoke("https://i", &target, 100, KEEP, 10).expect("room"));
    revocations.file.lock().expect("lock").as_ref().expect("a file").fill_disk_once();
    assert!(Revocation::save_all(revoked.into()).is_err());
    let written = std::fs::read_to_string(&file.0).expect("text");
    assert!(!written.contains("\"a\"") && written.contains("\"b\""), "{written}");
}

#[test]
fn at_a_user_s_limit_the_end_of_a_replaced_session_leaves_the_newer_one() {
    let file = Scratch::new("replaced");
    let revocations = file.attached();
    let session = |id: &str, began| BrowserSession { began, ..browser_session(id, Some("tabs")) };
    for id in ["a", "b", "c"] {
        let ended = revocations.end_session(&session(id, 50_000), SessionScope::Session, 60_000, 1_000, LIMITS);
        ended.expect("room").save().expect("saved");
    }
    let (former, other, newer) = (session("former", 65_000), session("other", 69_999), session("newer", 70_000));
    let scope = SessionScope::Replaced { began: newer.began };
    revocations.end_session(&former, scope, 80_000, 1_000, LIMITS).expect("room").save().expect("saved");
    for known in [&revocations, &file.attached()] {
        assert_eq!(known.sign_outs(), 1, "one entry for all");
        assert!(known.is_ended(&former, 100) && known.is_ended(&other, 100));
        assert!(!known.is_ended(&newer, 100));
    }
}

/// An entry of another instance may be of a time that this clock has not reached.
#[test]
fn the_file_has_the_time_of_the_entry_that_ends_all_sessions_of_a_user() {
    let file = Scratch::new("ahead");
    let revocations = file.attached();
    let session = |id: &str, began| BrowserSession { began, ..browser_session(id, None) };
    let ahead = session("ahead", 90_000);
    for (ended, now) in [(&ahead, 95_000), (&session("b", 50_000), 80_000), (&session("c", 50_000), 80_000)] {
        let ended = revocations.end_session(ended, SessionScope::Browser, now, 1_000, LIMITS).expect("room");
        ended.save().expect("saved");
    }
    let last = session("d", 50_000);
    revocations.end_session(&last, SessionScope::Browser, 80_000, 1_000, LIMITS).expect("room").save().expect("saved");
    for known in [&revocations, &file.attached()] {
        assert!(known.is_ended(&ahead, 100) && known.is_ended(&last, 100));
    }
}

/// The entry of a session is at its begin at least, also in the file, or one that ends all sessions until an earlier time
/// would be taken to include it.
#[test]
fn after_a_restart_a_session_that_began_by_a_clock_ahead_of_this_one_stays_ended_at_the_user_s_limit() {
    let file = Scratch::new("began-ahead");
    let session = |id: &str, began| BrowserSession { began, ..browser_session(id, None) };
    let ahead = session("ahead", 12_000);
    let end = |revocations: &Revocations, session: &BrowserSession, now| {
        let ended = revocations.end_session(session, SessionScope::Session, now, 1_000, LIMITS).expect("room");
        ended.save().expect("saved");
    };
    end(&file.attached(), &ahead, 9_000);
    let restarted = file.attached();
    for id in ["a", "b", "c"] {
        end(&restarted, &session(id, 5_000), 10_000);
    }
    assert_eq!(restarted.sign_outs(), 1, "one entry for all");
    assert!(restarted.is_ended(&ahead, 100) && file.attached().is_ended(&ahead, 100));
}

/// Other instances have the entry in milliseconds, and load all entries anew where one differs.
#[test]
fn after_a_restart_a_sign_out_has_the_time_that_other_instances_know() {
    let file = Scratch::new("same-time");
    let first = file.attached();
    let session = BrowserSession { began: 9_000, ..browser_session("s", None) };
    first.end_session(&session, SessionScope::Session, 9_123, 1_000, LIMITS).expect("room").save().expect("saved");
    let times = |known: &Revocations| known.live(100).iter().map(|entry| (entry.at, entry.until)).collect::<Vec<_>>();
    assert_eq!((times(&first), times(&file.attached())), (vec![(9_123, 1_000)], vec![(9_123, 1_000)]));
}
