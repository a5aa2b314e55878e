//! What a Service is in a cluster: one address that leads to whichever of several servers lives. Tests close it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::{Duration, Instant},
};
use tokio_util::task::AbortOnDropHandle;

use super::variable;

/// Passes connections on to servers, each to the next one that takes it.
pub(in crate::cluster) struct Entrance {
    address: SocketAddr,
    servers: Servers,
    open: watch::Sender<bool>,
    pace: watch::Sender<Pace>,
    _task: AbortOnDropHandle<()>,
}

/// How quickly what callers send is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    AtOnce,
    /// At most so many bytes a second on each connection.
    Slow(u32),
    Halted,
}

type Servers = Arc<Mutex<Vec<String>>>;

impl Entrance {
    /// Listens where pods reach the machine that the tests run on.
    pub(in crate::cluster) async fn open() -> Self {
        let host = variable("KILN_TEST_HOST_IP");
        let listener = TcpListener::bind((host.as_str(), 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let servers = Servers::default();
        let (open, is_open) = watch::channel(true);
        let (pace, its_pace) = watch::channel(Pace::AtOnce);
        let task = tokio::spawn(pass_on(listener, Arc::clone(&servers), is_open, its_pace));
        Self {
            address,
            servers,
            open,
            pace,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Its URL.
    pub(in crate::cluster) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The port, for rules of the network.
    pub(in crate::cluster) const fn port(&self) -> u16 {
        self.address.port()
    }

    /// Leads to this server, too, as long as it lives.
    pub(in crate::cluster) fn add(&self, address: &str) {
        self.servers
            .lock()
            .expect("no panic meanwhile")
            .push(address.to_owned());
    }

    /// Breaks off all connections, and takes no more.
    pub(in crate::cluster) fn close(&self) {
        self.open.send_replace(false);
    }

    /// Passes on at most so many bytes a second of what each caller sends.
    pub(in crate::cluster) fn slow_down(&self, bytes_a_second: u32) {
        self.pace.send_replace(Pace::Slow(bytes_a_second));
    }

    /// Passes on nothing more of what callers send; connections stay.
    pub(in crate::cluster) fn halt(&self) {
        self.pace.send_replace(Pace::Halted);
    }

    /// Takes connections again.
    pub(in crate::cluster) fn reopen(&self) {
        self.open.send_replace(true);
    }
}

async fn pass_on(listener: TcpListener, servers: Servers, open: watch::Receiver<bool>, pace: watch::Receiver<Pace>) {
    let turn = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    while let Ok((mut caller, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (servers, turn, mut open) = (Arc::clone(&servers), Arc::clone(&turn), open.clone());
        let pace = pace.clone();
        connections.spawn(async move {
            let passing = async {
                let all = servers.lock().expect("no panic meanwhile").clone();
                let first = turn.fetch_add(1, Ordering::Relaxed);
                for offset in 0..all.len() {
                    if let Ok(mut server) = TcpStream::connect(&all[(first + offset) % all.len()]).await {
                        // Whichever side breaks off, the other sees it.
                        let _ = connect(&mut caller, &mut server, pace).await;
                        return;
                    }
                }
            };
            tokio::select! {
                () = passing => {}
                _ = open.wait_for(|open| !open) => {}
            }
        });
    }
}

async fn connect(caller: &mut TcpStream, server: &mut TcpStream, mut pace: watch::Receiver<Pace>) -> io::Result<()> {
    let ((mut from_caller, mut to_caller), (mut from_server, mut to_server)) = (caller.split(), server.split());
    let there = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let read = from_caller.read(&mut buffer).await?;
            if read == 0 {
                return to_server.shutdown().await;
            }
            hold_back(u32::try_from(read).expect("fits"), &mut pace).await;
            to_server.write_all(&buffer[..read]).await?;
        }
    };
    let back = async {
        io::copy(&mut from_server, &mut to_caller).await?;
        to_caller.shutdown().await
    };
    tokio::try_join!(there, back).map(drop)
}

/// Waits as long as so many bytes take.
async fn hold_back(bytes: u32, pace: &mut watch::Receiver<Pace>) {
    let begun = Instant::now();
    loop {
        let now = *pace.borrow_and_update();
        let due = match now {
            Pace::AtOnce => return,
            Pace::Slow(rate) => Some(begun + Duration::from_secs(1) * bytes / rate),
            Pace::Halted => None,
        };
        let passed = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = passed => return,
            changed = pace.changed() => if changed.is_err() {
                return;
            },
        }
    }
}
