//! Who asks, and what there is to ask for.

use std::collections::BTreeMap;

use http::Method;
use ruma::RoomVersionId;
use serde_json::{Value, json};
use sotto_homeserver::config::Registration;
use sotto_tests::{Answer, FakeServer, Setup, TestServer, User, escape};

use super::table::{Endpoint, Request};

/// What stands for what in the requests.
pub(super) type Names = BTreeMap<String, String>;

const MALLORY: &str = "@mallory:b.test";

/// A server with its users, and two servers that are not ours: one in rooms of ours, and one that is not.
pub(super) struct Stage {
    ours: TestServer,
    alice: User,
    bob: User,
    admin: User,
    peer: FakeServer,
    stranger: FakeServer,
    _others: Vec<TestServer>,
}

impl Stage {
    pub(super) async fn set() -> Self {
        let setup = Setup::with(|config| config.registration = Registration::Token);
        let mut servers = setup.federation(3).await;
        let mut ours = servers.remove(0);
        for other in &mut servers {
            other.stop().await;
        }
        // Whoever has the token that is told on the console is the administrator.
        let token = ours.first_registration_token().unwrap();
        let auth = json!({ "type": "m.login.registration_token", "token": token });
        let body =
            json!({ "username": "admin", "password": "the password of admin", "auth": auth });
        let nobody = User::anonymous(ours.url());
        let session = nobody.post("/_matrix/client/v3/register", &body).await.ok();
        ours.open_registration().await;
        Self {
            alice: ours.register("alice").await,
            bob: ours.register("bob").await,
            admin: User::new(ours.url(), &session),
            peer: FakeServer::replace(&servers[0], RoomVersionId::V11).await,
            stranger: FakeServer::replace(&servers[1], RoomVersionId::V11).await,
            ours,
            _others: servers,
        }
    }

    /// A room of alice's in which bob never was, and one of both.
    pub(super) async fn scene(&self, endpoint: &Endpoint, number: usize) -> Names {
        let (alice, bob) = (&self.alice, &self.bob);
        let alias = format!("alias{number}");
        let room = alice
            .create_room(&json!({ "name": "Private", "topic": "of alice" }))
            .await;
        let event = alice.send(&room, "a private message").await;
        let body = json!({ "preset": "public_chat", "room_alias_name": alias, "name": "Open" });
        let open = alice.create_room(&body).await;
        let said = alice.send(&open, "an open message").await;
        let body = json!({ "preset": "public_chat", "room_version": "11" });
        let shared = alice.create_room(&body).await;
        bob.join(&shared).await.ok();
        let mut names = vec![
            ("alias", format!("#{alias}:a.test")),
            ("alice", alice.user_id.clone()),
            ("admin", self.admin.user_id.clone()),
            ("bob", bob.user_id.clone()),
            ("device", alice.device_id.clone()),
            ("event", event),
            ("mallory", MALLORY.to_owned()),
            ("number", number.to_string()),
            ("open", open),
            ("room", room),
            ("said", said),
        ];
        if endpoint.federates() {
            self.peer.peer().join(&self.ours, &shared, MALLORY).await;
            names.push(("told", alice.send(&shared, "a message to both").await));
        }
        names.push(("shared", shared));
        if endpoint.name.contains("/media/") {
            let path = "/_matrix/media/v3/upload";
            let made = alice.post(path, &json!("a file")).await.ok();
            let uri = made["content_uri"].as_str().unwrap();
            names.push(("media", uri.rsplit('/').next().unwrap().to_owned()));
        }
        let owned = |(name, value): (&str, String)| (name.to_owned(), value);
        names.into_iter().map(owned).collect()
    }

    pub(super) async fn ask(&self, request: &Request, names: &Names) -> Answer {
        let body = request.body.as_ref().map(|body| fill(body, names));
        self.send(request, names, body.map(String::into_bytes))
            .await
    }

    /// The request with another body.
    pub(super) async fn send(
        &self,
        request: &Request,
        names: &Names,
        body: Option<Vec<u8>>,
    ) -> Answer {
        let path = fill_path(&request.path, names);
        let method = request.method.clone();
        let user = match request.who.as_str() {
            "alice" => &self.alice,
            "bob" => &self.bob,
            "admin" => &self.admin,
            "nobody" => &self.alice.with_token(""),
            "peer" => return self.signed(&self.peer, method, &path, body).await,
            "stranger" => return self.signed(&self.stranger, method, &path, body).await,
            who => panic!("{who}"),
        };
        user.request(method, &path, body).await
    }

    async fn signed(
        &self,
        server: &FakeServer,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Answer {
        let peer = server.peer();
        let answer = peer.try_ask(peer.name(), &self.ours, method, path, body);
        answer.await.unwrap()
    }

    /// The request by nobody.
    pub(super) async fn ask_unknown(&self, request: &Request, names: &Names) -> Answer {
        let nobody = self.alice.with_token("");
        let body = request.body.as_ref().map(|body| fill(body, names));
        let path = fill_path(&request.path, names);
        let body = body.map(String::into_bytes);
        nobody.request(request.method.clone(), &path, body).await
    }
}

/// Remembers a field of an answer, if the request says so.
pub(super) fn keep(request: &Request, answer: &Value, names: &mut Names) -> Option<()> {
    if let Some(field) = &request.keep {
        let value = answer[field].as_str()?;
        names.insert(field.clone(), value.to_owned());
    }
    Some(())
}

pub(super) fn fill(text: &str, names: &Names) -> String {
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
    let query = fill(query, &escaped);
    if query.is_empty() {
        path
    } else {
        format!("{path}?{query}")
    }
}
