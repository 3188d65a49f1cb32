//! Who waits for news of a room, and is put out of it meanwhile.

use serde_json::{Value, json};
use sotto_tests::{User, room};

use super::Scene;

const SECRET: &str = "now that she is gone";

/// Waits for the next news, and then for more.
async fn old_way(user: User, since: String) -> String {
    let mut heard = String::new();
    let mut since = since;
    for timeout in [5_000, 300, 300, 0] {
        let sync = user.sync(Some(&since), timeout).await;
        sync["next_batch"].as_str().unwrap().clone_into(&mut since);
        heard += &sync.to_string();
    }
    heard
}

async fn slide(user: &User, pos: Option<&str>, timeout: u64) -> Value {
    let pos = pos.map(|pos| format!("&pos={}", sotto_tests::escape(pos)));
    let path = format!(
        "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout={timeout}{}",
        pos.unwrap_or_default()
    );
    let all = json!({ "ranges": [[0, 9]], "timeline_limit": 10, "required_state": [["*", "*"]] });
    let body = json!({ "conn_id": "watch", "lists": { "all": all } });
    user.post(&path, &body).await.ok()
}

async fn new_way(user: User, pos: String) -> String {
    let (mut heard, mut pos) = (String::new(), pos);
    for timeout in [5_000, 300, 300, 0] {
        let sync = slide(&user, Some(&pos), timeout).await;
        sync["pos"].as_str().unwrap().clone_into(&mut pos);
        heard += &sync.to_string();
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_put_out_while_waiting_hears_nothing_of_what_comes_after() {
    let scene = Scene::new().await;
    let room_id = scene.room_id();
    let (carol, dave) = (
        scene.ours.register("carol").await,
        scene.ours.register("dave").await,
    );
    let mut since = Vec::new();
    for user in [&carol, &dave] {
        user.join(room_id).await.ok();
        let sync = user.sync(None, 0).await;
        let slid = slide(user, None, 0).await;
        since.push((
            sync["next_batch"].as_str().unwrap().to_owned(),
            slid["pos"].as_str().unwrap().to_owned(),
        ));
    }
    let (of_dave, of_carol) = (since.remove(1), since.remove(0));
    let act = async {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let ban = json!({ "user_id": carol.user_id });
        scene.alice.post(&room(room_id, "ban"), &ban).await.ok();
        scene.alice.send(room_id, SECRET).await;
        let topic = json!({ "topic": SECRET });
        let path = room(room_id, "state/m.room.topic/");
        scene.alice.put(&path, &topic).await.ok();
    };
    let ((), one, two, three, four) = tokio::join!(
        act,
        old_way(carol.clone(), of_carol.0),
        new_way(carol.clone(), of_carol.1),
        old_way(dave.clone(), of_dave.0),
        new_way(dave.clone(), of_dave.1),
    );
    assert!(!one.contains(SECRET), "{one}");
    assert!(!two.contains(SECRET), "{two}");
    // Who stays hears it.
    assert!(three.contains(SECRET) && four.contains(SECRET));
}
