//! Tells access tokens from ID tokens, refresh tokens and other kinds, and checks the claims that only one
//! provider has (docs/contract.md section 5). Times and signatures are checked elsewhere.

use serde_json::{Map, Value};

use super::Rejection;
use crate::policy::{Audience, BoundAudience, Family, Kinds, ProviderSpec};

/// Clerk's category of session tokens (`cat` in the header).
const CLERK_SESSION: &str = "cl_B7d4PD111AAA";
/// Clerk's category of template tokens.
const CLERK_TEMPLATE: &str = "cl_B7d4PD222AAA";
/// A category that some Clerk instances put on tokens of every kind, so it is ignored.
const CLERK_IGNORE: &str = "cl_I7d4PD111III";

/// The parts of a token's header that determine its kind; the default for a token without a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TokenKindHeader {
    /// Whether `typ` is `at+jwt`, an OAuth access token (RFC 9068).
    pub(super) is_access_token: bool,
    /// Clerk's category, `cat`.
    pub(super) category: Category,
}

impl TokenKindHeader {
    /// Rejects a header that names an access token, where another kind of token is expected.
    ///
    /// # Errors
    /// [`Rejection::WrongKind`].
    pub(super) fn check_no_access_token(self) -> Result<(), Rejection> {
        if self.is_access_token { Err(Rejection::WrongKind("an access token")) } else { Ok(()) }
    }
}

/// Clerk's category of a token, in a header's `cat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Category {
    /// No category, or the one that is ignored.
    #[default]
    Unspecified,
    /// A session token.
    Session,
    /// A template token.
    Template,
    /// Any other category.
    Other,
}

impl Category {
    /// Parses the value of `cat`.
    pub(super) fn from_claim(text: &str) -> Self {
        match text {
            CLERK_SESSION => Self::Session,
            CLERK_TEMPLATE => Self::Template,
            CLERK_IGNORE => Self::Unspecified,
            _ => Self::Other,
        }
    }

    /// Parses a name that [`Self::name`] returned.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Unspecified, Self::Session, Self::Template, Self::Other].into_iter().find(|known| known.name() == name)
    }

    /// Returns a name for session cookies.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "",
            Self::Session => "session",
            Self::Template => "template",
            Self::Other => "other",
        }
    }
}

/// Checks that a token is of a kind that the provider's `accept` lists, and returns the kind's name.
pub(super) fn check_kind(
    spec: &ProviderSpec,
    header: TokenKindHeader,
    claims: &Map<String, Value>,
) -> Result<&'static str, Rejection> {
    let says = |name: &str, value: &str| {
        claims.get(name).and_then(Value::as_str).is_some_and(|found| found.eq_ignore_ascii_case(value))
    };
    if spec.family == Family::AwsAlb {
        // The claims are of the user, and a balancer signs no other kind.
        return Ok("load balancer's token");
    }
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
        Family::Generic | Family::Supabase | Family::Cognito | Family::Google | Family::Entra | Family::AwsAlb => {}
    }
    let has = |name: &str| claims.contains_key(name);
    let is_id_token = match spec.family {
        // Google's ID tokens may lack `at_hash`, and its access tokens are opaque.
        Family::Google => true,
        // Entra's ID tokens lack `at_hash` where they come with a code. Access tokens name the client that they were issued
        // to: `azp` in version 2.0, `appid` in version 1.0.
        Family::Entra => !has("azp") && !has("appid"),
        Family::Generic | Family::Clerk | Family::Supabase | Family::Cognito | Family::AwsAlb => false,
    };
    let is_id_token = is_id_token || named == Some(NamedKind::Id) || has("at_hash") || has("c_hash");
    match (is_id_token, spec.accept.id_token, spec.accept.access_token) {
        (true, true, _) => Ok("ID token"),
        (true, false, _) => Err(Rejection::WrongKind("an ID token; accept: [id_token] would accept it")),
        (false, _, true) => Ok("access token"),
        (false, _, false) => Err(Rejection::WrongKind("not an ID token")),
    }
}

/// The claims, and members of an introspection response, that name a token's kind; only their letters are compared.
/// `type` is written by Flask-JWT-Extended, `token_type` by Simple JWT, `token_use` by Ory and Cognito, `typ` by
/// Keycloak; `issued_token_type` is from RFC 8693 section 2.2.1.
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

/// A kind other than access token that a token names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NamedKind {
    /// An ID token, accepted where the provider's `accept` lists it.
    Id,
    /// A kind that is never accepted.
    Other(&'static str),
}

/// Returns whether a claim may name the kind of a token.
pub(super) fn is_kind_member(name: &str) -> bool {
    KIND_MEMBERS.contains(&letters(name).as_str())
}

/// Rejects a provider's response about a token when the response names a kind that is not accepted, whatever kind
/// the token itself names.
pub(super) fn check_answer(spec: &ProviderSpec, said: &Map<String, Value>) -> Result<(), Rejection> {
    match named_kind(said) {
        Some(NamedKind::Other(what)) => Err(Rejection::WrongKind(what)),
        Some(NamedKind::Id) if !spec.accept.id_token => {
            Err(Rejection::WrongKind("an ID token; accept: [id_token] would accept it"))
        }
        Some(NamedKind::Id) | None => Ok(()),
    }
}

/// Returns the kind that the claims name. A kind that is never accepted takes precedence over an ID token.
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

