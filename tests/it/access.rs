//! Each endpoint of `endpoints/access.txt` is carried out, refused, and asked for by somebody else, over HTTP; and
//! every endpoint of the chapters that it covers is there.

use std::{collections::BTreeMap, fmt::Write};

use http::Method;
use serde_json::json;
use sotto_tests::{TestServer, User, escape};

/// The requests and what they are answered; how to read them stands at its top.
const REQUESTS: &str = include_str!("endpoints/access.txt");
const SPECIFICATION: &str = include_str!("endpoints/specification.txt");
/// Endpoints that nobody has to be known for.
const OPEN: [&str; 8] = [
    "GET /_matrix/client/v3/profile/{userId}/{keyName}",
    "GET /_matrix/client/v3/profile/{userId}",
    "GET /_matrix/client/v3/directory/room/{roomAlias}",
    "GET /_matrix/client/v3/directory/list/room/{roomId}",
    "GET /_matrix/client/v3/publicRooms",
    "GET /_matrix/client/v1/room_summary/{roomIdOrAlias}",
    "GET /_matrix/client/v3/presence/{userId}/status",
    "GET /_matrix/client/v3/voip/turnServer",
];

/// Endpoints that application services alone can use: `appservices/` tests them.
const OF_SERVICES: [&str; 1] =
    ["PUT /_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}"];

/// One request.
#[derive(Debug)]
struct Request {
    who: String,
    method: Method,
    path: String,
    body: Option<String>,
    /// Whether it is of the endpoint, and not only made before.
    of_endpoint: bool,
    status: u16,
    errcode: Option<String>,
    /// What the answer must have, and what not.
    has: Vec<String>,
    lacks: Vec<String>,
    /// A field of the answer that later requests need.
    keep: Option<String>,
}

/// An endpoint with its requests.
struct Endpoint {
    name: String,
    requests: Vec<Request>,
}

fn endpoints() -> Vec<Endpoint> {
    let mut found: Vec<Endpoint> = Vec::new();
    for line in REQUESTS
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        match line.strip_prefix("  ") {
            None => found.push(Endpoint {
                name: line.to_owned(),
                requests: Vec::new(),
            }),
            Some(line) => {
                let endpoint = found.last_mut().unwrap();
                let request = request(&endpoint.name, line);
                endpoint.requests.push(request);
            }
        }
    }
    found
}

/// Reads `who [METHOD path | values of the path] [?query] [{body}] => status [errcode] [has …] [lacks …] [keep …]`.
fn request(endpoint: &str, line: &str) -> Request {
    let (asked, answered) = line.rsplit_once(" => ").unwrap_or_else(|| panic!("{line}"));
    let (asked, body) = match asked.find(" {") {
        Some(at) => (&asked[..at], Some(asked[at + 1..].to_owned())),
        None => (asked, None),
    };
    let mut words = asked.split_whitespace().peekable();
    let who = words.next().unwrap().to_owned();
    let named = words.peek().and_then(|word| word.parse::<Method>().ok());
    let named = named.filter(|method| ["GET", "PUT", "POST", "DELETE"].contains(&method.as_str()));
    let of_endpoint = named.is_none();
    let (method, mut path) = if let Some(method) = named {
        (method, words.nth(1).unwrap().to_owned())
    } else {
        let (method, template) = endpoint.split_once(' ').unwrap();
        let fill = |segment: &str| match segment.strip_prefix('{') {
            Some(_) => words.next().unwrap_or_else(|| panic!("{line}")).to_owned(),
            None => segment.to_owned(),
        };
        let path = template.split('/').map(fill).collect::<Vec<_>>().join("/");
        (method.parse().unwrap(), path)
    };
    path.extend(words);
    let mut answered = answered.split_whitespace();
    let status = answered.next().unwrap().parse().unwrap();
    let mut request = Request {
        who,
        method,
        path,
        body,
        of_endpoint,
        status,
        errcode: None,
        has: Vec::new(),
        lacks: Vec::new(),
        keep: None,
    };
    while let Some(word) = answered.next() {
        let mut next = || answered.next().unwrap().to_owned();
        match word {
            "has" => request.has.push(next()),
            "lacks" => request.lacks.push(next()),
            "keep" => request.keep = Some(next()),
            errcode => request.errcode = Some(errcode.to_owned()),
        }
    }
    request
}

