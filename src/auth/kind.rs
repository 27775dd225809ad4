//! What kind of token this is, by what it says of itself, and the claims that decide only with one provider
//! (docs/contract.md section 5). Times, audience and signature are the verifier's.

use serde_json::{Map, Value};

use super::Rejection;
use crate::policy::{Audience, Family, Kinds, ProviderSpec};

/// Clerk's token categories (`cat` in the header).
const CLERK_SESSION: &str = "cl_B7d4PD111AAA";
const CLERK_TEMPLATE: &str = "cl_B7d4PD222AAA";
/// Stamped on tokens of every kind by some instances, so it says nothing.
const CLERK_IGNORE: &str = "cl_I7d4PD111III";

/// What the header says of the kind; empty where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KindHeader {
    /// `typ` says that it is an access token of OAuth (RFC 9068).
    pub(super) is_access_token: bool,
    /// Clerk's `cat`.
    pub(super) category: Category,
}

/// Clerk's category of a token, in a header's `cat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Category {
    /// It has none, or the one that says nothing.
    #[default]
    Unsaid,
    /// A session's.
    Session,
    /// A template's.
    Template,
    /// Any other.
    Other,
}

impl Category {
    pub(super) fn of(text: &str) -> Self {
        match text {
            CLERK_SESSION => Self::Session,
            CLERK_TEMPLATE => Self::Template,
            CLERK_IGNORE => Self::Unsaid,
            _ => Self::Other,
        }
    }

    /// By the name that [`Self::name`] gives it.
    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Unsaid, Self::Session, Self::Template, Self::Other].into_iter().find(|known| known.name() == name)
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Unsaid => "",
            Self::Session => "session",
            Self::Template => "template",
            Self::Other => "other",
        }
    }
}

/// Sees that it is a kind that counts; says which.
pub(super) fn check_kind(
    spec: &ProviderSpec,
    header: KindHeader,
    claims: &Map<String, Value>,
) -> Result<&'static str, Rejection> {
    let says = |name: &str, value: &str| {
        claims.get(name).and_then(Value::as_str).is_some_and(|found| found.eq_ignore_ascii_case(value))
    };
    if claims.contains_key("events") {
        return Err(Rejection::WrongKind("a logout token"));
    }
    let named = named_kind(claims);
    if let Some(NamedKind::Other(what)) = named {
        return Err(Rejection::WrongKind(what));
    }
    match spec.family {
        Family::Clerk => return clerk_kind(spec.accept, header, claims),
        Family::Cognito if !says("token_use", "access") && !says("token_use", "id") => {
            return Err(Rejection::WrongKind("token_use is neither access nor id"));
        }
        Family::Generic | Family::Supabase | Family::Cognito => {}
    }
    let is_id_token = named == Some(NamedKind::Id) || claims.contains_key("at_hash") || claims.contains_key("c_hash");
    // Google's ID tokens need not have a hash; its access tokens are opaque.
    let only_id_tokens = spec.preset == "google";
    match (is_id_token || only_id_tokens, spec.accept.id_token, spec.accept.access_token) {
        (true, true, _) => Ok("ID token"),
        (true, false, _) => Err(Rejection::WrongKind("an ID token; accept: [id_token] would take it")),
        (false, _, true) => Ok("access token"),
        (false, _, false) => Err(Rejection::WrongKind("not an ID token")),
    }
}

/// The members by which a token, or the answer about one, names its kind, by their letters alone. `type` is what
/// Flask-JWT-Extended writes, `token_type` Simple JWT, `token_use` Ory and Cognito, `typ` Keycloak; RFC 8693 section
/// 2.2.1 has `issued_token_type`.
const KIND_MEMBERS: [&str; 10] = [
    "tokenuse",
    "typ",
    "type",
    "tokentype",
    "tokentypehint",
    "issuedtokentype",
    "requestedtokentype",
    "tokenname",
    "tokenkind",
    "kind",
];

