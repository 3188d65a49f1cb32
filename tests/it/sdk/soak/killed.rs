//! Devices in processes of their own, which are killed.

use std::{path::PathBuf, process::Stdio, time::Duration};

use rand::RngExt as _;
use ruma::OwnedRoomId;
use serde::{Deserialize, Serialize};

use super::{
    device::{Device, Disk},
    memory::Memory,
};

/// Set for the process that is a device: its [`Task`].
const CHILD: &str = "SOTTO_SOAK_DEVICE";
/// A process lives at most so long, in milliseconds.
const LONGEST_LIFE: u64 = 5000;

/// What a process has to do.
#[derive(Clone, Serialize, Deserialize)]
struct Task {
    store: PathBuf,
    url: String,
    room_id: OwnedRoomId,
    user: usize,
    messages: usize,
    phase: usize,
    seed: u64,
}

impl Task {
    /// What the device remembers of the time before.
    fn memory(&self) -> PathBuf {
        self.store.with_extension("memory")
    }

    /// What happens to it.
    fn journal(&self) -> PathBuf {
        self.store.with_extension("journal")
    }

    fn spawn(&self) -> tokio::process::Child {
        tokio::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "sdk::soak::killed::device_process",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD, serde_json::to_string(self).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }
}

/// Not a test but a device, in a process of its own: this program started again.
#[test]
fn device_process() {
    let Ok(text) = std::env::var(CHILD) else {
        return;
    };
    let task: Task = serde_json::from_str(&text).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let memory = std::fs::read(task.memory()).unwrap();
        let mut memory: Memory = serde_json::from_slice(&memory).unwrap();
        memory.go_on(&task.journal());
        let disk = Disk::File(task.store.clone());
        let device = Device::wake(task.user, &task.url, disk, memory, task.seed).await;
        device.speak(task.room_id, task.messages, task.phase).await;
    });
}

/// Has a process talk for a device, which is killed and started again until it has said all.
pub(super) async fn talk(
    mut device: Device,
    store: PathBuf,
    room_id: OwnedRoomId,
    messages: usize,
    phase: usize,
) -> Device {
    device.close().await;
    let mut task = Task {
        store,
        url: device.url.clone(),
        room_id,
        user: device.user,
        messages,
        phase,
        seed: 0,
    };
    let memory = serde_json::to_vec(&device.memory).unwrap();
    std::fs::write(task.memory(), memory).unwrap();
    std::fs::write(task.journal(), "").unwrap();
    loop {
        task.seed = device.random.random();
        let mut child = task.spawn();
        let life = Duration::from_millis(device.random.random_range(0..LONGEST_LIFE));
        if let Ok(status) = tokio::time::timeout(life, child.wait()).await {
            assert!(status.unwrap().success(), "a device failed");
            break;
        }
        // SIGKILL.
        child.kill().await.unwrap();
        device.kills += 1;
    }
    device.memory.replay(&task.journal());
    device.open().await;
    device
}