#[test]
fn every_endpoint_of_the_chapters_is_carried_out_refused_and_asked_for_by_others() {
    let endpoints = endpoints();
    let missing = include_str!("endpoints/missing.txt");
    let chapters: Vec<_> = REQUESTS
        .lines()
        .filter_map(|line| line.strip_prefix("# Chapter: "))
        .collect();
    assert!(chapters.len() > 5);
    let mut chapter = "";
    let mut wrong = String::new();
    for line in SPECIFICATION.lines().filter(|line| !line.is_empty()) {
        if let Some(name) = line.strip_prefix("# ") {
            chapter = name;
            continue;
        }
        let elsewhere =
            OF_SERVICES.contains(&line) || missing.lines().any(|missing| missing == line);
        if !chapters.contains(&chapter) || elsewhere {
            continue;
        }
        let found = endpoints.iter().find(|endpoint| endpoint.name == line);
        let requests = found
            .map(|endpoint| endpoint.requests.as_slice())
            .unwrap_or_default();
        let any = |wanted: fn(&Request) -> bool| {
            requests
                .iter()
                .any(|request| request.of_endpoint && wanted(request))
        };
        for (what, is) in [
            ("success", any(|request| request.status == 200)),
            ("error", any(|request| request.status >= 400)),
            (
                "request of another user",
                any(|request| request.who == "bob"),
            ),
        ] {
            if !is {
                writeln!(wrong, "{line}: no {what}").unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "not in endpoints/access.txt:\n{wrong}");
}

/// What stands for what in the requests.
type Names = BTreeMap<String, String>;

fn fill(text: &str, names: &Names) -> String {
    // Longer names first: one may begin with another.
    names
        .iter()
        .rev()
        .fold(text.to_owned(), |text, (name, value)| {
            text.replace(&format!("${name}"), value)
        })
}

fn fill_path(path: &str, names: &Names) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let segments = path.split('/').map(|segment| escape(&fill(segment, names)));
    let path = segments.collect::<Vec<_>>().join("/");
    let escaped = names
        .iter()
        .map(|(name, value)| (name.clone(), escape(value)))
        .collect();
    format!("{path}?{}", fill(query, &escaped))
}

#[tokio::test]
async fn requests_are_answered_as_they_should_be() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mut wrong = String::new();
    for (number, endpoint) in endpoints().into_iter().enumerate() {
        let mut names = scene(&alice, &bob, number).await;
        for request in &endpoint.requests {
            let user = match request.who.as_str() {
                "alice" => alice.clone(),
                "bob" => bob.clone(),
                _ => alice.with_token(""),
            };
            if let Err(found) = carry_out(&user, request, &mut names).await {
                writeln!(wrong, "{}\n  {request:?}\n  {found}", endpoint.name).unwrap();
            }
        }
        let first = endpoint.requests.iter().find(|request| request.of_endpoint);
        if let Some(first) = first.filter(|_| !OPEN.contains(&endpoint.name.as_str())) {
            let body = first
                .body
                .as_ref()
                .map(|body| fill(body, &names).into_bytes());
            let path = fill_path(&first.path, &names);
            let answer = alice
                .with_token("")
                .request(first.method.clone(), &path, body)
                .await;
            let errcode = answer.body["errcode"].as_str();
            if (answer.status.as_u16(), errcode) != (401, Some("M_MISSING_TOKEN")) {
                writeln!(
                    wrong,
                    "{} for nobody: {} {}",
                    endpoint.name, answer.status, answer.body
                )
                .unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// A room of alice's in which bob never was, and one of both.
async fn scene(alice: &User, bob: &User, number: usize) -> Names {
    let alias = format!("alias{number}");
    let room = alice
        .create_room(&json!({ "name": "Private", "topic": "of alice" }))
        .await;
    let event = alice.send(&room, "a private message").await;
    let body = json!({ "preset": "public_chat", "room_alias_name": alias, "name": "Open" });
    let open = alice.create_room(&body).await;
    let said = alice.send(&open, "an open message").await;
    let shared = alice.create_room(&json!({ "preset": "public_chat" })).await;
    bob.join(&shared).await.ok();
    let names = [
        ("alias", format!("#{alias}:one.test")),
        ("alice", alice.user_id.clone()),
        ("bob", bob.user_id.clone()),
        ("event", event),
        ("number", number.to_string()),
        ("open", open),
        ("room", room),
        ("said", said),
        ("shared", shared),
    ];
    names
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

async fn carry_out(user: &User, request: &Request, names: &mut Names) -> Result<(), String> {
    let body = request
        .body
        .as_ref()
        .map(|body| fill(body, names).into_bytes());
    let path = fill_path(&request.path, names);
    let answer = user.request(request.method.clone(), &path, body).await;
    let text = answer.body.to_string();
    let found = format!("{} {text:.400}", answer.status);
    let errcode = answer.body["errcode"].as_str();
    if answer.status.as_u16() != request.status || errcode != request.errcode.as_deref() {
        return Err(found);
    }
    let has = |part: &String| text.contains(&fill(part, names));
    if !request.has.iter().all(has) || request.lacks.iter().any(has) {
        return Err(found);
    }
    if let Some(field) = &request.keep {
        let value = answer.body[field].as_str().ok_or(found)?;
        names.insert(field.clone(), value.to_owned());
    }
    Ok(())
}
