//! Tests of the rules in docs/contract.md sections 4.2 and 4.5 that a session decides, without a socket.

use super::refresh::BURST;
use super::*;
use crate::auth::Token;
use crate::policy::{FieldMode, FieldSpec};

const NOW: u64 = 1_000_000_000;

fn limits(grace: u64) -> SessionLimits {
    SessionLimits { grace: Duration::from_secs(grace), ..SessionLimits::default() }
}

#[test]
fn max_lifetime_holds_whatever_the_tokens_say() {
    let limits = SessionLimits { max_lifetime: Some(Duration::from_secs(40)), ..limits(30) };
    let mut session = Session::open(None, limits, credential(NOW / 1_000 + 600), NOW);
    assert_eq!(session.deadline(), Some(NOW + 40_000));
    assert_eq!(
        shown(&session.on(Event::Deadline { last_seen: None }, NOW + 40_000)),
        ["Session expired 4401 Session expired"]
    );
    let mut session = Session::open(None, limits, credential(NOW / 1_000 + 600), NOW);
    refresh(&mut session, NOW + 39_000);
    assert_eq!(session.deadline(), Some(NOW + 40_000), "a refresh under verification does not hold it up");
}

#[test]
fn keep_outlives_the_token_until_max_lifetime() {
    let limits =
        SessionLimits { on_expiry: OnExpiry::Keep, max_lifetime: Some(Duration::from_secs(900)), ..limits(30) };
    let mut session = Session::open(None, limits, credential(NOW / 1_000 + 60), NOW);
    assert_eq!(session.deadline(), Some(NOW + 900_000));
    assert!(session.on(Event::Deadline { last_seen: None }, NOW + 500_000).is_empty());
}

fn credential(expires_at: u64) -> Credential {
    Credential {
        identity: StoredIdentity::example(expires_at),
        is_open_ended: false,
        clock_skew: Duration::from_secs(5),
        revocation_keys: None,
        revalidation: None,
        renews: false,
    }
}

fn token() -> Token {
    Token::parse("t", 16).expect("token")
}

fn accepted(expires_at: u64) -> Event {
    Event::Verdict(Verdict::Accepted { user_id: "alice".into(), credential: credential(expires_at), token: None })
}

fn pending() -> Session {
    Session::pending(Arc::new(DialectSpec::vestibule()), Some(Duration::from_secs(10)), limits(30), NOW)
}

fn opened() -> Session {
    let mut session = pending();
    session.on(Event::FirstMessage(FirstMessage::Authenticate(token()), Copies::default()), NOW);
    session.on(accepted(NOW / 1_000 + 60), NOW);
    session.on(Event::UpstreamOpen, NOW);
    session
}

fn shown(actions: &[Action]) -> Vec<String> {
    actions
        .iter()
        .map(|action| match action {
            Action::Verify(_) => "verify".to_owned(),
            Action::Connect => "connect".to_owned(),
            Action::Send(text) | Action::SendPong(text) => text.clone(),
            Action::StartRelay => "start relay".to_owned(),
            Action::ForwardToken(_) => "forward token".to_owned(),
            Action::Revalidate => "revalidate".to_owned(),
            Action::ContinueExpired => "continue expired".to_owned(),
            Action::Close(reason) => {
                let dialect = DialectSpec::vestibule();
                format!("{} {} {}", reason.message().unwrap_or("-"), reason.code(Some(&dialect)), reason.text())
            }
        })
        .collect()
}

fn refresh(session: &mut Session, now: u64) -> Vec<String> {
    shown(
        &session.on(Event::LaterMessage(LaterMessage::Refresh(PresentedToken::Token(token())), Copies::default()), now),
    )
}

