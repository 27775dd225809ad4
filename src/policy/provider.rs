//! The settings of identity providers: the accepted tokens, and the audiences and claims by which they are verified. Their
//! keys are in `key_source`.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::Algorithm;

use super::check::Check;
use super::provider_preset::{DefaultIssuer, DefaultKeys, Family, PRESETS, Preset, derived_issuer, preset_of};
use super::{Claim, Expected, KeySource, OriginPattern, RemoteSpec, Requirement};
use crate::config::{self, Accept, Config};

/// The settings of an identity provider.
#[derive(Clone, Debug, PartialEq)]
pub struct ProviderSpec {
    /// The provider's name in logs and metrics.
    pub name: String,
    /// The name of its preset.
    pub preset: &'static str,
    /// The required `iss` of its tokens, compared exactly; `None` only for the single provider without one.
    pub issuer: Option<String>,
    /// The source of its keys.
    pub keys: KeySource,
    /// The algorithms with which it may sign.
    pub algorithms: Vec<Algorithm>,
    /// The audience that its tokens must have.
    pub audience: Audience,
    /// The accepted values of `azp`.
    pub authorized_parties: AuthorizedParties,
    /// The family of providers whose own claims are checked in addition to the standard ones.
    pub family: Family,
    /// The tolerance for `exp`, `nbf` and `iat`.
    pub clock_skew: Duration,
    /// The claim with the user id.
    pub user_id: Claim,
    /// Whether user ids are forwarded percent-encoded, so that any text may be one.
    pub encoded_user_ids: bool,
    /// The prefix of every user id.
    pub user_prefix: Option<String>,
    /// The claims that every token must have.
    pub require: Requirement,
    /// The users who are allowed.
    pub allow: AllowSpec,
    /// Whether `email` counts without `email_verified: true`.
    pub trust_unverified_email: bool,
    /// The accepted kinds of token.
    pub accept: Kinds,
    /// The maximum time that a verified token is cached, at most until it expires.
    pub cache_ttl: Duration,
    /// The settings by which the provider is asked about a token or a session.
    pub remote: Option<Arc<RemoteSpec>>,
}

/// The audience that a token must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Any: `aud` is not checked, by `audience: any` or because another claim identifies the audience (`azp`).
    Any,
    /// One of these must be in `aud`.
    OneOf(Vec<String>),
}

impl Audience {
    /// The same, or one of these.
    fn or_one_of(self, more: &[String]) -> Self {
        match self {
            Self::Any => Self::Any,
            Self::OneOf(mut names) => {
                names.extend(more.iter().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>());
                Self::OneOf(names)
            }
        }
    }
}

/// The accepted values of `azp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthorizedParties {
    /// Any: it is not checked.
    Any,
    /// It must be present and one of these.
    OneOf(Vec<String>),
    /// If present, it must be the origin of one of the front ends; a native app's token has none.
    Origins(Vec<OriginPattern>),
    /// If present, it must be this client.
    Client(String),
}

/// The accepted kinds of token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    /// Access tokens, and tokens that do not name their kind.
    pub access_token: bool,
    /// ID tokens.
    pub id_token: bool,
    /// Clerk's tokens from a template. They have no session, and stay valid after its end.
    pub template: bool,
}

/// The users who are allowed. If all lists are empty, every user of this issuer is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowSpec {
    /// The user ids, with prefix.
    pub users: Vec<String>,
    /// The e-mail addresses.
    pub emails: Vec<String>,
    /// The domains of e-mail addresses, in lower case.
    pub email_domains: Vec<String>,
}

impl AllowSpec {
    /// Returns whether every user is allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.emails.is_empty() && self.email_domains.is_empty()
    }
}

/// The maximum of `clock_skew` without a warning. Clocks that are set by a time server differ by much less.
const MOST_USUAL_SKEW: Duration = Duration::from_secs(5 * 60);
/// The default of `clock_skew`.
pub(super) const DEFAULT_SKEW: Duration = Duration::from_secs(5);

impl ProviderSpec {
    /// Returns whether these are the settings of a login, by which ID tokens and login sessions are verified, and no
    /// presented token. The configuration can write no such party.
    #[must_use]
    pub const fn is_of_login(&self) -> bool {
        matches!(self.authorized_parties, AuthorizedParties::Client(_))
    }
}