/// A kind that a token names and that is not an access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NamedKind {
    /// An ID token: accepted where the provider's `accept` says so.
    Id,
    /// One that is never accepted.
    Other(&'static str),
}

/// Whether a member may name the kind of a token.
pub(super) fn is_kind_member(name: &str) -> bool {
    KIND_MEMBERS.contains(&letters(name).as_str())
}

/// Refuses an answer about a token that names a kind which does not count, whatever the token says of itself.
pub(super) fn check_answer(spec: &ProviderSpec, said: &Map<String, Value>) -> Result<(), Rejection> {
    match named_kind(said) {
        Some(NamedKind::Other(what)) => Err(Rejection::WrongKind(what)),
        Some(NamedKind::Id) if !spec.accept.id_token => {
            Err(Rejection::WrongKind("an ID token; accept: [id_token] would take it"))
        }
        Some(NamedKind::Id) | None => Ok(()),
    }
}

/// The kind that some member names; one that is never accepted before an ID token.
fn named_kind(claims: &Map<String, Value>) -> Option<NamedKind> {
    let values = claims.iter().filter(|(name, _)| is_kind_member(name)).map(|(_, value)| value);
    let texts = values.flat_map(|value| match value {
        Value::Array(members) => members.as_slice(),
        one => std::slice::from_ref(one),
    });
    let mut found = None;
    for kind in texts.filter_map(Value::as_str).filter_map(kind_of_text) {
        found = Some(kind);
        if kind != NamedKind::Id {
            break;
        }
    }
    found
}

/// Reads `refresh`, `Refresh`, `refresh_token`, `RefreshToken`, `application/logout+jwt`,
/// `urn:ietf:params:oauth:token-type:refresh_token` (RFC 8693 section 3) and the like.
fn kind_of_text(text: &str) -> Option<NamedKind> {
    let last = text.trim().rsplit([':', '/', '#']).find(|part| !part.is_empty())?;
    let word = letters(last);
    let word = word.strip_suffix("jwt").unwrap_or(&word);
    match word.strip_suffix("token").unwrap_or(word) {
        "refresh" | "offline" => Some(NamedKind::Other("a refresh token")),
        "logout" => Some(NamedKind::Other("a logout token")),
        // RFC 7591 and Keycloak's own.
        "registrationaccess" | "initialaccess" => Some(NamedKind::Other("a token for registering clients")),
        "authorizationcode" | "devicecode" => Some(NamedKind::Other("a code, which is no token")),
        "id" | "identity" => Some(NamedKind::Id),
        _ => None,
    }
}

/// Letters and digits in lower case.
fn letters(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

fn clerk_kind(accept: Kinds, header: KindHeader, claims: &Map<String, Value>) -> Result<&'static str, Rejection> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    if header.is_access_token || text("sub").is_some_and(|sub| sub.starts_with("mch_")) {
        return Err(Rejection::WrongKind("a machine's token"));
    }
    let has_session = text("sid").is_some_and(|sid| !sid.is_empty());
    let is_template = match header.category {
        Category::Template => true,
        Category::Session | Category::Unsaid => !has_session,
        Category::Other => return Err(Rejection::WrongKind("a category (cat) that is no session's")),
    };
    match claims.get("sts") {
        None => {}
        Some(Value::String(status)) if status == "active" => {}
        Some(_) => return Err(Rejection::WrongKind("a session that is not active (sts)")),
    }
    match (is_template, accept.template, accept.access_token) {
        (true, true, _) => Ok("template token"),
        (true, false, _) => Err(Rejection::WrongKind(
            "a template token, which outlives its session; accept: [access_token, template] would take it",
        )),
        (false, _, true) => Ok("session token"),
        (false, _, false) => Err(Rejection::WrongKind("not a template token")),
    }
}

