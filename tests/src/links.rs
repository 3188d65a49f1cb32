//! The lines between servers, and what goes wrong on them.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// The lines between a number of servers: each pair has one in each direction.
#[derive(Clone, Debug)]
pub struct Links(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lines: Vec<Vec<Line>>,
    random: Mutex<StdRng>,
    faults: AtomicBool,
}

#[derive(Debug)]
struct Line {
    address: SocketAddr,
    /// Whether nothing gets through; a change ends what is open.
    cut: watch::Sender<bool>,
}

/// What happens to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Through,
    /// It ends before anything is said.
    Dropped,
    /// The request arrives, and the answer is lost: whoever asked asks again.
    AnswerLost,
    Delayed(Duration),
}

impl Links {
    /// Lines to the servers at these addresses, without faults at first.
    pub(crate) async fn between(servers: &[SocketAddr], seed: u64) -> Self {
        let mut lines = Vec::new();
        let mut listening = Vec::new();
        for _ in servers {
            let mut row = Vec::new();
            for to in servers {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                let address = listener.local_addr().expect("its number");
                let (cut, is_cut) = watch::channel(false);
                row.push(Line { address, cut });
                listening.push((listener, *to, is_cut));
            }
            lines.push(row);
        }
        let all = Self(Arc::new(Inner {
            lines,
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            faults: AtomicBool::new(false),
        }));
        for (listener, to, is_cut) in listening {
            let all = all.clone();
            #[expect(
                clippy::disallowed_methods,
                reason = "ends with the runtime of the test"
            )]
            tokio::spawn(async move { all.serve(listener, to, is_cut).await });
        }
        all
    }

    /// Where a server finds another.
    #[must_use]
    pub fn address(&self, from: usize, to: usize) -> SocketAddr {
        self.0.lines[from][to].address
    }

    /// Lets connections fail, or not any more.
    pub fn fail(&self, fail: bool) {
        self.0.faults.store(fail, Ordering::Relaxed);
    }

    /// Cuts one server off, in both directions, or ends that.
    pub fn cut(&self, server: usize, cut: bool) {
        for (from, row) in self.0.lines.iter().enumerate() {
            for (to, line) in row.iter().enumerate() {
                if (from == server) != (to == server) {
                    line.cut.send_replace(cut);
                }
            }
        }
    }

    async fn serve(self, listener: TcpListener, to: SocketAddr, is_cut: watch::Receiver<bool>) {
        while let Ok((stream, _)) = listener.accept().await {
            let (fate, is_cut) = (self.fate(), is_cut.clone());
            #[expect(
                clippy::disallowed_methods,
                reason = "ends with the runtime of the test"
            )]
            tokio::spawn(async move { pass(stream, to, fate, is_cut).await });
        }
    }

    fn fate(&self) -> Fate {
        if !self.0.faults.load(Ordering::Relaxed) {
            return Fate::Through;
        }
        let mut random = self.0.random.lock().unwrap_or_else(PoisonError::into_inner);
        match random.random_range(0..10) {
            0 => Fate::Dropped,
            1 | 2 => Fate::AnswerLost,
            3 | 4 => Fate::Delayed(Duration::from_millis(random.random_range(10..400))),
            _ => Fate::Through,
        }
    }
}

async fn pass(stream: TcpStream, to: SocketAddr, fate: Fate, mut is_cut: watch::Receiver<bool>) {
    if *is_cut.borrow() || fate == Fate::Dropped {
        return;
    }
    if let Fate::Delayed(delay) = fate {
        tokio::time::sleep(delay).await;
    }
    let Ok(server) = TcpStream::connect(to).await else {
        return;
    };
    let (mut from, mut back) = stream.into_split();
    let (mut answers, mut requests) = server.into_split();
    let there = tokio::io::copy(&mut from, &mut requests);
    let here = async {
        let mut buffer = vec![0; 16 * 1024];
        let mut passed = 0;
        while let Ok(count @ 1..) = answers.read(&mut buffer).await {
            passed += count;
            // The handshake takes some three thousand bytes; what is after them is an answer.
            if fate == Fate::AnswerLost && passed > 3_000 {
                return;
            }
            if back.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = there => {}
        () = here => {}
        _ = is_cut.wait_for(|cut| *cut) => {}
    }
}