#[test]
fn a_good_first_message_dials_and_is_answered_when_the_upstream_stands() {
    let mut session = pending();
    assert_eq!(
        shown(&session.on(Event::FirstMessage(FirstMessage::Authenticate(token()), Copies::default()), NOW)),
        ["verify"]
    );
    assert_eq!(shown(&session.on(accepted(NOW / 1_000 + 60), NOW)), ["connect"]);
    assert_eq!(
        shown(&session.on(Event::UpstreamOpen, NOW + 2_000)),
        [r#"{"type":"authenticated","user_id":"alice","expires_at":1000060,"expires_in":58}"#, "start relay"]
    );
}

#[test]
fn every_bad_first_message_ends_with_its_row() {
    for (first, expected) in [
        (FirstMessage::InvalidMessage, "Invalid message format 1008 Invalid message format"),
        (FirstMessage::Unexpected, "Expected authentication message 1008 Expected authentication message"),
        (FirstMessage::MissingToken, "Missing authentication token 1008 Missing token"),
        (FirstMessage::NotAToken(None), "Invalid authentication token 1008 Invalid token"),
    ] {
        assert_eq!(shown(&pending().on(Event::FirstMessage(first, Copies::default()), NOW)), [expected]);
    }
}

#[test]
fn every_refused_first_token_ends_with_its_row() {
    for (verdict, expected) in [
        (Verdict::Refused(CloseReason::ExpiredOnArrival), "Token has expired 1008 Token expired"),
        (Verdict::Refused(CloseReason::InvalidToken), "Invalid authentication token 1008 Invalid token"),
        (Verdict::Refused(CloseReason::AuthUnavailable), "Authentication service unavailable 1013 Try again later"),
        (Verdict::Denied, "Access denied 1008 Access denied"),
    ] {
        let mut session = pending();
        session.on(Event::FirstMessage(FirstMessage::Authenticate(token()), Copies::default()), NOW);
        assert_eq!(shown(&session.on(Event::Verdict(verdict), NOW)), [expected]);
    }
}

#[test]
fn waiting_ends_in_time_and_only_then() {
    let mut session = pending();
    assert_eq!(session.deadline(), Some(NOW + 10_000));
    assert!(session.on(Event::Deadline { last_seen: None }, NOW + 9_999).is_empty());
    assert_eq!(
        shown(&session.on(Event::Deadline { last_seen: None }, NOW + 10_000)),
        ["Authentication timeout 1008 Authentication timeout"]
    );
    assert!(
        session
            .on(Event::FirstMessage(FirstMessage::Authenticate(token()), Copies::default()), NOW + 10_001)
            .is_empty()
    );
}

#[test]
fn a_refresh_moves_the_end() {
    let mut session = opened();
    assert_eq!(session.deadline(), Some(NOW + 90_000));
    assert_eq!(refresh(&mut session, NOW + 50_000), ["verify"]);
    assert_eq!(
        shown(&session.on(accepted(NOW / 1_000 + 110), NOW + 50_000)),
        [r#"{"type":"auth_refreshed","expires_at":1000110,"expires_in":60}"#]
    );
    assert_eq!(session.deadline(), Some(NOW + 140_000));
    assert_eq!(session.refreshes(), 1);
}

#[test]
fn authenticate_again_is_a_refresh_answered_as_authenticated() {
    let mut session = opened();
    session.on(Event::LaterMessage(LaterMessage::Authenticate(PresentedToken::Token(token())), Copies::default()), NOW);
    assert_eq!(
        shown(&session.on(accepted(NOW / 1_000 + 70), NOW)),
        [r#"{"type":"authenticated","user_id":"alice","expires_at":1000070,"expires_in":70}"#]
    );
}

#[test]
fn authenticate_with_the_users_old_token_is_answered_with_the_end_that_holds() {
    let mut session = opened();
    let event = Event::LaterMessage(LaterMessage::Authenticate(PresentedToken::Token(token())), Copies::default());
    assert_eq!(shown(&session.on(event, NOW)), ["verify"]);
    let old = || Event::Verdict(Verdict::Expired { user_id: "alice".to_owned() });
    let end = NOW / 1_000 + 60;
    assert_eq!(
        shown(&session.on(old(), NOW + 1_000)),
        [format!(r#"{{"type":"authenticated","user_id":"alice","expires_at":{end},"expires_in":59}}"#)]
    );
    // Nothing is extended, and the message is refused as a refresh.
    assert_eq!(refresh(&mut session, NOW + 2_000), ["verify"]);
    assert_eq!(
        shown(&session.on(old(), NOW + 2_000)),
        [r#"{"type":"error","message":"Token refresh failed: Token has expired"}"#]
    );
    assert_eq!(session.refreshes(), 0);
    assert_eq!(
        shown(&session.on(Event::Deadline { last_seen: None }, NOW + 90_000)),
        ["Token expired 4401 Token expired"]
    );
}

#[test]
fn the_end_comes_with_4401() {
    let mut session = opened();
    assert!(session.on(Event::Deadline { last_seen: None }, NOW + 89_999).is_empty());
    assert_eq!(
        shown(&session.on(Event::Deadline { last_seen: None }, NOW + 90_000)),
        ["Token expired 4401 Token expired"]
    );
}

#[test]
fn a_refresh_under_verification_at_the_end_is_awaited() {
    let mut session = opened();
    refresh(&mut session, NOW + 89_000);
    assert_eq!(session.deadline(), None);
    assert!(session.on(Event::Deadline { last_seen: None }, NOW + 95_000).is_empty());
    let refused = Event::Verdict(Verdict::Refused(CloseReason::InvalidToken));
    assert_eq!(
        shown(&session.on(refused, NOW + 96_000)),
        [
            r#"{"type":"error","message":"Token refresh failed: Invalid authentication token"}"#,
            "Token expired 4401 Token expired"
        ]
    );
}

#[test]
fn refused_refreshes_keep_the_old_identity_and_five_in_a_row_end_it() {
    let mut session = opened();
    for attempt in 1..=5 {
        let now = NOW + attempt * 2_000;
        refresh(&mut session, now);
        let said = shown(&session.on(Event::Verdict(Verdict::AnotherUser), now));
        if attempt < 5 {
            assert_eq!(said, [r#"{"type":"error","message":"Token refresh failed: another user"}"#]);
            assert_eq!(session.deadline(), Some(NOW + 90_000));
        } else {
            assert_eq!(said, ["Too many refreshes 1008 Too many refreshes"]);
        }
    }
}

#[test]
fn a_refresh_that_could_not_be_judged_is_no_refusal_of_its_token() {
    let mut session = opened();
    let mut refuse = |attempt: u64, reason| {
        let now = NOW + attempt * 2_000;
        refresh(&mut session, now);
        shown(&session.on(Event::Verdict(Verdict::Refused(reason)), now))
    };
    for attempt in 0..10 {
        for (reason, message) in [
            (CloseReason::TooManyConnections, "Too many connections"),
            (CloseReason::AuthUnavailable, "Authentication service unavailable"),
        ] {
            let said = refuse(attempt, reason);
            assert_eq!(said, [format!(r#"{{"type":"error","message":"Token refresh failed: {message}"}}"#)]);
        }
    }
    // It does not interrupt a row of refusals either.
    for attempt in 11..15 {
        refuse(attempt, CloseReason::InvalidToken);
        refuse(attempt, CloseReason::AuthUnavailable);
    }
    assert_eq!(refuse(16, CloseReason::InvalidToken), ["Too many refreshes 1008 Too many refreshes"]);
}

#[test]
fn an_accepted_refresh_forgets_the_refusals() {
    let mut session = opened();
    for attempt in 0..4 {
        session
            .on(Event::LaterMessage(LaterMessage::Refresh(PresentedToken::Missing), Copies::default()), NOW + attempt);
    }
    refresh(&mut session, NOW + 10);
    session.on(accepted(NOW / 1_000 + 60), NOW + 10);
    let said = shown(
        &session.on(Event::LaterMessage(LaterMessage::Refresh(PresentedToken::Missing), Copies::default()), NOW + 20),
    );
    assert_eq!(said, [r#"{"type":"error","message":"Missing token in refresh request"}"#]);
}

#[test]
fn a_refresh_that_loses_its_right_or_changes_a_header_ends_it() {
    for (verdict, expected) in
        [(Verdict::Denied, "Access denied 1008 Access denied"), (Verdict::IdentityChanged, "- 1012 Identity changed")]
    {
        let mut session = opened();
        refresh(&mut session, NOW);
        assert_eq!(shown(&session.on(Event::Verdict(verdict), NOW)), [expected]);
    }
}

#[test]
fn refreshes_are_verified_one_at_a_time_and_the_newest_waits() {
    let mut session = opened();
    assert_eq!(refresh(&mut session, NOW), ["verify"]);
    assert!(refresh(&mut session, NOW).is_empty());
    assert!(refresh(&mut session, NOW).is_empty());
    let after = shown(&session.on(accepted(NOW / 1_000 + 60), NOW));
    assert_eq!(after.last().map(String::as_str), Some("verify"));
    assert_eq!(shown(&session.on(accepted(NOW / 1_000 + 60), NOW)).len(), 1);
}

#[test]
fn refreshes_beyond_the_burst_wait_for_their_second() {
    let mut session = opened();
    for _ in 0..BURST {
        assert_eq!(refresh(&mut session, NOW), ["verify"]);
        session.on(accepted(NOW / 1_000 + 60), NOW);
    }
    assert!(refresh(&mut session, NOW).is_empty());
    assert_eq!(session.deadline(), Some(NOW + 1_000));
    assert!(session.on(Event::Deadline { last_seen: None }, NOW + 999).is_empty());
    assert_eq!(shown(&session.on(Event::Deadline { last_seen: None }, NOW + 1_000)), ["verify"]);
}

#[test]
fn a_session_with_a_credential_on_the_upgrade_hears_nothing_unasked() {
    let mut session = Session::open(None, limits(30), credential(NOW / 1_000 + 60), NOW);
    assert_eq!(session.deadline(), Some(NOW + 90_000));
    assert_eq!(
        shown(&session.on(Event::Deadline { last_seen: None }, NOW + 90_000)),
        ["Token expired 4401 Token expired"]
    );
    assert_eq!(CloseReason::Expired.error_message(None, &Copies::default()), None);
}

#[test]
fn grace_is_at_least_the_clock_skew() {
    let session = Session::open(None, SessionLimits::default(), credential(100), 0);
    assert_eq!(session.deadline(), Some(105_000));
}

#[test]
fn auto_lives_on_while_its_user_is_seen_and_closes_once_the_client_renews() {
    let limits = SessionLimits {
        on_expiry: OnExpiry::Auto,
        presence: Duration::from_secs(1_800),
        max_lifetime: Some(Duration::from_secs(43_200)),
        ..limits(30)
    };
    let open = || Session::open(None, limits, credential(NOW / 1_000 + 60), NOW);
    let mut session = open();
    assert_eq!(session.deadline(), Some(NOW + 90_000));
    let seen = Event::Deadline { last_seen: Some(NOW + 80_000) };
    assert_eq!(shown(&session.on(seen, NOW + 90_000)), ["continue expired"]);
    assert_eq!(session.deadline(), Some(NOW + 1_880_000), "presence after it was seen");
    let gone = session.on(Event::Deadline { last_seen: Some(NOW + 80_000) }, NOW + 1_880_000);
    assert_eq!(shown(&gone), ["Token expired 4401 Token expired"]);
    let mut session = open();
    assert_eq!(
        shown(&session.on(Event::Deadline { last_seen: None }, NOW + 90_000)),
        ["Token expired 4401 Token expired"]
    );
    let mut session = open();
    refresh(&mut session, NOW + 50_000);
    session.on(accepted(NOW / 1_000 + 110), NOW + 50_000);
    let seen = Event::Deadline { last_seen: Some(NOW + 139_000) };
    assert_eq!(shown(&session.on(seen, NOW + 140_000)), ["Token expired 4401 Token expired"], "it can renew");
    let mut session = open();
    let seen = Event::Deadline { last_seen: Some(NOW + 43_199_000) };
    assert_eq!(shown(&session.on(seen, NOW + 43_200_000)), ["Session expired 4401 Session expired"]);
}

#[test]
fn auto_outlives_a_refresh_that_is_refused_while_the_token_ends() {
    let limits = SessionLimits { on_expiry: OnExpiry::Auto, presence: Duration::from_secs(1_800), ..limits(30) };
    let dialect = Arc::new(DialectSpec::vestibule());
    let mut session = Session::open(Some(dialect), limits, credential(NOW / 1_000 + 60), NOW);
    refresh(&mut session, NOW + 89_000);
    let refused = Event::Verdict(Verdict::Refused(CloseReason::InvalidToken));
    assert_eq!(
        shown(&session.on(refused, NOW + 91_000)),
        [r#"{"type":"error","message":"Token refresh failed: Invalid authentication token"}"#]
    );
    assert!(session.deadline().is_some_and(|deadline| deadline <= NOW + 91_000), "it is due at once");
    let seen = Event::Deadline { last_seen: Some(NOW + 80_000) };
    assert_eq!(shown(&session.on(seen, NOW + 91_000)), ["continue expired"]);
    // A session whose user was not seen ends then.
    let gone = Event::Deadline { last_seen: Some(NOW + 80_000) };
    assert_eq!(shown(&session.on(gone, NOW + 1_880_000)), ["Token expired 4401 Token expired"]);
}

#[test]
fn a_refused_token_in_a_message_ends_it_with_the_row_of_its_refusal() {
    let dialect =
        || Arc::new(DialectSpec::token_field(FieldSpec { pointer: vec!["t".into()], upstream: FieldMode::Keep }));
    for (verdict, expected) in [
        (Verdict::Refused(CloseReason::InvalidToken), (4001, "Invalid token")),
        (Verdict::Refused(CloseReason::ExpiredOnArrival), (4001, "Token expired")),
        (Verdict::Refused(CloseReason::TooManyConnections), (1013, "Try again later")),
        (Verdict::Refused(CloseReason::AuthUnavailable), (1013, "Try again later")),
        (Verdict::AnotherUser, (4001, "Invalid token")),
        (Verdict::Denied, (4001, "Access denied")),
        (Verdict::IdentityChanged, (1012, "Identity changed")),
    ] {
        let mut session = Session::open(Some(dialect()), limits(30), credential(NOW / 1_000 + 60), NOW);
        assert_eq!(shown(&session.on(Event::FieldToken(token()), NOW)), ["verify"]);
        let ended = session.on(Event::Verdict(verdict), NOW);
        let [Action::Close(reason)] = ended.as_slice() else { panic!("{ended:?}") };
        assert_eq!((reason.code(Some(&dialect())), reason.text()), expected);
    }
}

fn asked_about(expires_at: u64) -> Credential {
    let plan = RevalidationPlan {
        check: RemoteCheck::example(),
        interval: Duration::from_secs(60),
        grace: Duration::from_secs(25),
    };
    Credential { revalidation: Some(Box::new(plan)), ..credential(expires_at) }
}

fn asked_session() -> Session {
    Session::open(Some(Arc::new(DialectSpec::vestibule())), limits(30), asked_about(NOW / 1_000 + 600), NOW)
}

/// Processes the deadline, which must ask the provider. Returns its time.
fn asks(session: &mut Session) -> u64 {
    let at = session.deadline().expect("a deadline");
    assert_eq!(shown(&session.on(Event::Deadline { last_seen: None }, at)), ["revalidate"]);
    at
}

#[test]
fn the_provider_is_asked_again_within_every_interval_and_its_yes_keeps_the_session() {
    let mut session = asked_session();
    let mut last = NOW;
    for _ in 0..5 {
        let at = asks(&mut session);
        assert!(at > last && at <= last + 60_000, "{at} after {last}");
        assert!(session.on(Event::Revalidation(Revalidation::Active), at + 300).is_empty());
        last = at + 300;
    }
}

#[test]
fn its_no_ends_the_session_at_once() {
    let mut session = asked_session();
    let at = asks(&mut session);
    assert_eq!(
        shown(&session.on(Event::Revalidation(Revalidation::Revoked), at + 300)),
        ["Session ended 1008 Session ended"]
    );
}

#[test]
fn its_silence_is_borne_for_revalidate_grace() {
    let mut session = asked_session();
    let first = asks(&mut session);
    assert!(session.on(Event::Revalidation(Revalidation::Unavailable), first).is_empty());
    let mut at = first;
    for wait in [10_000, 10_000, 5_000] {
        assert_eq!(session.deadline(), Some(at + wait));
        at = asks(&mut session);
        if at < first + 25_000 {
            assert!(session.on(Event::Revalidation(Revalidation::Unavailable), at).is_empty());
        }
    }
    assert_eq!(
        shown(&session.on(Event::Revalidation(Revalidation::Unavailable), at)),
        ["Authentication service unavailable 1013 Try again later"]
    );
    // An answer in between resets the grace.
    let mut session = asked_session();
    let first = asks(&mut session);
    session.on(Event::Revalidation(Revalidation::Unavailable), first);
    let second = asks(&mut session);
    assert!(session.on(Event::Revalidation(Revalidation::Active), second).is_empty());
    let third = asks(&mut session);
    assert!(session.on(Event::Revalidation(Revalidation::Unavailable), third + 30_000).is_empty());
}

#[test]
fn a_no_about_a_token_that_was_renewed_meanwhile_ends_nothing() {
    let mut session = asked_session();
    let at = asks(&mut session);
    refresh(&mut session, at);
    let renewed =
        Verdict::Accepted { user_id: "alice".into(), credential: asked_about(NOW / 1_000 + 900), token: None };
    session.on(Event::Verdict(renewed), at);
    assert!(session.on(Event::Revalidation(Revalidation::Revoked), at + 1).is_empty());
    let again = asks(&mut session);
    assert_eq!(shown(&session.on(Event::Revalidation(Revalidation::Revoked), again)).len(), 1);
}

#[test]
fn a_token_without_an_end_lives_by_its_provider_s_word_alone() {
    let credential = Credential { is_open_ended: true, ..asked_about(NOW / 1_000 + 30) };
    let mut session = Session::open(None, limits(30), credential, NOW);
    for _ in 0..5 {
        let at = asks(&mut session);
        session.on(Event::Revalidation(Revalidation::Active), at);
    }
    let at = asks(&mut session);
    assert_eq!(shown(&session.on(Event::Revalidation(Revalidation::Revoked), at)).len(), 1);
}

/// Checks that refreshes that cannot be verified do not put off the end of a session: each is awaited for seconds while the
/// provider does not answer, and the client has sent the next one meanwhile.
#[test]
fn refreshes_that_cannot_be_verified_keep_no_session_open_beyond_its_end() {
    for on_expiry in [OnExpiry::Close, OnExpiry::Auto] {
        let limits = SessionLimits { on_expiry, ..limits(30) };
        let dialect = Some(Arc::new(DialectSpec::vestibule()));
        let mut session = Session::open(dialect, limits, credential(NOW / 1_000 + 60), NOW);
        let end = NOW + 90_000;
        assert_eq!(refresh(&mut session, end - 1_000), ["verify"]);
        assert!(refresh(&mut session, end).is_empty(), "one at a time");
        assert_eq!(session.deadline(), None, "it is awaited");
        let mut actions =
            shown(&session.on(Event::Verdict(Verdict::Refused(CloseReason::AuthUnavailable)), end + 1_000));
        actions.extend(shown(&session.on(Event::Deadline { last_seen: None }, end + 1_000)));
        let unavailable = r#"{"type":"error","message":"Token refresh failed: Authentication service unavailable"}"#;
        let expired = "Token expired 4401 Token expired";
        assert_eq!(actions, [unavailable, unavailable, expired], "{on_expiry:?}: each refresh is answered");
    }
}

#[test]
fn an_authenticate_that_waits_is_not_lost_to_a_refresh() {
    let mut session = opened();
    for _ in 0..BURST {
        refresh(&mut session, NOW);
        session.on(accepted(NOW / 1_000 + 60), NOW);
    }
    let authenticate = LaterMessage::Authenticate(PresentedToken::Token(token()));
    assert!(session.on(Event::LaterMessage(authenticate, Copies::default()), NOW).is_empty());
    assert!(refresh(&mut session, NOW).is_empty());
    assert!(refresh(&mut session, NOW).is_empty());
    for (second, answer) in [(1, "authenticated"), (2, "auth_refreshed")] {
        let now = NOW + second * 1_000;
        assert_eq!(shown(&session.on(Event::Deadline { last_seen: None }, now)), ["verify"]);
        let answers = shown(&session.on(accepted(NOW / 1_000 + 60), now));
        assert!(matches!(&answers[..], [text] if text.contains(answer)), "{answers:?}");
    }
    assert!(!session.is_verifying(), "of two refreshes that wait the newer one is verified");
}
