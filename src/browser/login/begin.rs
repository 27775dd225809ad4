//! `GET /.vestibule/login`: redirects the browser to the provider, or shows a page that lists the providers.

use hyper::StatusCode;

use super::{LOGIN, SignInRequest, pages, parameters};
use crate::auth::login::{Login, LoginCookie, LoginError, LoginState, local_path};
use crate::http::{Answer, OwnRequest, Refusal};
use crate::policy::LoginPrompt;
use crate::random::NoRandomNumbers;
use crate::telemetry::AccessLine;

/// Serves the endpoint.
pub(super) async fn serve(
    request: &mut SignInRequest<'_>,
    own: &mut OwnRequest,
    line: &mut AccessLine,
) -> Result<Answer, Refusal> {
    let names = ["return_path", "provider", "prompt", "fragment"];
    let Some([return_path, provider, prompt, fragment]) = parameters(own.head().uri.query(), names) else {
        return Ok(request.page(&pages::bad_request()));
    };
    let return_path = local_path(return_path.as_deref().unwrap_or("/")).to_owned();
    let prompt = match prompt.as_deref() {
        None => None,
        Some(name) => match LoginPrompt::named(name).filter(|prompt| *prompt != LoginPrompt::Consent) {
            Some(prompt) => Some(prompt),
            None => return Ok(request.page(&pages::bad_request())),
        },
    };
    let login = match &provider {
        None => request.only_login(),
        Some(name) => match request.logins.get(name) {
            Some(login) => Some(std::sync::Arc::clone(login)),
            None => return Ok(request.page(&pages::bad_request())),
        },
    };
    if !own.can_have_session(&request.runtime.policy) {
        return Err(Refusal::needs_https());
    }
    let session = request.valid_session(own).await?;
    if let Some(session) = &session {
        line.user = Some(session.identity().user_id().to_owned());
    }
    if session.is_some() && prompt.is_none() && provider.is_none() {
        return Ok(request.redirect(StatusCode::SEE_OTHER, &return_path));
    }
    let now = request.now;
    if session.is_none() && request.cookie.as_mut().is_some_and(|cookie| cookie.note_begin(now)) {
        tracing::warn!(
            "session cookie not kept: a browser came back three times within a minute right after signing in"
        );
        let mut answer = request.page(&pages::cookie_not_kept());
        request.set_login_cookie(&mut answer);
        return Ok(answer);
    }
    let Some(login) = login else {
        let last = request.cookie.as_ref().and_then(|cookie| cookie.provider.clone());
        let choices: Vec<pages::Choice> = (request.logins.iter())
            .map(|login| pages::Choice {
                label: login.spec.label.clone(),
                target: target(&return_path, Some(&login.spec.name), prompt),
                is_last: last.as_ref() == Some(&login.spec.name),
            })
            .collect();
        return Ok(request.page(&pages::chooser(&choices)));
    };
    if login.spec.keep_fragment && fragment.is_none() && !return_path.contains('#') {
        return Ok(pages::keep_fragment(&target(&return_path, Some(&login.spec.name), prompt)));
    }
    let with_fragment = match fragment.as_deref().filter(|fragment| !fragment.is_empty()) {
        Some(fragment) => format!("{return_path}#{fragment}"),
        None => return_path.clone(),
    };
    // A fragment that makes the return path too long is dropped.
    let checked = local_path(&with_fragment);
    let return_path = if checked == "/" { return_path } else { checked.to_owned() };
    Ok(request.redirect_to_provider(&login, &return_path, 0, prompt).await)
}

/// Returns the endpoint's URL with these parameters.
fn target(return_path: &str, provider: Option<&str>, prompt: Option<LoginPrompt>) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("return_path", return_path);
    if let Some(provider) = provider {
        query.append_pair("provider", provider);
    }
    if let Some(prompt) = prompt {
        query.append_pair("prompt", prompt.name());
    }
    format!("{LOGIN}?{}", query.finish())
}

impl SignInRequest<'_> {
    /// Redirects the browser to the provider, for the first time or again.
    pub(super) async fn redirect_to_provider(
        &mut self,
        login: &Login,
        return_path: &str,
        tries: u8,
        prompt: Option<LoginPrompt>,
    ) -> Answer {
        let now = self.now;
        if self.cookie.as_ref().is_none_or(|cookie| !cookie.outlives_a_state(now)) {
            let former = self.cookie.take();
            self.cookie = LoginCookie::new(now).map(|cookie| match former {
                Some(former) => cookie.succeeding(former),
                None => cookie,
            });
        }
        let url = match self.authorization_url(login, return_path, tries, prompt).await {
            // A provider without account selection can show its sign-in page.
            Err(LoginError::PushRefused(_)) if prompt == Some(LoginPrompt::SelectAccount) => {
                self.authorization_url(login, return_path, tries, Some(LoginPrompt::Login)).await
            }
            other => other,
        };
        match url {
            Ok(url) => self.redirect(StatusCode::FOUND, &url),
            Err(error) => self.failure(login, &error),
        }
    }

    async fn authorization_url(
        &self,
        login: &Login,
        return_path: &str,
        tries: u8,
        prompt: Option<LoginPrompt>,
    ) -> Result<String, LoginError> {
        let keys = &self.logins.keys;
        let provider = (login.spec.name.as_str(), login.spec.provider_spec.issuer.as_deref());
        let state = self
            .cookie
            .as_ref()
            .and_then(|cookie| LoginState::new(keys, cookie, provider, return_path, (tries, prompt), self.now));
        let (Some(cookie), Some(state)) = (&self.cookie, state) else {
            return Err(NoRandomNumbers.into());
        };
        login.authorization_url(keys, cookie, &state, self.client.limited_address()).await
    }
}
