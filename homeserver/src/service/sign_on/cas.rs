//! The protocol of [CAS](https://apereo.github.io/cas/development/protocol/CAS-Protocol-Specification.html).

use http::Method;
use reqwest::Url;
use sotto_federation::egress::GuardedClient;

use super::SignOnError;
use crate::config::Cas;

/// The longest answer that is read, in bytes.
const LONGEST: usize = 64 * 1024;

/// Where users log in who shall come back to `service`.
pub(super) fn login_url(cas: &Cas, service: &str) -> Option<Url> {
    let url = format!("{}/login", cas.server_url.trim_end_matches('/'));
    Url::parse_with_params(&url, [("service", service)]).ok()
}

/// Whom a ticket was given to.
pub(super) async fn validate(
    cas: &Cas,
    client: &GuardedClient,
    service: &str,
    ticket: &str,
) -> Result<String, SignOnError> {
    let url = format!("{}/proxyValidate", cas.server_url.trim_end_matches('/'));
    let query = [("ticket", ticket), ("service", service)];
    let url = Url::parse_with_params(&url, query).map_err(|_| SignOnError::Unreachable)?;
    let unreachable = |_| SignOnError::Unreachable;
    let request = client.request(Method::GET, url.as_str());
    let request = request.map_err(|_| SignOnError::Unreachable)?;
    let mut answer = request.send().await.map_err(unreachable)?;
    if !answer.status().is_success() {
        return Err(SignOnError::Unreachable);
    }
    let mut text = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(unreachable)? {
        text.extend_from_slice(&piece);
        if text.len() > LONGEST {
            return Err(SignOnError::Unreachable);
        }
    }
    let text = String::from_utf8(text).map_err(|_| SignOnError::Unreachable)?;
    user(&text).ok_or(SignOnError::Unknown)
}

/// The user that an answer names: the text of the one element that is `serviceResponse`,
/// `authenticationSuccess`, `user`, in this order. Whatever this small part of XML does not need is refused, and
/// so is an answer that names two.
fn user(answer: &str) -> Option<String> {
    let mut path: Vec<&str> = Vec::new();
    let mut user = None;
    let mut rest = answer;
    while let Some((before, tag)) = rest.split_once('<') {
        let here = path.as_slice() == ["serviceResponse", "authenticationSuccess", "user"];
        if let Some(comment) = tag.strip_prefix("!--") {
            if here {
                return None;
            }
            rest = comment.split_once("-->")?.1;
            continue;
        }
        if let Some(data) = tag.strip_prefix("![CDATA[") {
            if here {
                return None;
            }
            rest = data.split_once("]]>")?.1;
            continue;
        }
        // Declarations of types can change what everything else means.
        if tag.starts_with('!') {
            return None;
        }
        let (tag, after) = end_of_tag(tag)?;
        rest = after;
        if tag.starts_with('?') {
            continue;
        }
        if let Some(name) = tag.strip_prefix('/') {
            if path.pop()? != local_name(name) {
                return None;
            }
            if here && user.replace(text(before)?).is_some() {
                return None;
            }
            continue;
        }
        if here {
            return None;
        }
        if !tag.ends_with('/') {
            path.push(local_name(tag));
        }
    }
    user.filter(|user| path.is_empty() && !user.is_empty())
}

/// Splits after a tag; a `>` in an attribute does not end it.
fn end_of_tag(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, '>') => return Some((text.get(..at)?, text.get(at + 1..)?)),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            _ => {}
        }
    }
    None
}

/// The name of an element without its prefix.
fn local_name(tag: &str) -> &str {
    let end = tag.find(|c: char| c.is_whitespace() || c == '/');
    let name = tag.split_at(end.unwrap_or(tag.len())).0;
    name.rsplit(':').next().unwrap_or(name)
}

fn text(raw: &str) -> Option<String> {
    let mut parts = raw.trim().split('&');
    let mut text = parts.next()?.to_owned();
    for part in parts {
        let (entity, after) = part.split_once(';')?;
        text.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => {
                let number = entity.strip_prefix('#')?;
                let code = match number.strip_prefix('x') {
                    Some(digits) => u32::from_str_radix(digits, 16).ok()?,
                    None => number.parse().ok()?,
                };
                char::from_u32(code)?
            }
        });
        text.push_str(after);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::user;

    fn answer(inside: &str) -> String {
        format!(
            "<?xml version='1.0'?>\n<cas:serviceResponse xmlns:cas='http://www.yale.edu/tp/cas'>\n\
             <cas:authenticationSuccess>{inside}</cas:authenticationSuccess></cas:serviceResponse>"
        )
    }

    #[test]
    fn the_user_is_found() {
        for (inside, expected) in [
            (
                "\n<cas:user>alice</cas:user><cas:attributes></cas:attributes>",
                Some("alice"),
            ),
            (
                "<cas:user a='>'> a&amp;b&#x21; </cas:user><x/>",
                Some("a&b!"),
            ),
            (
                "<cas:proxies><cas:user>mallory</cas:user></cas:proxies>",
                None,
            ),
            (
                "<cas:user>alice</cas:user><cas:user>mallory</cas:user>",
                None,
            ),
            ("<cas:user>alice<!-- -->mallory</cas:user>", None),
            ("<cas:user>alice<b/></cas:user>", None),
            (
                "<a><![CDATA[<cas:user>mallory</cas:user>]]></a><cas:user>alice</cas:user>",
                Some("alice"),
            ),
            (
                "<!-- <cas:user>mallory</cas:user> --><cas:user>alice</cas:user>",
                Some("alice"),
            ),
            ("<cas:user></cas:user>", None),
            ("<cas:user>&unknown;</cas:user>", None),
            ("<cas:user>alice</cas:other>", None),
        ] {
            assert_eq!(user(&answer(inside)).as_deref(), expected, "{inside}");
        }
        let failure = "<serviceResponse><authenticationFailure code='INVALID_TICKET'>no \
                       </authenticationFailure></serviceResponse>";
        assert_eq!(user(failure), None);
        let declared = format!(
            "<!DOCTYPE x [<!ENTITY a 'b'>]>{}",
            answer("<user>alice</user>")
        );
        assert_eq!(user(&declared), None);
    }

    proptest! {
        #[test]
        fn nonsense_is_no_panic(text in "(<|>|/|!|--|\\[CDATA\\[|\\]\\]>|\\?|&|#|;|'|user|a:|é| )*") {
            user(&text);
        }
    }
}