impl Check {
    /// `resources` are the audiences that stand for protected resources; they count beside the provider's own, each on
    /// the routes of its resource.
    pub(super) fn providers(&mut self, config: &Config, resources: &[String]) -> Vec<Arc<ProviderSpec>> {
        let mut out: Vec<Arc<ProviderSpec>> = Vec::new();
        for (index, provider) in config.providers.iter().enumerate() {
            let at = format!("providers[{index}]");
            let Some(spec) = self.provider(&at, config, provider, resources) else { continue };
            if out.iter().any(|other| other.name == spec.name) {
                self.error(
                    format!("{at}.name"),
                    format!("\"{}\" is taken by another provider; give each its own name", spec.name),
                );
            }
            // A load balancer's tokens have the issuer of the provider behind it, and are told apart by their signer.
            let is_balancer = |spec: &ProviderSpec| spec.family == Family::AwsAlb;
            let is_same =
                |other: &Arc<ProviderSpec>| other.issuer == spec.issuer && is_balancer(other) == is_balancer(&spec);
            if spec.issuer.is_some() && out.iter().any(is_same) {
                self.error(
                    format!("{at}.issuer"),
                    "another provider has the same issuer; a token could not tell which is meant",
                );
            }
            let asked = |spec: &ProviderSpec| spec.remote.as_ref().is_some_and(|remote| remote.verifies_opaque_tokens);
            if asked(&spec)
                && let Some(other) = out.iter().find(|other| asked(other))
            {
                self.error(
                    format!("{at}.remote.mode"),
                    format!("an opaque token goes to one provider, and \"{}\" has mode: instead already", other.name),
                );
            }
            // An opaque token names no issuer, and is sent to the one provider that is asked.
            if spec.issuer.is_none() && config.providers.len() > 1 && spec.keys != KeySource::Introspection {
                self.error(&at, "has no issuer, and there are several providers; only `iss` tells their tokens apart");
            }
            out.push(Arc::new(spec));
        }
        if out.len() > 1 && !config.shared_user_ids {
            self.user_prefixes(&out);
        }
        out
    }

    /// Requires prefixes with several providers, so that none can name a user of another.
    fn user_prefixes(&mut self, providers: &[Arc<ProviderSpec>]) {
        for (index, provider) in providers.iter().enumerate() {
            let at = format!("providers[{index}]");
            let Some(prefix) = provider.user_prefix.as_deref().filter(|prefix| !prefix.is_empty()) else {
                self.error(at, "has no user_prefix: anyone who runs one issuer could be any user of the other. Give each a user_prefix,\nor write `shared_user_ids: true` if they share one set of users");
                continue;
            };
            let clash = providers[..index]
                .iter()
                .filter_map(|other| other.user_prefix.as_deref())
                .find(|other| other.starts_with(prefix) || prefix.starts_with(other));
            if let Some(other) = clash {
                self.error(format!("{at}.user_prefix"), format!("\"{prefix}\" and \"{other}\" overlap, so one user id could belong to either; end both with a separator such as `:`"));
            }
        }
    }

