//! The settings of protected resources (RFC 9728): the metadata for OAuth clients, its path, and the audience that
//! binds a token to each resource.

use std::sync::Arc;

use serde_json::json;
use url::Url;

use super::bound_audience::{is_scope, spellings};
use super::check::Check;
use super::origin::is_loopback_name;
use super::{BoundAudience, KeySource, Origin, ProtectedResourceSpec, ProviderSpec};
use crate::config::{self, Config};

/// The path of the metadata documents (RFC 9728 section 3).
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// The resources from the configuration, before the providers are known.
#[derive(Default)]
pub(super) struct WrittenResources {
    default: Option<Named>,
    of_route: Vec<Option<Named>>,
}

#[derive(Clone, PartialEq)]
struct Named {
    at: String,
    url: Url,
    identifier: String,
    scopes: Vec<String>,
}

impl WrittenResources {
    fn each(&self) -> impl Iterator<Item = &Named> {
        self.default.iter().chain(self.of_route.iter().flatten())
    }

    /// Returns the audiences that name a resource.
    pub(super) fn audiences(&self) -> Vec<String> {
        let mut audiences: Vec<String> = self.each().flat_map(|named| spellings(&named.identifier)).collect();
        audiences.sort();
        audiences.dedup();
        audiences
    }
}

/// The resources of a policy, with their documents.
#[derive(Default)]
pub(super) struct Resources {
    default: Option<Arc<ProtectedResourceSpec>>,
    of_route: Vec<Option<Arc<ProtectedResourceSpec>>>,
    all: Option<Arc<[String]>>,
    /// Each document by the path at which it is served.
    pub(super) documents: Vec<(String, Arc<ProtectedResourceSpec>)>,
}

impl Resources {
    /// Returns the audiences that count on a route of the file; `route` is `None` for the default route. Returns `None`
    /// where there is no protected resource at all.
    pub(super) fn bound(&self, route: Option<usize>) -> Option<BoundAudience> {
        let resource = match route {
            Some(index) => self.of_route.get(index).cloned().flatten(),
            None => self.default.clone(),
        };
        self.all.as_ref().map(|all| BoundAudience::new(resource, Arc::clone(all)))
    }
}

impl Check {
    pub(super) fn written_resources(&mut self, config: &Config, public_url: Option<&Origin>) -> WrittenResources {
        let default = config
            .protected_resource
            .as_ref()
            .and_then(|written| self.named("protected_resource", written, public_url.map(Origin::as_str), Some("")));
        let base = public_url
            .map(|origin| origin.as_str().to_owned())
            .or_else(|| default.as_ref().map(|named| named.url.origin().ascii_serialization()));
        let mut of_route = Vec::new();
        for (index, route) in config.routes.iter().enumerate() {
            of_route.push(match &route.protected_resource {
                None => default.clone(),
                Some(None) => None,
                Some(Some(written)) => {
                    let path = route.path.as_deref().and_then(literal_path);
                    self.named(&format!("routes[{index}].protected_resource"), written, base.as_deref(), path)
                }
            });
        }
        WrittenResources { default, of_route }
    }

    fn named(
        &mut self,
        at: &str,
        written: &config::ProtectedResource,
        base: Option<&str>,
        path: Option<&str>,
    ) -> Option<Named> {
        for (index, scope) in written.scopes.iter().enumerate() {
            if !is_scope(scope) {
                self.error(
                    format!("{at}.scopes[{index}]"),
                    format!("\"{scope}\" is not one scope (RFC 6749 section 3.3)"),
                );
            }
        }
        let identifier = match (&written.resource, base, path) {
            (Some(written), ..) => written.clone(),
            (None, Some(base), Some(path)) => format!("{base}{path}"),
            (None, Some(_), None) => {
                self.error(
                    format!("{at}.resource"),
                    "is not known, since the rule's path is no fixed one; write the URL that clients are given",
                );
                return None;
            }
            (None, None, _) => {
                self.error(
                    format!("{at}.resource"),
                    "is not known: set public_url, or write the URL that clients are given, such as https://app.example.com/mcp",
                );
                return None;
            }
        };
        let url = self.ok_or_report(&format!("{at}.resource"), resource_url(&identifier))?;
        Some(Named { at: at.to_owned(), url, identifier, scopes: written.scopes.clone() })
    }

