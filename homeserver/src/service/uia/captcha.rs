//! Captchas
//! ([spec](https://spec.matrix.org/v1.19/client-server-api/#google-recaptcha)).

use http::{Method, header::CONTENT_TYPE};
use reqwest::Url;
use serde::Deserialize;
use sotto_federation::egress::GuardedClient;

use crate::config;

/// Checks the solutions of captchas.
pub(crate) struct Captcha {
    settings: config::Captcha,
    client: GuardedClient,
}

impl Captcha {
    pub(crate) fn new(settings: config::Captcha, client: GuardedClient) -> Self {
        Self { settings, client }
    }

    pub(super) fn public_key(&self) -> &str {
        &self.settings.public_key
    }

    /// Whether a solution is right. If that cannot be found out it is not.
    pub(super) async fn is_solved(&self, solution: &str) -> bool {
        self.ask(solution).await.unwrap_or(false)
    }

    async fn ask(&self, solution: &str) -> Option<bool> {
        #[derive(Deserialize)]
        struct Answer {
            success: bool,
        }
        let pairs = [
            ("secret", self.settings.private_key.as_str()),
            ("response", solution),
        ];
        // A form is written as the query of a URL is.
        let form = Url::parse_with_params("https://form.invalid/", pairs).ok()?;
        let request = self.client.request(Method::POST, &self.settings.verify_url);
        let request = request
            .ok()?
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.query()?.to_owned());
        let answer: Answer = request.send().await.ok()?.json().await.ok()?;
        Some(answer.success)
    }
}