    fn provider(
        &mut self,
        at: &str,
        config: &Config,
        provider: &config::Provider,
        resources: &[String],
    ) -> Option<ProviderSpec> {
        let preset = self.preset(at, provider)?;
        let name = provider.name.clone().unwrap_or_else(|| preset.name.to_owned());
        let before = self.error_count();
        let issuer = self.issuer(at, provider, preset);
        // If the values it is derived from are wrong, that is reported already.
        if preset.keys.need_issuer() && issuer.is_none() && self.error_count() == before {
            let keys = preset.issuer_keys();
            let instead = if keys.is_empty() { String::new() } else { format!(",\nor {}", keys.join(" and ")) };
            self.error(
                at,
                format!(
                    "has no issuer; write the `iss` of its tokens, exactly: issuer: https://issuer.example.com{instead}"
                ),
            );
        }
        let region = self.signer_region(at, config, provider, preset);
        let keys = match preset.keys {
            DefaultKeys::ById => self.keys_by_id(at, provider, region),
            _ => self.keys(at, provider, preset, issuer.as_deref()),
        };
        let algorithms = self.algorithms(at, provider, preset);
        let remote = self.remote(at, provider, preset, issuer.as_deref());
        let authorized_parties = self.parties(at, config, provider, preset, &name);
        let signs_in = is_login_provider(config, &name);
        let audience = if provider.audience.is_none() && preset.audience.is_none() && !resources.is_empty() {
            // Fixed otherwise where it is: by `azp`.
            let is_fixed = provider.authorized_parties.is_some() || preset.quirks.azp_is_page_origin;
            Some(if is_fixed { Audience::Any } else { Audience::OneOf(Vec::new()) })
        } else {
            self.audience(at, provider, preset, &name, keys.as_ref(), signs_in)
        };
        let audience = audience.map(|audience| audience.or_one_of(resources));
        let user_id = self.user_id(at, provider, preset);
        if let Some(skew) = provider.clock_skew.filter(|skew| skew.0 > MOST_USUAL_SKEW) {
            self.warn_at(
                format!("{at}.clock_skew"),
                format!(
                    "tokens are accepted for {skew} after they have ended; write at most 5m, and set the clock of this machine by NTP"
                ),
            );
        }
        if let Some(prefix) = &provider.user_prefix
            && !prefix.bytes().all(|b| (0x21..=0x7e).contains(&b))
        {
            self.error(format!("{at}.user_prefix"), "must be visible ASCII, since it stands in a header");
        }
        let require = self.required_claims(at, provider, preset);
        self.allowed(at, &provider.allow);
        let accept = self.kinds(at, provider, preset);
        Some(ProviderSpec {
            name,
            preset: preset.name,
            family: preset.family,
            issuer,
            keys: keys?,
            algorithms,
            audience: audience?,
            authorized_parties,
            remote: remote.map(Arc::new),
            cache_ttl: provider.cache_ttl.map_or(Duration::from_secs(300), |time| time.0),
            clock_skew: provider.clock_skew.map_or(DEFAULT_SKEW, |time| time.0),
            user_id: user_id?,
            encoded_user_ids: config.identity.headers.values().any(|header| header.claim == "sub")
                && config.identity.headers.values().all(|header| header.claim != "sub" || header.encode.is_some()),
            user_prefix: provider.user_prefix.clone().filter(|prefix| !prefix.is_empty()),
            require,
            allow: AllowSpec {
                users: provider.allow.users.clone(),
                emails: provider.allow.emails.clone(),
                email_domains: provider.allow.email_domains.iter().map(|domain| domain.to_ascii_lowercase()).collect(),
            },
            trust_unverified_email: provider.trust_unverified_email,
            accept,
        })
    }

    fn user_id(&mut self, at: &str, provider: &config::Provider, preset: &Preset) -> Option<Claim> {
        let user_id = match provider.user_id.as_deref() {
            // `sub` is the raw claim here: this key is what defines the user id.
            None | Some("sub") => Some(Claim::Name("sub".to_owned())),
            Some(text) => self.ok_or_report(&format!("{at}.user_id"), Claim::parse(text)),
        };
        if let Some(claim) = &user_id {
            self.warn_of_user_id(at, claim, provider, preset);
        }
        user_id
    }

    /// Returns the claims that every token must have: those of `require`, the preset's, and the signer.
    fn required_claims(&mut self, at: &str, provider: &config::Provider, preset: &Preset) -> Requirement {
        let mut require = self.requirement(&format!("{at}.require"), &provider.require, None);
        if let Some((claim, value)) = preset.required_claim.filter(|(claim, _)| !provider.require.contains_key(*claim))
        {
            require.claims.push((Claim::Name(claim.to_owned()), vec![Expected::Value(value.into())]));
        }
        if let Some(signers) = &provider.signer {
            let signers = signers.0.iter().map(|signer| Expected::Value(signer.as_str().into())).collect();
            require.claims.push((Claim::Name("signer".to_owned()), signers));
        }
        require
    }

    /// Returns the accepted kinds of token.
    fn kinds(&mut self, at: &str, provider: &config::Provider, preset: &Preset) -> Kinds {
        let usual = [preset.accept];
        let accept = provider.accept.as_deref().unwrap_or(&usual);
        if accept.contains(&Accept::Template) && !preset.quirks.has_template_tokens {
            self.error(format!("{at}.accept"), "template is a kind of Clerk's tokens");
        }
        if accept.is_empty() {
            self.error(format!("{at}.accept"), "is empty: no token could be accepted");
        }
        Kinds {
            access_token: accept.contains(&Accept::AccessToken),
            id_token: accept.contains(&Accept::IdToken),
            template: accept.contains(&Accept::Template),
        }
    }