/// Sees that it is for us. Cognito's access tokens say so in `client_id`.
pub(super) fn check_audience(spec: &ProviderSpec, claims: &Map<String, Value>) -> Result<(), Rejection> {
    let Audience::OneOf(accepted) = &spec.audience else { return Ok(()) };
    let is_accepted = |value: &str| accepted.iter().any(|name| name == value);
    let is_access =
        claims.get("token_use").and_then(Value::as_str).is_some_and(|usage| usage.eq_ignore_ascii_case("access"));
    if spec.family == Family::Cognito && is_access {
        // One that is bound to a resource has `aud` too; another client's is not ours whatever that says.
        return match claims.get("client_id") {
            Some(Value::String(client)) if is_accepted(client) => Ok(()),
            Some(Value::String(client)) => Err(Rejection::WrongAudience(client.chars().take(256).collect())),
            Some(_) | None => {
                Err(Rejection::Claim { claim: "client_id".to_owned(), problem: "is missing or no string" })
            }
        };
    }
    let fits = match claims.get("aud") {
        Some(Value::String(one)) => is_accepted(one),
        // RFC 7519 section 4.1.3: an array of strings; anything else in it is not one.
        Some(Value::Array(many)) => {
            many.iter().all(Value::is_string) && many.iter().filter_map(Value::as_str).any(is_accepted)
        }
        None => return Err(Rejection::Claim { claim: "aud".to_owned(), problem: "is missing" }),
        Some(_) => false,
    };
    if fits { Ok(()) } else { Err(Rejection::WrongAudience(shown_audience(claims))) }
}

/// `aud` as it stands, for the log.
pub(super) fn shown_audience(claims: &Map<String, Value>) -> String {
    claims.get("aud").map_or_else(|| "none".to_owned(), |aud| aud.to_string().chars().take(256).collect())
}

/// Gives the claims of the second version of Clerk's session tokens, which nest the organisation in `o`, the
/// names of the first, so that a rule or a header means the same with both.
pub(super) fn flattened(spec: &ProviderSpec, mut claims: Map<String, Value>) -> Map<String, Value> {
    if spec.family != Family::Clerk {
        return claims;
    }
    let Some(Value::Object(organisation)) = claims.get("o") else { return claims };
    let text = |name: &str| organisation.get(name).and_then(Value::as_str).map(str::to_owned);
    let permissions = permissions(claims.get("fea").and_then(Value::as_str), text("per"), text("fpm"));
    let flat = [
        ("org_id", text("id").map(Value::String)),
        ("org_slug", text("slg").map(Value::String)),
        // The first version writes the role with its namespace.
        ("org_role", text("rol").map(|role| Value::String(format!("org:{role}")))),
        ("org_permissions", permissions.map(Value::from)),
    ];
    for (name, value) in flat {
        match value {
            Some(value) => claims.insert(name.to_owned(), value),
            // What the organisation does not say, a claim of that name from elsewhere must not.
            None => claims.shift_remove(name),
        };
    }
    claims
}

/// `fea` lists features with their scopes, `per` the permissions, `fpm` one bit mask a feature of the
/// organisation: bit n is the n-th permission.
fn permissions(features: Option<&str>, permissions: Option<String>, masks: Option<String>) -> Option<Vec<String>> {
    let (features, permissions, masks) = (features?, permissions?, masks?);
    let of_organisation = features
        .split(',')
        .filter_map(|feature| feature.trim().split_once(':'))
        .filter(|(scope, _)| scope.contains('o'))
        .map(|(_, feature)| feature);
    let mut out = Vec::new();
    for (feature, mask) in of_organisation.zip(masks.split(',')) {
        let mask: u64 = mask.trim().parse().ok()?;
        for (bit, permission) in permissions.split(',').take(64).enumerate() {
            if mask >> bit & 1 == 1 {
                out.push(format!("org:{feature}:{}", permission.trim()));
            }
        }
    }
    Some(out)
}
