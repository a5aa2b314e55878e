//! What a Service is in a cluster: one address that leads to whichever of several servers lives. Tests close it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use super::variable;

/// Passes connections on to servers, each to the next one that takes it.
pub(in crate::cluster) struct Entrance {
    address: SocketAddr,
    servers: Servers,
    open: watch::Sender<bool>,
    _task: AbortOnDropHandle<()>,
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
        let task = tokio::spawn(pass_on(listener, Arc::clone(&servers), is_open));
        Self {
            address,
            servers,
            open,
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

    /// Takes connections again.
    pub(in crate::cluster) fn reopen(&self) {
        self.open.send_replace(true);
    }
}

async fn pass_on(listener: TcpListener, servers: Servers, open: watch::Receiver<bool>) {
    let turn = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    while let Ok((mut caller, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let (servers, turn, mut open) = (Arc::clone(&servers), Arc::clone(&turn), open.clone());
        connections.spawn(async move {
            let passing = async {
                let all = servers.lock().expect("no panic meanwhile").clone();
                let first = turn.fetch_add(1, Ordering::Relaxed);
                for offset in 0..all.len() {
                    if let Ok(mut server) = TcpStream::connect(&all[(first + offset) % all.len()]).await {
                        // Whichever side breaks off, the other sees it.
                        let _ = copy_bidirectional(&mut caller, &mut server).await;
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