    /// Warns of a user id claim that users can change: with it one user could become another.
    fn warn_of_user_id(&mut self, at: &str, claim: &Claim, provider: &config::Provider, preset: &Preset) {
        // In Keycloak an administrator decides whether users may change theirs, and by default they may not.
        let is_chosen = claim.is_chosen_by_users() && !preset.quirks.names_are_fixed;
        let path = format!("{at}.user_id");
        if claim.is_written_by_users() {
            self.warn_at(path, format!("users can write the claim {claim} themselves, so anyone can be any user"));
        } else if is_chosen {
            self.warn_at(path, format!(
                "{claim} is neither unique nor fixed (OpenID Connect Core section 5.7), so one user may become another; sub is both"
            ));
        } else if claim.is_email() && provider.trust_unverified_email {
            self.warn_at(
                path,
                "email with trust_unverified_email: anyone who enters another user's address at the provider becomes that user, unless the provider itself verifies addresses",
            );
        }
    }

    /// Rejects members of `allow` that match no user.
    fn allowed(&mut self, at: &str, allow: &config::Allow) {
        for (key, listed) in
            [("users", &allow.users), ("emails", &allow.emails), ("email_domains", &allow.email_domains)]
        {
            for (index, member) in listed.iter().enumerate() {
                let path = format!("{at}.allow.{key}[{index}]");
                match key {
                    _ if member.trim().is_empty() => self.error(path, "is empty: it lets nobody in"),
                    "emails" if !member.contains('@') => {
                        self.error(path, format!("\"{member}\" is not an e-mail address; a user id goes into users"));
                    }
                    "email_domains" if member.contains('@') => {
                        self.error(path, format!("\"{member}\" is not a domain; write example.com"));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Returns the configured issuer, or the one derived from other keys of the provider.
    fn issuer(&mut self, at: &str, provider: &config::Provider, preset: &Preset) -> Option<String> {
        let written = provider.issuer.clone().filter(|issuer| !issuer.is_empty());
        if written.as_ref().is_some_and(|issuer| issuer.contains(['{', '}'])) {
            // Entra's discovery document for all tenants has one, and no token does.
            self.error(
                format!("{at}.issuer"),
                "holds a placeholder, and a token names its tenant there; write the issuer of one tenant, and a provider for each tenant (Entra: preset: entra, tenant: …)",
            );
        }
        if let Some(issuer) = written.as_deref().and_then(without_discovery_path) {
            self.error(
                format!("{at}.issuer"),
                format!("is the address of the discovery document; the issuer is the part before it: {issuer}"),
            );
            return Some(issuer.to_owned());
        }
        let derived = match derived_issuer(preset, provider) {
            Ok(derived) => derived,
            Err((key, message)) => {
                self.error(format!("{at}.{key}"), message);
                return written;
            }
        };
        if let (Some(written), Some(derived)) = (&written, &derived)
            && written != derived
        {
            let key = preset.issuer_keys().join(" and ");
            self.error(format!("{at}.issuer"), format!("{key} says the issuer is {derived}; keep one of the two"));
        }
        if let (Some((end, warning)), Some(issuer)) = (preset.quirks.issuer_end, &written)
            && !issuer.ends_with(end)
        {
            self.warn_at(format!("{at}.issuer"), warning);
        }
        let fixed = match preset.issuer {
            DefaultIssuer::Fixed(issuer) => Some(issuer.to_owned()),
            DefaultIssuer::None | DefaultIssuer::Derived { .. } => None,
        };
        written.or(derived).or(fixed)
    }

    fn parties(
        &mut self,
        at: &str,
        config: &Config,
        provider: &config::Provider,
        preset: &Preset,
        name: &str,
    ) -> AuthorizedParties {
        match &provider.authorized_parties {
            Some(parties) if parties.is_empty() => {
                self.error(
                    format!("{at}.authorized_parties"),
                    "is empty: no token could be accepted; leave it out, or name the parties",
                );
                AuthorizedParties::Any
            }
            Some(parties) if parties.iter().any(|party| party.trim().is_empty()) => {
                self.error(format!("{at}.authorized_parties"), "holds an empty member; name the parties");
                AuthorizedParties::Any
            }
            Some(parties) => {
                if let Some(instead) = preset.quirks.instead_of_azp {
                    self.warn_at(
                        format!("{at}.authorized_parties"),
                        format!("tokens of preset {} have no azp, so every one is refused; {instead}", preset.name),
                    );
                }
                AuthorizedParties::OneOf(parties.clone())
            }
            None if preset.quirks.azp_is_page_origin && config.origins.is_empty() => {
                self.warn_at(
                    at,
                    format!(
                        "provider {name}: no origins, so tokens made for any page of this Clerk application are accepted; write origins"
                    ),
                );
                AuthorizedParties::Any
            }
            None if preset.quirks.azp_is_page_origin => {
                // Errors of an origin are reported at its own key.
                AuthorizedParties::Origins(
                    config.origins.iter().filter_map(|text| OriginPattern::parse(text).ok()).collect(),
                )
            }
            None => AuthorizedParties::Any,
        }
    }

    fn preset(&mut self, at: &str, provider: &config::Provider) -> Option<&'static Preset> {
        let name = provider.preset.as_deref().unwrap_or("oidc");
        let found = preset_of(provider);
        if found.is_none() {
            let known: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
            let hint = config::nearest(name, known.iter().copied())
                .map_or(String::new(), |near| format!(". Did you mean {near}?"));
            self.error(format!("{at}.preset"), format!("\"{name}\" is not one of {}{hint}", known.join(", ")));
        }
        found
    }

    /// Reads the audience, which must be configured (docs/contract.md section 5).
    fn audience(
        &mut self,
        at: &str,
        provider: &config::Provider,
        preset: &Preset,
        name: &str,
        keys: Option<&KeySource>,
        signs_in: bool,
    ) -> Option<Audience> {
        match &provider.audience {
            Some(audience) if audience.is("any") => {
                self.warn_at(
                    format!("{at}.audience"),
                    format!(
                        "any accepts tokens made for every application of this issuer (provider {name}); name the audience of this application"
                    ),
                );
                Some(Audience::Any)
            }
            Some(audience) if audience.0.is_empty() || audience.0.iter().any(|name| name.trim().is_empty()) => {
                self.error(
                    format!("{at}.audience"),
                    "is empty; name whom the tokens are for, or write `audience: any`",
                );
                None
            }
            Some(audience) => Some(Audience::OneOf(audience.0.clone())),
            None if provider.authorized_parties.is_some() => Some(Audience::Any),
            // The provider is used for sign-in, and no Bearer token of it is accepted.
            None if signs_in => Some(Audience::OneOf(Vec::new())),
            None if preset.audience.is_some() => {
                Some(Audience::OneOf(preset.audience.into_iter().map(str::to_owned).collect()))
            }
            // The signer is one load balancer, and its client signs in for everything behind it.
            None if preset.family == Family::AwsAlb => Some(Audience::Any),
            // The issuer belongs to one application, and `azp` names the page that requested the token.
            None if preset.quirks.azp_is_page_origin => Some(Audience::Any),
            None if matches!(keys, Some(KeySource::Secret(_) | KeySource::Pem(_))) => {
                self.warn_at(
                    at,
                    format!(
                        "provider {name}: no audience; every token signed with this key is accepted; write audience"
                    ),
                );
                Some(Audience::Any)
            }
            // Such keys need no audience. Why there are none is reported already.
            None if keys.is_none() && names_own_key(provider, preset) => None,
            None => {
                self.error(at, format!("any token of this issuer would be accepted, also one made for another application;\nset {at}.audience, or write `audience: any`"));
                None
            }
        }
    }
}

/// Returns whether the provider has a key of its own, a secret or one in a PEM file, or should have one.
fn names_own_key(provider: &config::Provider, preset: &Preset) -> bool {
    let is_written = [&provider.secret, &provider.secret_file, &provider.jwks.pem_file].iter().any(|key| key.is_some());
    is_written || preset.keys == DefaultKeys::Secret
}

/// Returns the part before the path of a discovery document, with which no issuer ends.
fn without_discovery_path(issuer: &str) -> Option<&str> {
    let text = issuer.trim_end_matches('/');
    ["openid-configuration", "oauth-authorization-server"]
        .iter()
        .find_map(|document| text.strip_suffix(document)?.strip_suffix("/.well-known/"))
}

/// Returns whether people sign in at this provider of the configuration.
fn is_login_provider(config: &Config, name: &str) -> bool {
    let logins = config.browser.login.as_ref().map_or(&[][..], |logins| &logins.0);
    logins.iter().any(|login| match &login.provider {
        Some(provider) => provider == name,
        None => config.providers.len() == 1,
    })
}