    /// Completes the resources with the providers' issuers.
    pub(super) fn resources(&mut self, written: &WrittenResources, providers: &[Arc<ProviderSpec>]) -> Resources {
        let mut resources = Resources::default();
        if written.each().next().is_none() {
            return resources;
        }
        // A provider without keys of its own, or with a secret, does not issue tokens to OAuth clients.
        let issuers: Vec<&str> = providers
            .iter()
            .filter(|provider| !matches!(provider.keys, KeySource::Secret(_)) && provider.preset != "aws-alb")
            .filter_map(|provider| provider.issuer.as_deref())
            .filter(|issuer| issuer.starts_with("https://") || issuer.starts_with("http://"))
            .collect();
        if issuers.is_empty() && !providers.is_empty() {
            let at = written.each().next().map_or("protected_resource", |named| &named.at);
            self.error(at, "no provider has an issuer at which a client could request a token");
        }
        let mut known: Vec<(&Named, Arc<ProtectedResourceSpec>)> = Vec::new();
        for named in written.each() {
            let path = named.url.path().strip_suffix('/').filter(|path| path.is_empty()).unwrap_or(named.url.path());
            let document_path = format!("{WELL_KNOWN}{path}");
            if let Some((other, _)) = known.iter().find(|(_, spec)| spec.document_path == document_path) {
                if (&other.identifier, &other.scopes) != (&named.identifier, &named.scopes) {
                    self.error(
                        &named.at,
                        format!("differs from {}, and both documents would be at {document_path}", other.at),
                    );
                }
                continue;
            }
            let mut document = json!({
                "resource": named.identifier,
                "authorization_servers": issuers,
                "bearer_methods_supported": ["header"],
            });
            if !named.scopes.is_empty() {
                document["scopes_supported"] = json!(named.scopes);
            }
            let spec = Arc::new(ProtectedResourceSpec {
                identifier: named.identifier.clone(),
                document_url: format!("{}{document_path}", named.url.origin().ascii_serialization()),
                document_path,
                document: document.to_string(),
            });
            resources.documents.push((spec.document_path.clone(), Arc::clone(&spec)));
            known.push((named, spec));
        }
        let spec = |named: &Option<Named>| {
            let named = named.as_ref()?;
            known.iter().find(|(known, _)| known.identifier == named.identifier).map(|(_, spec)| Arc::clone(spec))
        };
        resources.of_route = written.of_route.iter().map(&spec).collect();
        resources.default = spec(&written.default);
        // Clients without the metadata URL look here for a resource with a path, too.
        if let Some(default) = &resources.default
            && resources.documents.iter().all(|(path, _)| path != WELL_KNOWN)
        {
            resources.documents.push((WELL_KNOWN.to_owned(), Arc::clone(default)));
        }
        resources.all = Some(written.audiences().into());
        resources
    }
}

/// Returns the path of a rule without variables, and without `/**` at its end.
fn literal_path(pattern: &str) -> Option<&str> {
    let path = pattern.strip_suffix("/**").unwrap_or(pattern);
    (!path.contains(['*', '{'])).then(|| path.strip_suffix('/').unwrap_or(path))
}

/// Parses the URL of a resource. It is compared as text, so it must be written as clients write it after parsing.
fn resource_url(text: &str) -> Result<Url, String> {
    let url =
        Url::parse(text).map_err(|_| format!("\"{text}\" is not a URL; write it as https://app.example.com/mcp"))?;
    let host = url.host_str().unwrap_or_default();
    if url.scheme() != "https" && !(url.scheme() == "http" && is_loopback_name(host)) {
        return Err(format!(
            "\"{text}\" must begin with https:// (RFC 9728 section 1.2); http:// is for this machine only"
        ));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(format!("\"{text}\" must have no query, fragment or user"));
    }
    let normal = url.as_str();
    if normal != text && normal.strip_suffix('/') != Some(text) {
        return Err(format!("\"{text}\" is not how clients write it; write {normal}"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_of_a_resource_is_written_as_clients_send_it() {
        for text in ["https://a.example", "https://a.example/", "https://a.example/mcp", "http://localhost:8080/mcp"] {
            assert!(resource_url(text).is_ok(), "{text}");
        }
        for text in [
            "a.example",
            "http://a.example/mcp",
            "https://A.example/mcp",
            "https://a.example:443/mcp",
            "https://a.example/a/../mcp",
            "https://a.example/mcp?x=1",
            "https://a.example/mcp#x",
            "https://u@a.example/mcp",
            "urn:mcp",
        ] {
            assert!(resource_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_path_of_a_rule_is_fixed_or_none() {
        for (pattern, expected) in
            [("/mcp", Some("/mcp")), ("/mcp/**", Some("/mcp")), ("/**", Some("")), ("/a/*/b", None), ("/{x}/**", None)]
        {
            assert_eq!(literal_path(pattern), expected, "{pattern}");
        }
    }
}
