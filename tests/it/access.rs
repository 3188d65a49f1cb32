//! Each endpoint of the specification is carried out, refused, and asked for by somebody else, over HTTP, as the
//! tables in `endpoints/access` say; and each error that the specification names for an endpoint is there.

mod scene;
mod table;

use std::fmt::Write;

use self::{
    scene::{Stage, fill, keep},
    table::{Answer, Endpoint, endpoints, read},
};

/// Endpoints that carry nothing out, for lack of what they are for.
const NEVER_CARRIED_OUT: [&str; 7] = [
    "GET /_matrix/media/v3/download/{serverName}/{mediaId}",
    "GET /_matrix/media/v3/download/{serverName}/{mediaId}/{fileName}",
    "GET /_matrix/media/v3/thumbnail/{serverName}/{mediaId}",
    "GET /_matrix/client/v1/auth_metadata",
    "POST /_matrix/client/v3/account/3pid/msisdn/requestToken",
    "POST /_matrix/client/v3/account/password/msisdn/requestToken",
    "POST /_matrix/client/v3/register/msisdn/requestToken",
];

/// Endpoints that refuse nothing.
const ALWAYS_ANSWERED: [&str; 5] = [
    "GET /.well-known/matrix/client",
    "GET /_matrix/client/versions",
    "GET /_matrix/client/v3/login",
    "GET /_matrix/federation/v1/version",
    "GET /_matrix/key/v2/server",
];

fn of_the_specification() -> Vec<String> {
    let missing = read("endpoints/missing.txt");
    let all = read("endpoints/specification.txt");
    let lines = all
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let there = lines.filter(|line| !missing.lines().any(|missing| missing == *line));
    there.map(ToOwned::to_owned).collect()
}

#[test]
fn every_endpoint_is_carried_out_refused_and_asked_for_by_others() {
    let endpoints = endpoints();
    let mut wrong = String::new();
    for name in of_the_specification() {
        let Some(endpoint) = endpoints.iter().find(|endpoint| endpoint.name == name) else {
            writeln!(wrong, "{name}: not there").unwrap();
            continue;
        };
        let others: &[&str] = if endpoint.federates() {
            &["stranger"]
        } else if endpoint.is_open() {
            &["bob", "nobody"]
        } else {
            &["bob"]
        };
        let asks = |request: &table::Request| {
            request.of_endpoint && others.contains(&request.who.as_str())
        };
        for (what, is) in [
            (
                "success",
                NEVER_CARRIED_OUT.contains(&name.as_str())
                    || endpoint.shows(|answer| answer.status < 400),
            ),
            (
                "error",
                ALWAYS_ANSWERED.contains(&name.as_str())
                    || endpoint.shows(|answer| answer.status >= 400),
            ),
            ("request of others", endpoint.requests.iter().any(asks)),
        ] {
            if !is {
                writeln!(wrong, "{name}: no {what}").unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "not in endpoints/access:\n{wrong}");
}

#[test]
fn every_error_of_the_specification_is_shown() {
    let (endpoints, errors) = (endpoints(), read("endpoints/errors.txt"));
    let (mut endpoint, mut wrong): (Option<&Endpoint>, _) = (None, String::new());
    for line in errors
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let Some(error) = line.strip_prefix("  ") else {
            endpoint = endpoints.iter().find(|endpoint| endpoint.name == line);
            continue;
        };
        let Some(endpoint) = endpoint else { continue };
        let error = table::answer(error);
        let shown = endpoint.shows(|answer| *answer == error);
        if shown == endpoint.never.contains(&error) {
            writeln!(wrong, "{}: {error:?}", endpoint.name).unwrap();
        }
    }
    assert!(wrong.is_empty(), "not shown in endpoints/access:\n{wrong}");
}

#[test]
fn tests_that_show_more_are_there() {
    for endpoint in endpoints() {
        for (file, test, _) in endpoint.elsewhere {
            let found = read(&file).contains(&format!("fn {test}("));
            assert!(found, "{}: no test {test} in {file}", endpoint.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_as_they_should_be() {
    let stage = Stage::set().await;
    let mut wrong = String::new();
    for (number, endpoint) in endpoints().into_iter().enumerate() {
        let mut names = stage.scene(&endpoint, number).await;
        for request in &endpoint.requests {
            let answer = stage.ask(request, &names).await;
            let text = answer.body.to_string();
            let has = |part: &String| text.contains(&fill(part, &names));
            let found = said(&answer);
            let right = found == request.answer
                && request.has.iter().all(has)
                && !request.lacks.iter().any(has);
            if !right || keep(request, &answer.body, &mut names).is_none() {
                let name = &endpoint.name;
                writeln!(wrong, "{name}\n  {request:?}\n  {found:?} {text:.300}").unwrap();
            }
        }
        let first = endpoint.requests.iter().find(|request| request.of_endpoint);
        if let Some(first) = first.filter(|_| !endpoint.is_open()) {
            let found = said(&stage.ask_unknown(first, &names).await);
            let refusal = if endpoint.federates() {
                "M_UNAUTHORIZED"
            } else {
                "M_MISSING_TOKEN"
            };
            if found != table::answer(&format!("401 {refusal}")) {
                writeln!(wrong, "{} for nobody: {found:?}", endpoint.name).unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// What is no JSON, or not an object, is named so, where the same request with its own body is carried out.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_not_json_are_named_so() {
    let stage = Stage::set().await;
    let mut wrong = String::new();
    for (number, endpoint) in endpoints().into_iter().enumerate() {
        let takes_json = |request: &&table::Request| {
            let json = request
                .body
                .as_ref()
                .is_some_and(|body| body.starts_with('{'));
            request.of_endpoint && json && request.answer.status == 200
        };
        let Some(request) = endpoint.requests.iter().find(takes_json) else {
            continue;
        };
        let mut names = stage.scene(&endpoint, number).await;
        for before in endpoint
            .requests
            .iter()
            .take_while(|before| !std::ptr::eq(*before, request))
        {
            let answer = stage.ask(before, &names).await;
            keep(before, &answer.body, &mut names);
        }
        // What is no JSON cannot be signed.
        let bodies = [("[1]", "M_BAD_JSON"), ("{\"a\":", "M_NOT_JSON")];
        for (body, errcode) in bodies
            .into_iter()
            .take(if endpoint.federates() { 1 } else { 2 })
        {
            let found = said(&stage.send(request, &names, Some(body.into())).await);
            if found != table::answer(&format!("400 {errcode}")) {
                writeln!(wrong, "{} with {body}: {found:?}", endpoint.name).unwrap();
            }
        }
        // Later endpoints may need what this made.
        stage.ask(request, &names).await;
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn said(answer: &sotto_tests::Answer) -> Answer {
    Answer {
        status: answer.status.as_u16(),
        errcode: answer.body["errcode"].as_str().map(ToOwned::to_owned),
    }
}
