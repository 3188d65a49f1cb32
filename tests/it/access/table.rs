//! The tables of requests and what they are answered. How to read them stands at the top of
//! `endpoints/access/rooms.txt`.

use std::path::PathBuf;

use http::Method;

/// Endpoints that nobody has to be known for.
const OPEN: [&str; 36] = [
    "GET /_matrix/client/v3/profile/{userId}/{keyName}",
    "GET /_matrix/client/v3/profile/{userId}",
    "GET /_matrix/client/v3/directory/room/{roomAlias}",
    "GET /_matrix/client/v3/directory/list/room/{roomId}",
    "GET /_matrix/client/v3/publicRooms",
    "GET /_matrix/client/v1/room_summary/{roomIdOrAlias}",
    "GET /_matrix/client/v3/presence/{userId}/status",
    "GET /.well-known/matrix/support",
    "GET /.well-known/matrix/client",
    "GET /.well-known/matrix/server",
    "GET /_matrix/client/versions",
    "GET /_matrix/client/v3/login",
    "POST /_matrix/client/v3/login",
    "GET /_matrix/client/v1/auth_metadata",
    "POST /_matrix/client/v3/refresh",
    "GET /_matrix/client/v3/login/sso/redirect",
    "GET /_matrix/client/v3/login/sso/redirect/{idpId}",
    "POST /_matrix/client/v3/account/password",
    "POST /_matrix/client/v3/account/password/email/requestToken",
    "POST /_matrix/client/v3/account/password/msisdn/requestToken",
    "POST /_matrix/client/v3/account/3pid/email/requestToken",
    "POST /_matrix/client/v3/account/3pid/msisdn/requestToken",
    "POST /_matrix/client/v3/register",
    "POST /_matrix/client/v3/register/email/requestToken",
    "POST /_matrix/client/v3/register/msisdn/requestToken",
    "GET /_matrix/client/v3/register/available",
    "GET /_matrix/client/v1/register/m.login.registration_token/validity",
    "GET /_matrix/media/v3/download/{serverName}/{mediaId}",
    "GET /_matrix/media/v3/download/{serverName}/{mediaId}/{fileName}",
    "GET /_matrix/media/v3/thumbnail/{serverName}/{mediaId}",
    "GET /_matrix/key/v2/query/{serverName}",
    "POST /_matrix/key/v2/query",
    "GET /_matrix/key/v2/server",
    "GET /_matrix/federation/v1/version",
    "GET /_matrix/federation/v1/openid/userinfo",
    "PUT /_matrix/federation/v1/3pid/onbind",
];

/// One request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) who: String,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Option<String>,
    /// Whether it is of the endpoint, and not only made before.
    pub(super) of_endpoint: bool,
    pub(super) answer: Answer,
    /// What the answer must have, and what not.
    pub(super) has: Vec<String>,
    pub(super) lacks: Vec<String>,
    /// A field of the answer that later requests need.
    pub(super) keep: Option<String>,
}

/// How something is answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) errcode: Option<String>,
}

/// An endpoint with its requests.
pub(super) struct Endpoint {
    pub(super) name: String,
    pub(super) requests: Vec<Request>,
    /// What other tests show of it: the file, the function, and the answer.
    pub(super) elsewhere: Vec<(String, String, Answer)>,
    /// What the specification knows and we never answer, which is said in the table with its reason.
    pub(super) never: Vec<Answer>,
}

impl Endpoint {
    /// Whether a request, here or elsewhere, gets this.
    pub(super) fn shows(&self, wanted: impl Fn(&Answer) -> bool) -> bool {
        let here = self.requests.iter().filter(|request| request.of_endpoint);
        here.map(|request| &request.answer)
            .chain(self.elsewhere.iter().map(|(_, _, answer)| answer))
            .any(wanted)
    }

    pub(super) fn is_open(&self) -> bool {
        OPEN.contains(&self.name.as_str())
    }

    /// Whether servers ask for it, which sign what they ask.
    pub(super) fn federates(&self) -> bool {
        self.name.contains("/federation/") && !self.is_open()
    }
}

/// Files are read when the test runs: who writes tables need not wait for a compiler.
pub(super) fn read(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("it")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(super) fn endpoints() -> Vec<Endpoint> {
    let files = ["rooms", "accounts", "devices", "media", "federation"];
    let mut found: Vec<Endpoint> = Vec::new();
    for file in files {
        let text = read(&format!("endpoints/access/{file}.txt"));
        let lines = text.lines();
        for line in lines.filter(|line| !line.starts_with('#') && !line.is_empty()) {
            match line.strip_prefix("  ") {
                None => found.push(Endpoint {
                    name: line.to_owned(),
                    requests: Vec::new(),
                    elsewhere: Vec::new(),
                    never: Vec::new(),
                }),
                Some(line) => add(found.last_mut().unwrap(), line),
            }
        }
    }
    found
}

fn add(endpoint: &mut Endpoint, line: &str) {
    if let Some(line) = line.strip_prefix("never ") {
        let (answered, _) = line.split_once(": ").unwrap_or_else(|| panic!("{line}"));
        endpoint.never.push(answer(answered));
    } else if let Some(line) = line.strip_prefix("in ") {
        let (place, answered) = line.split_once(" => ").unwrap_or_else(|| panic!("{line}"));
        let (file, test) = place.split_once(": ").unwrap_or_else(|| panic!("{line}"));
        let answered = answer(answered);
        endpoint
            .elsewhere
            .push((file.to_owned(), test.to_owned(), answered));
    } else {
        let request = request(&endpoint.name, line);
        endpoint.requests.push(request);
    }
}

/// Reads `status [errcode]`.
pub(super) fn answer(text: &str) -> Answer {
    let mut words = text.split_whitespace();
    let status = words.next().and_then(|word| word.parse().ok());
    Answer {
        status: status.unwrap_or_else(|| panic!("{text}")),
        errcode: words.next().map(ToOwned::to_owned),
    }
}

/// Reads `who [METHOD path | values of the path] [?query] [body] => status [errcode] [has …] [lacks …] [keep …]`.
fn request(endpoint: &str, line: &str) -> Request {
    let (asked, answered) = line.rsplit_once(" => ").unwrap_or_else(|| panic!("{line}"));
    let (asked, body) = split_body(asked);
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
    let mut answered = answered.split_whitespace().peekable();
    let status = answered.next().unwrap().parse().unwrap();
    let errcode = answered.next_if(|word| word.starts_with("M_"));
    let mut request = Request {
        who,
        method,
        path,
        body,
        of_endpoint,
        answer: Answer {
            status,
            errcode: errcode.map(ToOwned::to_owned),
        },
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
            _ => panic!("{line}"),
        }
    }
    request
}

/// A body is JSON, or any text between `<` and `>`.
fn split_body(asked: &str) -> (&str, Option<String>) {
    if let Some(at) = asked.find(" {") {
        return (&asked[..at], Some(asked[at + 1..].to_owned()));
    }
    match asked.find(" <") {
        Some(at) => {
            let text = asked[at + 2..].strip_suffix('>');
            (&asked[..at], text.map(ToOwned::to_owned))
        }
        None => (asked, None),
    }
}