/// Recognizes a kind in `refresh`, `Refresh`, `refresh_token`, `RefreshToken`, `application/logout+jwt`,
/// `urn:ietf:params:oauth:token-type:refresh_token` (RFC 8693 section 3) and similar values.
fn kind_of_text(text: &str) -> Option<NamedKind> {
    let last = text.trim().rsplit([':', '/', '#']).find(|part| !part.is_empty())?;
    let word = letters(last);
    let word = word.strip_suffix("jwt").unwrap_or(&word);
    match word.strip_suffix("token").unwrap_or(word) {
        "refresh" | "offline" => Some(NamedKind::Other("a refresh token")),
        "logout" => Some(NamedKind::Other("a logout token")),
        // RFC 7591, and Keycloak's initial access tokens.
        "registrationaccess" | "initialaccess" => Some(NamedKind::Other("a token for registering clients")),
        "authorizationcode" | "devicecode" => Some(NamedKind::Other("a code, not a token")),
        "id" | "identity" => Some(NamedKind::Id),
        _ => None,
    }
}

/// Keeps letters and digits, in lower case.
fn letters(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

fn clerk_kind(accept: Kinds, header: TokenKindHeader, claims: &Map<String, Value>) -> Result<&'static str, Rejection> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    if header.is_access_token || text("sub").is_some_and(|sub| sub.starts_with("mch_")) {
        return Err(Rejection::WrongKind("a machine-to-machine token"));
    }
    let has_session = text("sid").is_some_and(|sid| !sid.is_empty());
    let is_template = match header.category {
        Category::Template => true,
        Category::Session | Category::Unspecified => !has_session,
        Category::Other => return Err(Rejection::WrongKind("its category (cat) is not that of a session token")),
    };
    match claims.get("sts") {
        None => {}
        Some(Value::String(status)) if status == "active" => {}
        Some(_) => return Err(Rejection::WrongKind("a session that is not active (sts)")),
    }
    match (is_template, accept.template, accept.access_token) {
        (true, true, _) => Ok("template token"),
        (true, false, _) => Err(Rejection::WrongKind(
            "a template token, which outlives its session; accept: [access_token, template] would accept it",
        )),
        (false, _, true) => Ok("session token"),
        (false, _, false) => Err(Rejection::WrongKind("not a template token")),
    }
}

/// Checks the audience: `aud`, or for Cognito's access tokens `client_id`.
pub(super) fn check_audience(spec: &ProviderSpec, claims: &Map<String, Value>) -> Result<(), Rejection> {
    check_audience_where(spec, claims, |_| true)
}

/// Checks the audience as [`check_audience`] does, and that the accepted audience counts on the route.
///
/// Where the audience is not compared (`audience: any`, `authorized_parties`, Cognito's `client_id`), a token that names
/// protected resources of this proxy alone must still name that of the route: a backend could otherwise replay at one
/// resource the tokens that it was sent at another.
pub(super) fn check_bound_audience(
    spec: &ProviderSpec,
    claims: &Map<String, Value>,
    bound: &BoundAudience,
) -> Result<(), Rejection> {
    check_audience_where(spec, claims, |audience| bound.counts(audience))?;
    let mut named = audiences(claims).peekable();
    if named.peek().is_some() && !named.any(|audience| bound.counts(audience)) {
        return Err(Rejection::WrongAudience(shown_audience(claims)));
    }
    Ok(())
}

/// Returns the strings of `aud`, which is a string or an array (RFC 7519 section 4.1.3).
fn audiences(claims: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let aud = match claims.get("aud") {
        Some(Value::Array(many)) => many.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    aud.iter().filter_map(Value::as_str)
}

fn check_audience_where(
    spec: &ProviderSpec,
    claims: &Map<String, Value>,
    counts: impl Fn(&str) -> bool,
) -> Result<(), Rejection> {
    let Audience::OneOf(accepted) = &spec.audience else { return Ok(()) };
    let is_accepted = |value: &str| accepted.iter().any(|name| name == value) && counts(value);
    let is_access =
        claims.get("token_use").and_then(Value::as_str).is_some_and(|usage| usage.eq_ignore_ascii_case("access"));
    if spec.family == Family::Cognito && is_access {
        // A token bound to a resource has `aud` too, but a token of another client is rejected whatever `aud` is.
        return match claims.get("client_id") {
            Some(Value::String(client)) if is_accepted(client) => Ok(()),
            Some(Value::String(client)) => Err(Rejection::WrongAudience(client.chars().take(256).collect())),
            Some(_) | None => {
                Err(Rejection::Claim { claim: "client_id".to_owned(), problem: "is missing or not a string" })
            }
        };
    }
    let is_well_formed = match claims.get("aud") {
        // An array with any other member than a string is rejected.
        Some(Value::Array(many)) => many.iter().all(Value::is_string),
        Some(one) => one.is_string(),
        None => return Err(Rejection::Claim { claim: "aud".to_owned(), problem: "is missing" }),
    };
    if is_well_formed && audiences(claims).any(is_accepted) {
        Ok(())
    } else {
        Err(Rejection::WrongAudience(shown_audience(claims)))
    }
}

/// Formats `aud` for the log, at most 256 characters.
pub(super) fn shown_audience(claims: &Map<String, Value>) -> String {
    claims.get("aud").map_or_else(|| "none".to_owned(), |aud| aud.to_string().chars().take(256).collect())
}

/// Renames the claims of version 2 of Clerk's session tokens, which nest the organization in `o`, to those of
/// version 1, so that a rule or a header works with both.
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
        // Version 1 has the role with its namespace.
        ("org_role", text("rol").map(|role| Value::String(format!("org:{role}")))),
        ("org_permissions", permissions.map(Value::from)),
    ];
    for (name, value) in flat {
        match value {
            Some(value) => claims.insert(name.to_owned(), value),
            // A claim of that name outside the organization must not stand in for one that the organization lacks.
            None => claims.shift_remove(name),
        };
    }
    claims
}

/// Decodes Clerk's permissions: `fea` lists features with their scopes, `per` lists permissions, and `fpm` has one
/// bit mask for each feature of the organization, in which bit n is the n-th permission.
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
